"""Names of files as users give them, and checks of those of output files."""

from __future__ import annotations

import os
from pathlib import Path

from plug_jax.errors import PlugError, shown_path

# Formats written here, and their endings.
JSON, JSON_LINES = "JSON", "JSON lines"
HTML, ZIP = "HTML", "a zip"
_ENDINGS = {
    JSON: (".json",),
    JSON_LINES: (".jsonl", ".ndjson", ".json"),  # CLUE's files of lines are called .json
    HTML: (".html", ".htm"),
    ZIP: (".zip",),
}
# Endings of other formats that users may expect.
_OTHERS = frozenset(
    (
        *(".npy", ".npz", ".csv", ".tsv", ".txt", ".xlsx", ".xls", ".parquet", ".arrow"),
        *(".feather", ".tfrecord", ".h5", ".hdf5", ".pkl", ".pickle", ".pt", ".pth"),
        *(".safetensors", ".yaml", ".yml", ".xml", ".md", ".pdf", ".png"),
        ".tar",
    )
)
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def user_path(path: str | os.PathLike[str]) -> Path:
    """A local path as a user writes it: `~` is the home directory.

    A shell leaves `~` alone in --output=~/runs, in quotes, and in gin bindings.
    """
    return Path(os.path.expanduser(path))


def check_output_file(option: str, path: str | os.PathLike[str], content: str) -> None:
    """PlugError if a file cannot be `path`, a directory, or its ending suggests another format.

    Names without an ending, or with an unknown one, are accepted.

    Args:
        option: the option that set the name, for the message.
        path: the name.
        content: one of JSON, JSON_LINES, HTML, ZIP.
    """
    name = os.fspath(path)
    if os.path.isdir(user_path(name)):
        raise PlugError(f"{option} {shown_path(name)} is a directory; name a file")
    ending = os.path.splitext(name)[1].lower()
    if ending in _COMPRESSED:
        raise PlugError(
            f"{option} {shown_path(name)} is not written compressed; leave {ending} out"
        )
    own = _ENDINGS[content]
    known = _OTHERS.union(*_ENDINGS.values())
    if ending in known and ending not in own:
        raise PlugError(
            f"{option} {shown_path(name)} would be {content}, which is not what {ending} "
            f"promises; let its name end in {own[0]}"
        )
