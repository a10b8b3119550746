"""Huge pages (2 MiB), if Linux gives them only on request.

XLA frees a step's temporary memory after each step, and the next one faults it in again, page by
page: with pages of 4 KiB that is a quarter of a small step on a CPU.
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
_TUNABLES = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"
_SINCE = (2, 35)  # the release of glibc


def ask_for_huge_pages() -> None:
    """Re-execute this program in the same process, with a malloc that requests huge pages.

    glibc's malloc reads its settings once, when a program is loaded. Nothing happens if the system
    always or never uses huge pages, with another malloc, if GLIBC_TUNABLES already sets them, or in
    a program other than `plug-jax` that calls it.
    To be called first: earlier imports and opened files are repeated.
    """
    environment = with_huge_pages(os.environ)
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


def with_huge_pages(
    environment: Mapping[str, str], *, modes: Path = _MODES, libc: tuple[str, str] | None = None
) -> dict[str, str] | None:
    """The environment for a malloc that requests huge pages; None: no change needed.

    Args:
        environment: of this program.
        modes: Linux's file with the mode, such as "always [madvise] never".
        libc: name and release of the C library; None: this program's.
    """
    before = environment.get(_TUNABLES, "")
    if _TUNABLE in before:
        return None
    try:
        asked = "[madvise]" in modes.read_text()
    except OSError:
        return None
    name, release = platform.libc_ver() if libc is None else libc
    if not asked or name != "glibc" or tuple(map(int, release.split(".")[:2])) < _SINCE:
        return None
    return {**environment, _TUNABLES: ":".join(filter(None, (before, f"{_TUNABLE}=1")))}
