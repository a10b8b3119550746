"""Memory in pages of 2 MiB, where Linux leaves it to the program to ask for them.

XLA gives a step's temporary memory back after each step, and the next one takes it anew, page by
page: with pages of 4 KiB that is a fifth of a small step on a CPU.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

_MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"
_SINCE = (2, 35)  # the release of glibc


def ask_for_huge_pages() -> None:
    """Start this program anew, as the same process, with a malloc that asks for huge pages.

    glibc's reads its settings once, when a program is loaded. Nothing happens where huge pages are
    the system's own choice, where malloc is another, and where GLIBC_TUNABLES says which to use.
    To be called first: what was imported and opened before is imported and opened again.
    """
    environment = with_huge_pages(os.environ)
    if environment is not None and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


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
