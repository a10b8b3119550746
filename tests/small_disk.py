"""A small file system that fills up quickly, where mounts are permitted."""

from __future__ import annotations

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(directory: Path, kilobytes: int) -> Iterator[Path]:
    """A directory below `directory` with this much space; skips the test without the permission."""
    mount = directory / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(mount)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within the context, no file of this process can exceed `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def remount(mount: Path, option: str) -> None:
    """Read-only (`ro`), or with another size (`size=9m`)."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(mount)], check=True)


def fill(mount: Path) -> Path:
    """A file that takes all remaining space."""
    path = mount / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    return path
