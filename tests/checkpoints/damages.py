"""Ways to damage a file of a checkpoint."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

FLIPS = 20


def files_of(step: Path) -> list[str]:
    """All files of a step, by relative path."""
    return sorted(str(path.relative_to(step)) for path in step.rglob("*") if path.is_file())


def kind_of(name: str) -> str:
    """The kind of a file; array files have random names."""
    parent, _, last = name.rpartition("/")
    return f"{parent}/*" if parent.endswith("/d") else name if not parent else f"{parent}/{last}"


def damages(other: Path) -> dict[str, Callable[[Path, str], None]]:
    """Functions that damage a file of a step, by name. `other`: a step with similar files."""

    def truncate(step: Path, name: str) -> None:
        content = (step / name).read_bytes()
        (step / name).write_bytes(content[: len(content) // 2])

    def empty(step: Path, name: str) -> None:
        (step / name).write_bytes(b"")

    def delete(step: Path, name: str) -> None:
        (step / name).unlink()

    def swap(step: Path, name: str) -> None:
        """Replace by the counterpart in the other step: same name, or same rank by size."""

        def rank(directory: Path) -> list[Path]:
            return sorted(directory.iterdir(), key=lambda path: (path.stat().st_size, path.name))

        like = other / name
        if not like.exists():
            mine = rank((step / name).parent)
            theirs = rank(like.parent)
            like = theirs[min(mine.index(step / name), len(theirs) - 1)]
        shutil.copyfile(like, step / name)

    return {"truncate": truncate, "empty": empty, "delete": delete, "swap": swap}


def flips(step: Path, name: str) -> Iterator[Callable[[Path, str], None]]:
    """Flip a byte at each of several positions spread over the file."""
    size = (step / name).stat().st_size
    chosen = random.Random(name).sample(range(size), min(FLIPS, size))
    for place in chosen:

        def flip(step: Path, name: str, place: int = place) -> None:
            content = bytearray((step / name).read_bytes())
            content[place] ^= 1 << (place % 8)
            (step / name).write_bytes(bytes(content))

        yield flip
