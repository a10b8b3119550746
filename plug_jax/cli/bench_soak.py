"""`plug-jax bench soak`: the resource growth of a long run of a small model."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from plug_jax.errors import PlugError

_FILES = ("runs/structbert_pretrain.gin", "models/tiny.gin", "mesh/cpu1.gin")
_MODEL = {  # small, so that steps are fast: growth does not depend on it
    "hidden_size": 32,
    "num_encoder_layers": 1,
    "num_heads": 2,
    "head_dim": 16,
    "mlp_dim": 64,
    "max_positions": 64,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `bench soak`."""
    add = parser.add_argument
    add("--steps", type=int, default=5000, metavar="N", help="training steps (%(default)s)")
    add("--eval_every", type=int, default=50, metavar="N", help="steps (%(default)s)")
    add("--save_every", type=int, default=50, metavar="N", help="steps (%(default)s)")
    add("--log_every", type=int, default=1, metavar="N", help="steps (%(default)s)")
    add(
        "--directory",
        metavar="DIR",
        help="working directory, removed afterwards (default: a temporary one)",
    )
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Trains and prints the growth of resources per step, in the second half."""
    for name in ("steps", "eval_every", "save_every", "log_every"):
        if getattr(args, name) < 1:
            raise PlugError(f"--{name} must be at least 1, not {getattr(args, name)}")
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        results = _measure(args, Path(directory))
    print(json.dumps(results, indent=2)) if args.json else _print_table(results)
    return 0


def _measure(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    from plug_jax.benchmarks.random_text import write_text
    from plug_jax.benchmarks.soak import Watch
    from plug_jax.cli.train import configure
    from plug_jax.training.loop import train

    text = write_text(directory, characters=200, documents=4000, sentences=(8, 8), sentence=(8, 8))
    bindings = [
        f"MODEL_DIR = {str(directory / 'run')!r}",
        f"TRAIN_FILES = {str(text.train)!r}",
        f"VALIDATION_FILES = {str(text.validation)!r}",
        f"VOCABULARY = {str(text.vocabulary)!r}",
        f"VOCAB_SIZE = {text.pieces}",
        "TASK_FEATURE_LENGTHS = {'encoder': 64}",
        "MAX_LENGTH = 64",
        "BATCH_SIZE = 8",
        f"TRAIN_STEPS = {args.steps}",
        f"EVAL_EVERY = {args.eval_every}",
        f"CHECKPOINT_EVERY = {args.save_every}",
        f"LOG_EVERY = {args.log_every}",
        *(f"config.PlugConfig.{name} = {value}" for name, value in _MODEL.items()),
    ]
    config = configure(list(_FILES), bindings)
    watch = Watch(directory / "run")
    with watch.watching():
        train(config)
    return {"steps": args.steps, **watch.slopes()}


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    steps = results.pop("steps")
    table = Table("", "first", "last", "most", "per step", title=f"second half of {steps:,} steps")
    for name, of in results.items():
        unit = (1 << 20, "MB") if name.endswith("bytes") else (1, "")
        shown = [f"{of[key] / unit[0]:,.1f} {unit[1]}" for key in ("first", "last", "most")]
        step = f"{of['a_step'] / 1024:+.2f} kB" if unit[1] else f"{of['a_step']:+.4f}"
        table.add_row(name.removesuffix("_bytes"), *shown, step)
    Console().print(table)
