"""A task's files: a folder in the CLUE directory, or a zip that is read in place."""

from __future__ import annotations

import abc
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from plug_jax.atomic_files import is_remote
from plug_jax.clue.json_files import JsonFile
from plug_jax.errors import PlugError
from plug_jax.file_names import user_path

MAX_BYTES = 1 << 30  # per file in a zip; CLUE's largest, CHID's, has a fifth of this
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks others without a bound


class Archive(abc.ABC):
    """Files in a folder or a zip, possibly in subfolders."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.names = tuple(name for name in names if not _is_litter(name))

    @abc.abstractmethod
    def content(self, name: str) -> bytes:
        """The bytes of one of `names`."""

    def find(self, name: str) -> str | None:
        """The one of `names` with file name `name`: at the top, else in a subfolder."""
        found = [one for one in self.names if PurePosixPath(one).name == name]
        if name in found or not found:
            return name if found else None
        if len(found) > 1:
            raise PlugError(f"{self.path} has {name} more than once: {', '.join(sorted(found))}")
        return found[0]

    def read(self, name: str) -> JsonFile:
        """The file `name`; PlugError if there is none."""
        found = self.find(name)
        if found is None:
            has = ", ".join(sorted(self.names)[:12]) or "nothing"
            raise PlugError(f"{self.path} has no file {name}; it has {has}")
        return JsonFile(f"{self.path}/{found}", self.content(found))


class Folder(Archive):
    """A folder, and the folders in it."""

    def __init__(self, path: Path) -> None:
        files = [*path.iterdir(), *path.glob("*/*")]
        super().__init__(path, [f.relative_to(path).as_posix() for f in files if f.is_file()])

    def content(self, name: str) -> bytes:
        """The bytes of one of `names`."""
        return (self.path / name).read_bytes()


class Zip(Archive):
    """A zip: its members are read by their names, and never unpacked to disk."""

    def __init__(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as file:
                members = [member for member in file.infolist() if not member.is_dir()]
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise PlugError(f"{path} is not a zip file, or is truncated: {error}") from error
        super().__init__(path, [member.filename for member in members])
        self.members = {member.filename: member for member in members}

    def content(self, name: str) -> bytes:
        """The bytes of one of `names`; PlugError if damaged or too large.

        No more bytes are unpacked than the zip declares.
        """
        size = self.members[name].file_size
        if self.members[name].compress_type not in _METHODS:
            raise PlugError(
                f"{self.path}/{name} is compressed in a rare way; unpack it, or zip it with deflate"
            )
        if size > MAX_BYTES:
            raise PlugError(
                f"{self.path}/{name} says that it has {size:,} bytes; a file of CLUE has "
                f"{MAX_BYTES:,} at most"
            )
        try:
            with zipfile.ZipFile(self.path) as file, file.open(name) as member:
                return member.read(size)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise PlugError(f"{self.path}/{name} cannot be read: {error}") from error


def open_archive(path: str | os.PathLike[str]) -> Archive:
    """The files of a folder or a zip. PlugError if it is neither."""
    local = user_path(path)
    if local.is_dir():
        return Folder(local)
    if not local.exists():
        raise not_there(path)
    return Zip(local)


def not_there(path: str | os.PathLike[str]) -> PlugError:
    """The error for a folder or zip that does not exist."""
    where = "; CLUE is read from disks of this machine, or mounted ones" if is_remote(path) else ""
    return PlugError(f"there is no file or folder {os.fspath(path)}{where}")


def named_archive(data_dir: str | os.PathLike[str], folders: Sequence[str]) -> Archive | None:
    """The archive under one of the names `folders`: in `data_dir`, or `data_dir` itself.

    The names are looked for in upper and lower case, with `_public` and `.zip` and without, a
    folder before a zip. None if there is none.
    """
    path = user_path(data_dir)
    if archive_name(path) in folders and path.exists():
        return open_archive(path)
    if path.is_dir():
        there = sorted(path.iterdir(), key=lambda one: (one.is_file(), one.name))
        for folder in folders:
            for one in there:
                if archive_name(one) == folder and (one.is_dir() or is_zip(one)):
                    return open_archive(one)
    return None


def find_archive(
    data_dir: str | os.PathLike[str], folders: Sequence[str], files: Sequence[str]
) -> Archive:
    """Like `named_archive`, or `data_dir` itself if it contains one of `files`.

    Raises:
        PlugError: it is not there.
    """
    if (named := named_archive(data_dir, folders)) is not None:
        return named
    archive = open_archive(data_dir)
    in_zip = isinstance(archive, Zip)
    if any(archive.find(file) if in_zip else file in archive.names for file in files):
        return archive
    raise PlugError(
        f"{data_dir} has no {folders[0]}; looked for {folders[0]}, {folders[0]}_public and "
        f"{folders[0]}_public.zip in it, and for {', '.join(files)}"
    )


def archive_name(path: Path) -> str:
    """A folder's or zip's name as the tasks spell theirs: "OCNLI_public.zip" -> "ocnli".

    A link has its own name, not that of what it leads to.
    """
    named = path.resolve() if path.name in ("", "..") else path
    return named.name.lower().removesuffix(".zip").removesuffix("_public")


def is_zip(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the name of a zip, in upper or lower case."""
    return os.fspath(path).lower().endswith(".zip")


def _is_litter(name: str) -> bool:
    """Whether macOS added it to the zip or folder."""
    return any(part == "__MACOSX" or part.startswith("._") for part in name.split("/"))
