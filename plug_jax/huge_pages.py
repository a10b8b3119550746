"""Memory in pages of 2 MiB, where Linux leaves it to the program to ask for them.

XLA gives a step's temporary memory back after each step, and the next one takes it anew, page by
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
    """Start this program anew, as the same process, with a malloc that asks for huge pages.

    glibc's reads its settings once, when a program is loaded. Nothing happens where huge pages are
    the system's own choice, where malloc is another, where GLIBC_TUNABLES says which to use, and
    in a program that is not `plug-jax` and runs it within itself.
    To be called first: what was imported and opened before is imported and opened again.
    """
    environment = with_huge_pages(os.environ)
    if environment is not None and sys.executable and is_plug_jax(sys.orig_argv[1:]):
        block_interrupts()  # until that program can hear them
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def is_plug_jax(arguments: Sequence[str]) -> bool:
    """Whether Python was started with these arguments to be `plug-jax`, as far as that is plain."""
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument == "-m":
            return following == "plug_jax"
        if not argument.startswith("-"):
            return Path(argument).name == "plug-jax"
    return False


def with_huge_pages(
    environment: Mapping[str, str], *, modes: Path = _MODES, libc: tuple[str, str] | None = None
) -> dict[str, str] | None:
    """The environment of a program whose malloc asks for huge pages; None: it is well as it is.

    Args:
        environment: of this program.
        modes: the file in which Linux says who chooses, such as "always [madvise] never".
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
