"""`plug-jax bench decode`: its options, and the tables of what it measures."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plug_jax.cpu_cores import cores
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.benchmarks.decode import DecodeSpeed

_SIZES = ["512x6", "768x6"]
_BATCHES = [1, 8]
_TOP_K = 20  # as the released PLUG samples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `bench decode`."""
    add = parser.add_argument
    add(
        "sizes",
        nargs="*",
        default=_SIZES,
        metavar="HIDDENxLAYERS",
        help=f"random models to measure ({' '.join(_SIZES)}); as many encoder as decoder layers",
    )
    add("--batches", nargs="+", type=int, default=_BATCHES, metavar="B", help="batch sizes (1 8)")
    add("--new_tokens", type=int, default=256, metavar="N", help="per row (%(default)s)")
    add("--passes", type=int, default=3, metavar="N", help="timed passes (%(default)s)")
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Measures and prints tables, or JSON."""
    for name in ("new_tokens", "passes"):
        if getattr(args, name) < 1:
            raise PlugError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if min(args.batches) < 1:
        raise PlugError(f"--batches must be at least 1, not {min(args.batches)}")
    results = _measure(args)
    print(json.dumps(results, indent=2)) if args.json else _print_table(results)
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    from plug_jax.benchmarks import decode
    from plug_jax.data.vocabularies.vocabulary import default_vocabulary

    vocabulary = default_vocabulary()
    configs = [
        decode.config_of(
            size, vocab_size=vocabulary.vocab_size, max_positions=max(512, args.new_tokens)
        )
        for size in args.sizes
    ]
    runs = []
    for size, config in zip(args.sizes, configs, strict=True):
        model = decode.random_model(config, vocabulary)
        for batch in args.batches:
            for top_k in (None, _TOP_K):
                draw = "greedy" if top_k is None else f"top-k {top_k}"
                what = f"{size}, batch {batch}, {draw}"
                speeds = decode.measure(
                    model,
                    batch=batch,
                    new_tokens=args.new_tokens,
                    top_k=top_k,
                    passes=args.passes,
                    report=functools.partial(_report, what),
                )
                runs.append({"size": size, "batch": batch, "draw": draw} | _figures(speeds))
    return {
        "new_tokens": args.new_tokens,
        "passes": args.passes,
        "cores": cores(),
        "hugging_face": "measured" if decode.pytorch_is_installed() else decode.PYTORCH_MISSING,
        "runs": runs,
    }


def _figures(speeds: Sequence[DecodeSpeed]) -> dict[str, Any]:
    """Figures of each implementation, and the cache's speed-up: by wall time and by CPU time."""
    figures = {speed.name: speed.to_json() for speed in speeds}
    ratios = {
        f"times_{name}{by}": figures["cached"][rate] / figures[name][rate]
        for name in figures
        if name != "cached"
        for by, rate in (("", "tokens_per_second"), ("_per_core", "tokens_per_core_second"))
    }
    return figures | ratios


def _report(what: str, line: str) -> None:
    print(f"{what}: {line}", file=sys.stderr)


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{results['new_tokens']} new tokens per row, float32, {results['cores']} cores; tokens/s, "
        f"medians of {results['passes']} passes (in brackets: our speed-up, by wall time and by "
        "CPU time); first call: seconds, with compilation"
    )
    table = Table("size", "batch", "draw", "ours", "no cache", "Hugging Face", "first call")
    for run in results["runs"]:
        table.add_row(
            run["size"],
            str(run["batch"]),
            run["draw"],
            f"{run['cached']['tokens_per_second']:,.1f}",
            *(_other(run, name) for name in ("uncached", "hugging_face")),
            f"{run['cached']['first_call_seconds']:.1f}",
        )
    console.print(table)
    if results["hugging_face"] != "measured":
        console.print(f"Hugging Face: {results['hugging_face']}", markup=False)


def _other(run: dict[str, Any], name: str) -> str:
    if name not in run:
        return ""
    ratios = f"{run[f'times_{name}']:.2f}, {run[f'times_{name}_per_core']:.2f}"
    return f"{run[name]['tokens_per_second']:,.1f} ({ratios})"
