"""A progress bar with bytes per second on standard error, and atomic output directories."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from plug_jax.errors import PlugError


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with numbers of bytes done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


@contextlib.contextmanager
def atomic_output(output: Path, *, reads: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """A path next to `output` to write to, which is renamed to `output` on success.

    Leftovers of an interrupted run are removed first, and those of a failure at once.

    Args:
        output: a directory that does not exist or is empty; links are followed.
        reads: the paths that are read to write it.

    Raises:
        PlugError: `output` exists or cannot be made; the path next to it is among `reads`.
    """
    output = Path(os.path.realpath(output))
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise PlugError(f"{output} exists; remove it, or name another --output")
    partial = output.parent / f"{output.name}.partial"
    for path in reads:
        if Path(os.path.realpath(path)).is_relative_to(partial):
            raise PlugError(
                f"{path} is where {output} would be written before it is complete; rename it, or "
                "name another --output"
            )
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
    except OSError as error:
        raise PlugError(f"cannot write {output}: {error.strerror} ({error.filename})") from error
    try:
        yield partial
        _to_disk(partial)
        if output.is_dir():
            output.rmdir()
        os.replace(partial, output)
    finally:
        _remove(partial)


def _to_disk(root: Path) -> None:
    """Sync a directory and everything in it to disk."""
    for parent, _, files in os.walk(root):
        for path in (*(os.path.join(parent, name) for name in files), parent):
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
