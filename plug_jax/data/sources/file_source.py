"""Shared by all sources over files: splits, globs, and the files of a split."""

from __future__ import annotations

import functools
import glob
import logging
import os
from collections.abc import Callable, Sequence
from typing import ClassVar

import seqio
import tensorflow as tf

from plug_jax.data.many_files import of_each
from plug_jax.errors import PlugError

_FILES: set[str] = set()  # paths known not to be directories: files are listed several times a run
_log = logging.getLogger(__name__)

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class FileSource(seqio.FileDataSource):
    """A seqio source over the files of a train and optional validation split, sharded by file.

    Paths and globs may be on any file system of tf.io.gfile, such as gs://. A path that exists
    literally, such as a file `a[1].txt` or a directory `lr=[1e-4]`, is not treated as a pattern.
    As in a shell, patterns match hidden files (`.a.txt`, macOS' `._a.txt`) only where they have the
    dot themselves. Directories that match are left out. `**`, to search all folders below, is not
    supported.
    Raises PlugError when a split is listed or read, before any training, for one without a match.
    """

    KIND: ClassVar[str]  # name of its files in messages, such as "text file"

    def __init__(
        self,
        read: Callable[[tf.Tensor], tf.data.Dataset],
        *,
        train: Paths,
        validation: Paths | None,
    ) -> None:
        """Describes the files; none is opened yet. `read` maps a path to a dataset."""
        patterns = {"train": as_list(train, kind=self.KIND)}
        if validation is not None:
            patterns["validation"] = as_list(validation, kind=self.KIND)
        super().__init__(read, patterns)

    def list_shards(self, split: str) -> list[str]:
        """Paths of the split's files, in the order given, each glob sorted, without repetition."""
        if split not in self.splits:
            raise PlugError(
                f"There is no {split!r} split, only {', '.join(self.splits)}: name files for it "
                "when you make the source."
            )
        return matching_files(self._split_to_filepattern[split], kind=self.KIND)

    def damage(self, path: str, *, to_end: bool) -> str | None:
        """Detectable damage of a file, such as "is cut short"; None if there is none.

        `to_end`: read all of it if its beginning does not show damage.
        """
        raise NotImplementedError


def as_list(paths: Paths, *, kind: str) -> list[str]:
    """Paths and globs, at least one, with `~` expanded; `kind` is for messages."""
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    if not paths:
        raise PlugError(f"Name at least one {kind}.")
    expanded = [os.path.expanduser(os.fspath(path)) for path in paths]
    for path in expanded:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise _not_unicode(f"The name of a {kind}", os.fsencode(path)) from error
    return expanded


def matching_files(patterns: Sequence[str], *, kind: str) -> list[str]:
    """The files in the order given, each glob sorted, without repetition; see `FileSource`."""
    return list(dict.fromkeys(file for pattern in patterns for file in _match(pattern, kind)))


def literal_directories(pattern: str) -> str:
    """A glob with the part escaped that is literally a directory."""
    directory, name = os.path.split(pattern)
    if not glob.has_magic(directory):
        return pattern
    if tf.io.gfile.isdir(directory):
        return os.path.join(glob.escape(directory.replace("\\", r"\\")), name)
    return os.path.join(literal_directories(directory), name)


def _match(pattern: str, kind: str) -> list[str]:
    if not pattern:
        raise PlugError(f"An empty name matches no {kind}; give a path or a pattern.")
    if tf.io.gfile.isdir(pattern):
        raise PlugError(f"{pattern} is a directory; name files, for example {pattern}/*.")
    if tf.io.gfile.exists(pattern):
        if others := [file for file in _glob(pattern) if os.path.normpath(file) != pattern]:
            _say_once(f"{pattern} is read as the file of that name, not for {name_some(others)}")
        return [pattern]
    if any(part == "**" for part in literal_directories(pattern).split("/")):
        raise PlugError(
            f"{pattern}: ** does not search all folders here; name a pattern for each level, such "
            "as data/*.txt and data/*/*.txt."
        )
    found = _glob(pattern)
    visible = [file for file in found if not _is_hidden(file, pattern)]
    files = _without_directories(visible)
    if not files:
        only = f", only directories or hidden files: {name_some(found)}" if found else ""
        raise PlugError(f"No {kind} matches {pattern}{only}.")
    if directories := sorted(set(visible) - set(files)):
        _say_once(
            f"{pattern} also matches directories, which are not read: {name_some(directories)}"
        )
    return files


def _without_directories(paths: Sequence[str]) -> list[str]:
    unknown = [path for path in paths if path not in _FILES]
    found = zip(unknown, of_each(tf.io.gfile.isdir, unknown), strict=True)
    _FILES.update(path for path, is_directory in found if not is_directory)
    return [path for path in paths if path in _FILES]


def _glob(pattern: str) -> list[str]:
    """The matches of a pattern, sorted; none for a path that is not a pattern."""
    if not glob.has_magic(pattern):
        return []
    try:
        return sorted(tf.io.gfile.glob(literal_directories(pattern)))
    except UnicodeDecodeError as error:
        raise _not_unicode(f"The name of a match of {pattern}", error.object) from error


def _not_unicode(what: str, name: bytes) -> PlugError:
    return PlugError(
        f"{what} is not UTF-8: {name!r}. Rename the file; `convmv -f gbk -t utf8 --notest` does it "
        "for names in GBK, such as those in zip files from Chinese Windows."
    )


def _is_hidden(file: str, pattern: str) -> bool:
    """Whether a match of a pattern begins with a dot where the pattern does not."""
    # From the end: repeated slashes at the beginning need not be the same.
    parts = zip(reversed(file.split("/")), reversed(pattern.split("/")), strict=False)
    return any(
        name.startswith(".") and glob.has_magic(part) and not part.startswith(".")
        for name, part in parts
    )


@functools.cache
def _say_once(message: str) -> None:
    _log.warning(message)


def name_some(files: Sequence[str]) -> str:
    """The first few of the files, for a message."""
    return ", ".join(files[:5]) + (", ..." if files[5:] else "")
