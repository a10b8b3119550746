"""Checks that tensor files are valid and complete; else says what they are and what to do."""

from __future__ import annotations

import os
import pickletools
import zipfile
from pathlib import Path

from plug_jax.data.fetched_files import stand_in
from plug_jax.errors import PlugError

CUT_SHORT = "is cut short: its end is missing; fetch it again"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # beginning of a file from PyTorch before 1.6
_LEGACY_PICKLES = 5  # magic, version, the machine's sizes, content, storage keys
_OTHERS = {
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"BZh": "a bzip2 archive; unpack it",
    b"\xfd7zXZ": "an xz archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a rar archive; unpack it",
    b"\x89HDF": "an HDF5 file, of TensorFlow or Keras; fetch the PyTorch or safetensors one",
    b"GGUF": "a GGUF file, of llama.cpp; fetch the PyTorch or safetensors one",
}


def first_bytes(path: Path) -> bytes:
    """The first 1,024 bytes. PlugError if they, or files next to it, show another kind of file."""
    if path.is_symlink() and not path.exists():
        raise PlugError(
            f"{path} is a link to {os.readlink(path)}, which does not exist; fetch the file itself"
        )
    if (unfinished := path.parent / f"{path.name}.aria2").exists():
        raise PlugError(f"{path} is cut short: {unfinished.name} says so; let aria2 finish")
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise PlugError(f"cannot read {path}: {error.strerror}") from error
    what = stand_in(head)
    if what is None and not head.strip(b"\0"):
        what = "holds only zeros: it was allocated but never downloaded; fetch it again"
    if what is None and (other := next((o for o in _OTHERS if head.startswith(o)), None)):
        what = f"is {_OTHERS[other]}"
    if what is None and head[257:262] == b"ustar":
        what = "is a tar archive; unpack it"
    if what is None and (text := _text(head)):
        what = f"is a text file, not weights: {text!r}; see what it says, and fetch the file itself"
    if what:
        raise PlugError(f"{path} {what}")
    return head


def check_torch_file(path: Path) -> None:
    """PlugError unless a PyTorch file seems complete, by its first and last bytes."""
    head = first_bytes(path)
    if head[8:9] == b"{":
        raise PlugError(
            f"{path} is a safetensors file under another name; rename it to model.safetensors"
        )
    if head.startswith(_ZIP):
        _check_zip(path)
    elif head.startswith(_LEGACY) or _LEGACY.startswith(head):
        _check_legacy(path)
    elif not head.startswith(_PICKLE):
        raise PlugError(f"{path} is not a PyTorch file: it begins with {head[:16]!r}")


def check_safetensors(path: Path, needed: int) -> None:
    """PlugError unless a safetensors file has the `needed` bytes that its header declares."""
    size = os.path.getsize(path)
    if size < needed:
        raise PlugError(f"{path} is cut short: it has {size:,} of {needed:,} bytes; fetch it again")
    if size > needed:
        raise PlugError(
            f"{path} has {size:,} bytes, and its header tells of {needed:,}: its download went "
            "wrong; fetch it again"
        )


def check_safetensors_header(path: Path) -> None:
    """PlugError unless a file begins with a complete safetensors header."""
    head = first_bytes(path)
    if head.startswith((_ZIP, _PICKLE)) and head[8:9] != b"{":
        raise PlugError(
            f"{path} is a PyTorch file under another name; rename it to pytorch_model.bin"
        )
    if len(head) > 8 and head[8:9] != b"{":
        raise PlugError(f"{path} is not a safetensors file: it begins with {head[:16]!r}")
    if os.path.getsize(path) < 8 + int.from_bytes(head[:8], "little") or len(head) < 8:
        raise PlugError(f"{path} {CUT_SHORT}")


def _text(head: bytes) -> str | None:
    """The first line if the bytes are text, such as a server's error message."""
    line = head.decode("utf-8", "replace").strip().partition("\n")[0].strip()
    return line[:80] if len(line) > 8 and line.isprintable() and "\ufffd" not in line else None


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise PlugError(f"{path} {CUT_SHORT}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise PlugError(f"{path} is damaged: {error}; fetch it again") from error
    if not any(member.filename.endswith("data.pkl") for member in members):
        names = ", ".join(member.filename for member in members[:3])
        raise PlugError(f"{path} is a zip archive of {names} ...; unpack it")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise PlugError(
            f"{path} was compressed again, which PyTorch never does; fetch the original"
        )


def _check_legacy(path: Path) -> None:
    """Reads the pickles' opcodes without executing them."""
    with open(path, "rb") as file:
        try:
            for _ in range(_LEGACY_PICKLES):
                for _ in pickletools.genops(file):
                    pass
        except (ValueError, MemoryError) as error:
            raise PlugError(f"{path} {CUT_SHORT}") from error
