"""`plug-jax bench int8`: its options, and the tables of what it measures."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from plug_jax.errors import PlugError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `bench int8`."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a run's MODEL_DIR, or one step")
    add(
        "--input",
        nargs="+",
        metavar="FILE",
        help="text files, one document per line (default: the demo's held-out articles)",
    )
    add("--texts", type=int, default=64, metavar="N", help="documents to read (%(default)s)")
    add(
        "--prompt",
        type=int,
        default=62,
        metavar="N",
        help="characters of each that are the prompt (%(default)s)",
    )
    add(
        "--target",
        type=int,
        default=64,
        metavar="N",
        help="tokens after it that are scored (%(default)s)",
    )
    add(
        "--batches",
        nargs="+",
        type=int,
        default=[1, 8],
        metavar="B",
        help="batch sizes to time (1 8)",
    )
    add(
        "--new_tokens",
        type=int,
        default=128,
        metavar="N",
        help="new tokens per row to time (%(default)s)",
    )
    add("--passes", type=int, default=3, metavar="N", help="timed passes (%(default)s)")
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Measures and prints a table, or JSON."""
    for name in ("texts", "prompt", "target", "new_tokens", "passes"):
        if getattr(args, name) < 1:
            raise PlugError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if min(args.batches) < 1:
        raise PlugError(f"--batches must be at least 1, not {min(args.batches)}")
    with tempfile.TemporaryDirectory() as directory:
        results = _measure(args, directory)
    print(json.dumps(results, indent=2)) if args.json else _print_table(results)
    return 0


def _measure(args: argparse.Namespace, directory: str) -> dict[str, Any]:
    from plug_jax.benchmarks.int8 import continuations, measure
    from plug_jax.checkpoints.saved_model import vocabulary_path
    from plug_jax.data.sources.demo_corpus import write_corpus
    from plug_jax.data.sources.text_source import TextSource
    from plug_jax.data.vocabularies.vocabulary import load_vocabulary

    source = (
        TextSource(train=args.input, file_format="lines")
        if args.input
        else TextSource(
            train=[str(write_corpus(Path(directory)).validation)], file_format="paragraphs"
        )
    )
    pairs = continuations(
        source,
        load_vocabulary(vocabulary_path(args.checkpoint)),
        prompt_characters=args.prompt,
        target_tokens=args.target,
        texts=args.texts,
    )
    return measure(
        args.checkpoint,
        pairs,
        batches=args.batches,
        new_tokens=args.new_tokens,
        passes=args.passes,
        report=lambda line: print(line, file=sys.stderr),
    )


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table("", "float32", "int8")
    for title, name, form in (
        ("MB of parameters", "parameter_bytes", lambda size: f"{size / 1e6:,.1f}"),
        ("perplexity", "perplexity", lambda value: f"{value:,.3f}"),
    ):
        table.add_row(title, *(form(results[name][way]) for way in ("float32", "int8")))
    for speed in results["speed"]:
        rates = (f"{speed[way]['tokens_per_second']:,.0f}" for way in ("float32", "int8"))
        table.add_row(f"tokens/s, batch {speed['batch']}", *rates)
    console.print(table)
    difference, greedy = results["log_likelihood_difference"], results["greedy"]
    console.print(
        f"{results['texts']} documents, {results['target_tokens']} tokens each: log-likelihoods "
        f"per token differ by {difference['mean']:.4f} on average, {difference['largest']:.4f} at "
        f"most; {results['likeliest_token_agreement']:.2%} of the most likely tokens agree; "
        f"{greedy['same_texts']:.0%} of the greedy texts are identical, and "
        f"{greedy['tokens_before_first_difference']:.0%} of their tokens come before the first "
        "difference"
    )
