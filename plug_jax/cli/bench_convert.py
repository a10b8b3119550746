"""`plug-jax bench convert`: its options, and the table of what it measures."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from plug_jax.errors import PlugError

_SIZES = {  # PLUG's layer sizes, with as many layers as fit into the memory of a small machine
    "hidden_size": 8192,
    "mlp_dim": 32768,
    "num_heads": 128,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "vocab_size": 21128,
    "max_positions": 2048,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `bench convert`."""
    for name, default in _SIZES.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help="(%(default)s)"
        )
    add = parser.add_argument
    add("--ranks", type=int, default=8, metavar="N", help="model-parallel ranks (%(default)s)")
    add("--dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    add(
        "--directory",
        metavar="DIR",
        help="working directory, removed afterwards (default: a temporary one)",
    )
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Measures and prints; status 1 if the bytes differ or memory exceeds the bound."""
    from plug_jax.benchmarks.convert import largest_tensor, measure
    from plug_jax.config import PlugConfig

    if args.hidden_size % args.num_heads:
        raise PlugError(f"--num_heads {args.num_heads} does not divide {args.hidden_size}")
    sizes = {name: getattr(args, name) for name in _SIZES}
    head_dim = args.hidden_size // args.num_heads
    config = PlugConfig(**sizes, head_dim=head_dim, vocab_multiple=1024)
    parent = Path(args.directory or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    # Layers of an encoder have 4 M^2 + 2 M F numbers, of a decoder 8 M^2 + 2 M F.
    needed = 3 * sum(
        layers * (factor * args.hidden_size**2 + 2 * args.hidden_size * args.mlp_dim) * 4
        for layers, factor in ((args.num_encoder_layers, 4), (args.num_decoder_layers, 8))
    ) // (1 if args.dtype == "float32" else 2) + 6 * largest_tensor(config, args.dtype)
    if shutil.disk_usage(parent).free < needed:
        raise PlugError(f"{parent} needs {needed / 1e9:.0f} GB free; name another --directory")
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        results = measure(
            config,
            Path(directory).resolve(),
            ranks=args.ranks,
            dtype=args.dtype,
            report=lambda line: print(line, file=sys.stderr),
        )
    print(json.dumps(results, indent=2)) if args.json else _print_table(results)
    passed = results["identical"] and all(
        results[command]["within_bound"] for command in ("import-plug", "export-plug")
    )
    return 0 if passed else 1


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{results['bytes'] / 1e9:.2f} GB of {results['dtype']} over {results['ranks']} ranks; "
        f"largest tensor {results['largest_tensor_bytes'] / 2**20:,.0f} MiB, Python itself "
        f"{results['python_peak_bytes'] / 2**20:,.0f} MiB; tensors "
        f"{'are bit-identical' if results['identical'] else 'DIFFER'} after import and export"
    )
    table = Table(
        "command", "seconds", "core seconds", "MB/s", "peak RSS, MiB", "above Python", "bound"
    )
    for command in ("import-plug", "export-plug"):
        figures = results[command]
        table.add_row(
            command,
            f"{figures['seconds']:.1f}",
            f"{figures['core_seconds']:.1f}",
            f"{figures['megabytes_per_second']:,.0f}",
            f"{figures['peak_bytes'] / 2**20:,.0f}",
            f"{figures['peak_bytes_above_python'] / 2**20:,.0f}",
            f"{results['bound_bytes'] / 2**20:,.0f}",
        )
    console.print(table)
