"""The source for files of each format."""

from __future__ import annotations

from typing import Literal

import seqio

from plug_jax.data.sources.file_source import Paths
from plug_jax.data.sources.text_source import DEFAULT_TEXT_KEY, FileFormat, TextSource
from plug_jax.data.sources.token_source import TokenSource
from plug_jax.errors import PlugError

Format = FileFormat | Literal["tokens"]


def source_of_files(
    *,
    train: Paths,
    validation: Paths | None = None,
    file_format: Format = "lines",
    text_key: str = DEFAULT_TEXT_KEY,
) -> seqio.DataSource:
    """A `TextSource`, or for the format "tokens" a `TokenSource`.

    PlugError as these raise, and for a `text_key` of tokens.
    """
    if file_format != "tokens":
        return TextSource(
            train=train, validation=validation, file_format=file_format, text_key=text_key
        )
    if text_key != DEFAULT_TEXT_KEY:
        raise PlugError(f"The text key {text_key!r} is for JSON lines; files of tokens have none.")
    return TokenSource(train=train, validation=validation)
