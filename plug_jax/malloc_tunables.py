"""glibc's malloc as training on CPUs needs it: huge pages, and memory that is kept.

XLA's CPU backend frees a step's temporary memory after each step, and the next one faults it in
again, page by page, which Linux clears: up to a third of a small step. Huge pages (2 MiB) make that
cheaper, if Linux gives them only on request; memory that malloc keeps need not be cleared.
"""

from __future__ import annotations

import itertools
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from plug_jax.held_interrupts import block_interrupts

_MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_DEVICES = Path("/dev")
_ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd")  # of TPUs and GPUs
_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = {"hugetlb": 1}
# Freed memory is kept, however much. It takes all of them: a thread's own arena has no place for
# large blocks, which then are mapped and unmapped one by one.
_KEPT = {"arena_max": 1, "mmap_max": 0, "trim_threshold": 1 << 40}
_SINCE = (2, 35)  # the release of glibc that knows all


def set_malloc_tunables() -> None:
    """Re-execute this program in the same process, with the tunables of `with_tunables`.

    glibc's malloc reads its settings once, when a program is loaded. Nothing happens in a program
    other than `plug-jax` that calls it.
    To be called first: earlier imports and opened files are repeated.
    """
    environment = with_tunables(os.environ)
    if environment is not None and sys.executable and is_plug_jax(sys.orig_argv[1:]):
        block_interrupts()  # until the new program handles them
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def is_plug_jax(arguments: Sequence[str]) -> bool:
    """Whether these arguments clearly start Python as `plug-jax`."""
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument == "-m":
            return following == "plug_jax"
        if not argument.startswith("-"):
            return Path(argument).name == "plug-jax"
    return False


def with_tunables(
    environment: Mapping[str, str],
    *,
    modes: Path = _MODES,
    devices: Path = _DEVICES,
    libc: tuple[str, str] | None = None,
) -> dict[str, str] | None:
    """The environment for a malloc that requests huge pages and keeps memory; None: no change.

    Huge pages are requested where the system neither always nor never uses them. Memory is kept
    where there is no accelerator, or JAX_PLATFORMS=cpu: the single arena which that takes could
    slow the many threads of a TPU host's data pipeline. Tunables that are set already stay.

    Args:
        environment: of this program.
        modes: Linux's file with the mode of huge pages, such as "always [madvise] never".
        devices: where Linux has the files of devices.
        libc: name and release of the C library; None: this program's.
    """
    name, release = platform.libc_ver() if libc is None else libc
    if name != "glibc" or tuple(map(int, release.split(".")[:2])) < _SINCE:
        return None
    before = environment.get(_TUNABLES, "")
    wanted = _wanted(environment, modes, devices)
    added = [
        f"{tunable}={value}"
        for tunable, value in wanted.items()
        if not any(one.startswith(f"{tunable}=") for one in before.split(":"))
    ]
    if not added:
        return None
    return {**environment, _TUNABLES: ":".join(filter(None, (before, *added)))}


def _wanted(environment: Mapping[str, str], modes: Path, devices: Path) -> dict[str, int]:
    tunables = _HUGE_PAGES if _on_request(modes) else {}
    if environment.get("JAX_PLATFORMS") == "cpu" or not any(
        any(devices.glob(pattern)) for pattern in _ACCELERATORS
    ):
        tunables = tunables | _KEPT
    return {f"glibc.malloc.{name}": value for name, value in tunables.items()}


def _on_request(modes: Path) -> bool:
    try:
        return "[madvise]" in modes.read_text()
    except OSError:
        return False
