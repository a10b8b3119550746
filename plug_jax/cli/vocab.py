"""`plug-jax vocab`: train a SentencePiece vocabulary on text files."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plug_jax.data.sources import TextSource

SUMMARY = "train a SentencePiece vocabulary on your text"
EXAMPLE = """\
example:
  plug-jax vocab --input 'corpus/*.txt' --output vocabulary --vocab_size 8000

writes vocabulary/sentencepiece.model and, to read, vocabulary/sentencepiece.vocab.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="text files in UTF-8, or globs"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write to")
    parser.add_argument(
        "--vocab_size", type=int, required=True, metavar="N", help="pieces, 5 special ones included"
    )
    parser.add_argument(
        "--model_type",
        choices=("char", "unigram", "bpe"),
        default="char",
        help="single characters (the default, as BERT has for Chinese), or learnt words",
    )
    parser.add_argument(
        "--character_coverage",
        type=float,
        metavar="SHARE",
        help="share of the text's characters that get pieces (default: 1 for char, else 0.9995)",
    )
    parser.add_argument(
        "--format",
        choices=("lines", "paragraphs", "jsonl"),
        default="lines",
        help="one document a line (the default), documents between blank lines, or JSON lines",
    )
    parser.add_argument(
        "--text_key", default="text", metavar="KEY", help="where JSON lines hold the text"
    )
    parser.add_argument(
        "--max_sentences",
        type=int,
        metavar="N",
        help="train on N (over 100) random pieces of text instead of everything, and measure [UNK] "
        "on the first N documents",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing vocabulary")


def run(args: argparse.Namespace) -> int:
    """Trains the vocabulary and prints its size and its share of [UNK]."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.data.drops import drop_counts, reset_counts
    from plug_jax.data.sources import TextSource
    from plug_jax.data.vocabulary_training import train_sentencepiece, unknown_rate

    source = TextSource(train=args.input, file_format=args.format, text_key=args.text_key)
    reset_counts()
    vocabulary = train_sentencepiece(
        _documents(source),
        directory=args.output,
        vocab_size=args.vocab_size,
        model_type=args.model_type,
        character_coverage=args.character_coverage,
        max_sentences=args.max_sentences,
        overwrite=args.overwrite,
    )
    for reason, count in sorted(drop_counts().items()):
        print(f"left out: {count} ({reason})")
    print(f"{vocabulary.vocab_size} pieces in {os.path.join(args.output, vocabulary.FILE_NAME)}")
    unknown, total = unknown_rate(
        vocabulary, itertools.islice(_documents(source), args.max_sentences)
    )
    print(f"[UNK]: {unknown / max(total, 1):.4%} of {total:,} tokens")
    return 0


def _documents(source: TextSource) -> Iterator[str]:
    for example in source.get_dataset("train", shuffle=False).as_numpy_iterator():
        yield example["text"].decode()
