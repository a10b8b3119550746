"""`plug-jax vocab`: make a vocabulary, from text files or the default one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from plug_jax.cli import text_files
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

SUMMARY = "Make a vocabulary: train one on your text, or write the default one."
EXAMPLE = """\
examples:
  plug-jax vocab --input 'corpus/*.txt' --output vocabulary --vocab_size 8000
  plug-jax vocab --model_type wordpiece --output vocabulary
  plug-jax vocab --model_type wordpiece --input 'corpus/*.txt' --vocab_size 30000 --output words

The first writes vocabulary/sentencepiece.model and, to read, vocabulary/sentencepiece.vocab.
The second writes vocabulary/vocab.txt, the default vocabulary: 21,128 pieces, among them the 20,902
ideographs of U+4E00 to U+9FA5. The third adds characters and words of the text to these.
Training leaves out one document in 100 and reports how well the vocabulary covers those.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    parser.add_argument("--input", nargs="+", metavar="FILE", help="text files in UTF-8, or globs")
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write to")
    parser.add_argument(
        "--vocab_size",
        type=int,
        metavar="N",
        help="pieces, special ones included (default: 21128 for wordpiece; the others need it)",
    )
    parser.add_argument(
        "--model_type",
        choices=("char", "unigram", "bpe", "wordpiece"),
        default="char",
        help="single characters (the default), subwords learned by SentencePiece, or BERT's "
        "vocab.txt with a piece for each common Chinese character and words of other scripts",
    )
    parser.add_argument(
        "--character_coverage",
        type=float,
        metavar="SHARE",
        help="share of the text's characters that get pieces (default: 1 for char, else 0.9995; "
        "not for wordpiece)",
    )
    text_files.add_arguments(parser)
    parser.add_argument(
        "--max_sentences",
        type=int,
        metavar="N",
        help="SentencePiece trains on at most N (over 100) random pieces of text, of up to 1,000 "
        "characters or 3 KB each: 2000000 by default, which takes 6 GB of memory at most for char "
        "and about twice as much for unigram and bpe; 0 for all the text",
    )
    parser.add_argument(
        "--held_out",
        nargs="+",
        metavar="FILE",
        help="measure the coverage on these files (same format), and train on all the input",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing vocabulary")


def run(args: argparse.Namespace) -> int:
    """Makes the vocabulary; prints its size and how well it covers text."""
    _check(args)
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.data.drops import drop_counts, reset_counts
    from plug_jax.data.vocabularies.coverage import HeldOut, measure_coverage

    reset_counts()
    held_out = HeldOut()
    texts: Iterable[str] | None = None
    if args.input:
        texts = _documents(args, args.input)
        texts = texts if args.held_out else held_out.filter(texts)
    vocabulary = _make(args, texts)
    for reason, count in sorted(drop_counts().items()):
        print(f"left out: {count} ({reason})")
    print(f"{vocabulary.vocab_size} pieces in {args.output.rstrip('/')}/{vocabulary.FILE_NAME}")
    if args.held_out:
        coverage = measure_coverage(vocabulary, _documents(args, args.held_out))
        print(f"of the text in --held_out: {coverage}")
    elif args.input:
        coverage = measure_coverage(vocabulary, held_out.texts)
        print(f"of {_measured_on(held_out.is_trained_on, len(held_out.texts))}: {coverage}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """PlugError for options that do not go together."""
    if args.model_type != "wordpiece":
        for option in ("input", "vocab_size"):
            if getattr(args, option) is None:
                raise PlugError(f"--model_type {args.model_type} needs --{option}")
        return
    for option in ("format", "text_key"):
        if getattr(args, option) is not None and not (args.input or args.held_out):
            raise PlugError(f"--{option} goes with --input or --held_out")
    for option in ("character_coverage", "max_sentences"):
        if getattr(args, option) is not None:
            raise PlugError(f"--{option} is for SentencePiece, not for --model_type wordpiece")


def _make(args: argparse.Namespace, texts: Iterable[str] | None) -> PlugVocabulary:
    from plug_jax.data.vocabularies import sentencepiece_training, wordpiece_training

    where = {"directory": args.output, "overwrite": args.overwrite}
    default_size = wordpiece_training.DEFAULT_SIZE
    if texts is None and args.vocab_size in (None, default_size):
        return wordpiece_training.write_default_wordpiece(**where)
    if texts is None:
        raise PlugError(
            f"Without --input there is only the default vocabulary of {default_size} pieces: name "
            "text files, or leave --vocab_size out."
        )
    if args.model_type == "wordpiece":
        size = default_size if args.vocab_size is None else args.vocab_size
        return wordpiece_training.train_wordpiece(texts, vocab_size=size, **where)
    sample = args.max_sentences
    return sentencepiece_training.train_sentencepiece(
        texts,
        vocab_size=args.vocab_size,
        model_type=args.model_type,
        character_coverage=args.character_coverage,
        max_sentences=sentencepiece_training.MAX_SENTENCES if sample is None else sample,
        **where,
    )


def _measured_on(is_trained_on: bool, number: int) -> str:
    documents = f"{number:,} document" + "s" * (number != 1)
    if is_trained_on:
        return f"{documents} of the TRAINING text (too short to hold any out; see --held_out)"
    return f"{documents} held out of training"


def _documents(args: argparse.Namespace, files: Sequence[str]) -> Iterator[str]:
    """The texts of the files, with a line of progress on a terminal."""
    from rich import progress
    from rich.console import Console

    from plug_jax.data.autotuning import without_autotuning
    from plug_jax.data.drops import drop_counts, why_nothing_is_left
    from plug_jax.data.pipeline.file_checks import check_source
    from plug_jax.data.sources.file_source import name_some

    source = text_files.source_of(args, files)
    check_source(source, "train", "the text")
    dataset = without_autotuning(source.get_dataset("train", shuffle=False))
    columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}"))
    console = Console(stderr=True)
    with progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("reading")
        started, shown, characters, number = time.monotonic(), 0.0, 0, 0
        for number, example in enumerate(dataset.as_numpy_iterator(), start=1):
            text = example["text"].decode()
            characters += len(text)
            seconds = time.monotonic() - started
            if seconds - shown > 0.2:
                shown = seconds
                speed = characters / seconds
                counts = f"{number:,} documents, {characters:,} characters, {speed:,.0f} per second"
                bar.update(task, description=f"reading: {counts}")
            yield text
    if not number:
        raise PlugError(
            f"There is no document in {name_some(files)}. {why_nothing_is_left(drop_counts())}"
        )
