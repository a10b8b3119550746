"""`plug-jax bench train`: its options, and the table of what it measures."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from plug_jax.cli import gin_config
from plug_jax.cpu_cores import cores
from plug_jax.errors import PlugError

_FILES = ["runs/bench_train.gin"]
_TITLES = {
    "plug_jax": "ours",
    "torch": "PyTorch, the same rows",
    "torch_padded": "PyTorch, one example per row",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `bench train`."""
    add = parser.add_argument
    gin_config.add_arguments(parser, required=False)
    add("--steps", type=int, default=5, metavar="N", help="steps per round (%(default)s)")
    add("--rounds", type=int, default=5, metavar="N", help="timed rounds (%(default)s)")
    add(
        "--against",
        choices=("torch",),
        help="measure the same training in PyTorch too, interleaved",
    )
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Measures and prints a table, or JSON."""
    for name in ("steps", "rounds"):
        if getattr(args, name) < 1:
            raise PlugError(f"--{name} must be at least 1, not {getattr(args, name)}")
    with tempfile.TemporaryDirectory() as directory:
        results = _measure(args, Path(directory))
    print(json.dumps(results, indent=2)) if args.json else _print_table(results)
    return 0


def _measure(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    from plug_jax.benchmarks.train import measure
    from plug_jax.training.program import TrainConfig

    files, bindings = args.gin_file or _FILES, gin_config.overrides(args.unknown)
    config = gin_config.configured(
        TrainConfig,
        files=files,
        bindings=bindings,
        replacing=gin_config.STEP_ALONE | _text(directory, files, bindings),
    )
    ways = measure(
        config,
        steps=args.steps,
        rounds=args.rounds,
        against_torch=args.against == "torch",
        report=lambda line: print(line, file=sys.stderr),
    )
    return {
        "batch_size": config.train_data.batch_size,
        "row_lengths": dict(config.train_data.feature_lengths),
        "model": config.model.to_dict(),
        "steps": args.steps,
        "rounds": args.rounds,
        "cores": cores(),
        "ways": ways,
    }


def _text(directory: Path, files: list[str], bindings: list[str]) -> dict[str, str]:
    """Text of random characters, as macros, for a run that has no data."""
    from plug_jax.benchmarks.random_text import MOST_CHARACTERS, write_text
    from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES

    def macro(name: str) -> Any:
        return gin_config.macro(name, files=files, bindings=bindings)

    pieces = macro("VOCAB_SIZE")
    if macro("TRAIN_FILES") or macro("MIXTURE_OR_TASK_NAME") or not isinstance(pieces, int):
        return {}
    text = write_text(
        directory,
        characters=max(1, min(pieces - len(SPECIAL_PIECES) - 1, MOST_CHARACTERS)),
        documents=1000,
        sentences=(4, 60),
        sentence=(5, 40),
    )
    macros = {
        "TRAIN_FILES": text.train,
        "VALIDATION_FILES": text.validation,
        "VOCABULARY": text.vocabulary,
    }
    return {name: repr(str(path)) for name, path in macros.items()}


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    model, ways = results["model"], results["ways"]
    rows = " + ".join(f"{length:,}" for length in results["row_lengths"].values())
    ours = ways["plug_jax"]
    console.print(
        f"{model['num_encoder_layers']} + {model['num_decoder_layers']} layers of "
        f"{model['hidden_size']:,}, {model['dtype']}; {results['batch_size']} rows of {rows}; "
        f"{results['cores']} cores; medians of {results['rounds']} rounds of {results['steps']} "
        "steps"
    )
    table = Table("", "steps/s", "tokens/s", "real tokens/s", "model GFLOP/s", "ours is")
    for name, way in ways.items():
        by = "real tokens" if name == "torch_padded" else "tokens"
        table.add_row(
            _TITLES[name],
            f"{way['steps_per_second']:,.3f}",
            f"{way['tokens_per_second']:,.0f}",
            f"{way['real_tokens_per_second']:,.0f}",
            f"{way['model_flops_per_second'] / 1e9:,.1f}",
            _times(way["times_quartiles"], by) if "times" in way else "",
        )
    console.print(table)
    if ours["mfu"] is not None:
        console.print(f"{ours['mfu']:.1%} of the devices' peak (MFU)")
    console.print(
        f"compiled in {ours['compile_seconds']:.1f} s, after {ours['trace_seconds']:.1f} s of "
        f"tracing; {ours['device_bytes'] / 1e6:,.0f} MB of device memory"
    )


def _times(quartiles: list[float], by: str) -> str:
    low, median, high = (f"{value:.2f}" for value in quartiles)
    return f"{median} x in {by} ({low} to {high})"
