"""The options that say how text files hold their documents."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqio import DataSource


def add_arguments(parser: argparse._ActionsContainer, *, tokens: bool = False) -> None:
    """Adds --format, with TFRecords of `tokens` if so, and --text_key; both may be None."""
    parser.add_argument(
        "--format",
        choices=("lines", "paragraphs", "jsonl", *(("tokens",) if tokens else ())),
        help="one document per line (the default), documents separated by blank lines, or one "
        "JSON object per line"
        + ("; or TFRecords of tokens, such as those of a cache" if tokens else ""),
    )
    parser.add_argument(
        "--text_key",
        metavar="KEY",
        help="field of the JSON objects that holds the text (default: text)",
    )


def source_of(args: argparse.Namespace, files: Sequence[str]) -> DataSource:
    """Their documents. PlugError as `source_of_files`."""
    from plug_jax.data.sources.files import source_of_files
    from plug_jax.data.sources.text_source import DEFAULT_TEXT_KEY

    return source_of_files(
        train=files,
        file_format=args.format or "lines",
        text_key=DEFAULT_TEXT_KEY if args.text_key is None else args.text_key,
    )
