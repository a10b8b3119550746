"""SHA-256 of every file in a checkpoint, stored in a format that `sha256sum -c` reads.

MODEL_DIR/checkpoints/<step>/checksums.sha256 is written last, before the step gets its final name.
With several processes each hashes the arrays that it has written, while they are still in its page
cache, and the first one also hashes the rest, which is small.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from etils import epath

CHECKSUMS = "checksums.sha256"
_PART = "checksums.process_"  # per item: what one process has written, until the step is complete
COMMITTED = "commit_success.txt"  # orbax writes it after the checksums; its content is not used
_CHUNK = 4 << 20  # bytes in memory for each thread
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
K = TypeVar("K")
V = TypeVar("V")


class ForeignFileError(Exception):
    """An unexpected file in a checkpoint: its name and kind."""


def write_checksums(step: epath.Path) -> None:
    """Write the checksums of an otherwise complete step, on one process."""
    sums: dict[str, str] = {}
    for item in (path for path in step.iterdir() if path.is_dir()):
        for part in [path for path in item.iterdir() if path.name.startswith(_PART)]:
            found = parse(part.read_text(encoding="utf-8"))
            sums |= {f"{item.name}/{file}": digest for file, digest in found.items()}
            part.unlink()
    sums |= in_threads(lambda name: digest(step / name), set(files(step)) - sums.keys())
    (step / CHECKSUMS).write_text(_text(sums), encoding="utf-8")


def write_part(item: epath.Path, process: int) -> None:
    """Write the checksums of the arrays that a process has written to an item's directory."""
    mine = f"ocdbt.process_{process}"
    if (item / mine).exists():
        names = [f"{mine}/{name}" for name in files(item / mine)]
        sums = in_threads(lambda name: digest(item / name), names)
        (item / f"{_PART}{process}").write_text(_text(sums), encoding="utf-8")


def files(directory: epath.Path, within: str = "") -> Iterator[str]:
    """Names, relative to the step, of its files with checksums: all except hidden ones.

    Raises:
        OSError: a directory that cannot be read.
        ForeignFileError: a symbolic link, or neither a file nor a directory.
    """
    entries = [path for path in sorted(directory.iterdir()) if not path.name.startswith(".")]
    for path, kind in in_threads(_kind, entries).items():
        name = f"{within}{path.name}"
        if path.name in (CHECKSUMS, COMMITTED):
            continue
        if kind == "directory":
            yield from files(path, f"{name}/")
        elif kind == "file":
            yield name
        else:
            raise ForeignFileError(name, kind)


def is_bucket(path: epath.Path) -> bool:
    """Whether a path is in an object store."""
    return os.fspath(path).startswith("gs://")


def digest(path: epath.Path) -> str:
    """SHA-256 of a file, read a few MB at a time."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def in_threads(function: Callable[[K], V], keys: Iterable[K]) -> dict[K, V]:
    """`function` of each key, computed in many threads."""
    keys = list(keys)
    with concurrent.futures.ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as threads:
        return dict(zip(keys, threads.map(function, keys), strict=True))


def parse(text: str) -> dict[str, str]:
    """Digests by name. ValueError for any other format."""
    lines = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    found = {match[2]: match[1] for match in lines if match}
    if not text.endswith("\n") or len(found) < len(lines):
        raise ValueError("not as it was written")
    return found


def _text(sums: Mapping[str, str]) -> str:
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def _kind(path: epath.Path) -> str:
    if is_bucket(path):
        return "directory" if path.is_dir() else "file"
    mode = os.lstat(path).st_mode
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        return "directory" if stat.S_ISDIR(mode) else "file"
    return "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
