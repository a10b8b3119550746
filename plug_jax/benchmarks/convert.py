"""`plug-jax bench convert`: memory and speed of the converter on a checkpoint of any size."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plug_jax.config import PlugConfig
from plug_jax.convert.arrange import DTYPES
from plug_jax.convert.name_map import PLUG, Leaf, leaves_of
from plug_jax.convert.tensor_files import create_torch_file

_ALLOWANCE = 2 << 30  # bytes, beside twice the largest tensor, that a conversion may take
# Starts Python and imports what a conversion does.
_NOTHING = (
    "from plug_jax.cli.main import import_tensorflow; import_tensorflow(); import torch;"
    "import plug_jax.convert.from_torch, plug_jax.convert.to_torch"
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One command, run in a process of its own."""

    seconds: float  # start of Python and imports included
    core_seconds: float  # of all cores together
    peak_bytes: int  # of resident memory


def write_synthetic(
    directory: Path, config: PlugConfig, *, ranks: int, dtype: str, seed: int
) -> int:
    """A checkpoint in the released layout of random numbers; its size in bytes.

    Replicated tensors agree between ranks; each rank's file takes one tensor of memory to write.
    """
    directory.mkdir(parents=True)
    leaves, rows = leaves_of(config, PLUG), config.padded_vocab_size
    shapes = {
        name: (leaf.torch_shape(ranks=ranks, rows=rows), DTYPES[dtype])
        for leaf in leaves
        for i in leaf.layers
        for name in leaf.names(i)
    }
    for rank in range(ranks):
        path = directory / f"mp_rank_{rank:02d}_model_states.pt"
        writer = create_torch_file(
            path,
            shapes,
            tied=PLUG.tied,
            wrap=lambda module: {"module": dict(module), "mp_world_size": ranks},
        )
        for number, (leaf, name) in enumerate(_names(leaves)):
            part = rank if leaf.entry.split is not None else 0
            shape, kind = shapes[name]
            writer.put(name, _random(shape, kind, [seed, number, part]))
        writer.close()
    sizes = {"num_attention_heads": config.num_heads, "vocab_size": config.vocab_size}
    (directory / "config.json").write_text(json.dumps(sizes), "utf-8")
    return sum(path.stat().st_size for path in directory.iterdir())


def largest_tensor(config: PlugConfig, dtype: str) -> int:
    """Bytes of the largest tensor, merged over ranks: of one layer, where there are layers."""
    leaves = leaves_of(config, PLUG)
    return max(math.prod(leaf.layer_shape) for leaf in leaves) * DTYPES[dtype].itemsize


def measure(
    config: PlugConfig,
    directory: Path,
    *,
    ranks: int,
    dtype: str,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Write a synthetic checkpoint, import it, export it again, and compare the bytes.

    The page cache is as it comes: warm where memory suffices. `directory` needs room for three
    times the model.
    """
    report("writing a synthetic checkpoint")
    size = write_synthetic(directory / "input", config, ranks=ranks, dtype=dtype, seed=0)
    report("measuring Python's base")
    base = run_python(["-c", _NOTHING])
    commands = {
        "import-plug": ["--input", "input", "--output", "checkpoint"],
        "export-plug": ["--checkpoint", "checkpoint", "--output", "output"],
    }
    largest = largest_tensor(config, dtype)
    results: dict[str, Any] = {
        "bytes": size,
        "ranks": ranks,
        "dtype": dtype,
        "largest_tensor_bytes": largest,
        "python_peak_bytes": base.peak_bytes,
        "python_seconds": base.seconds,
        "python_core_seconds": base.core_seconds,
        "bound_bytes": 2 * largest + _ALLOWANCE,  # above Python's
    }
    for command, options in commands.items():
        report(command)
        measured = run_python(["-m", "plug_jax", "convert", command, *options], directory)
        above = measured.peak_bytes - base.peak_bytes
        results[command] = {
            "seconds": measured.seconds,
            "core_seconds": measured.core_seconds,
            "megabytes_per_second": size / 1e6 / measured.seconds,
            "peak_bytes": measured.peak_bytes,
            "peak_bytes_above_python": above,
            "within_bound": above <= results["bound_bytes"],
        }
    report("comparing")
    results["identical"] = _same_tensors(directory / "input", directory / "output" / "1")
    return results


def run_python(arguments: Sequence[str], directory: Path | None = None) -> Measured:
    """Run this Python with the arguments and wait; its error becomes ours."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=directory,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(arguments))
    core_seconds = usage.ru_utime + usage.ru_stime
    return Measured(time.monotonic() - started, core_seconds, usage.ru_maxrss * 1024)


def _names(leaves: Sequence[Leaf]) -> list[tuple[Leaf, str]]:
    return [(leaf, name) for leaf in leaves for i in leaf.layers for name in leaf.names(i)]


def _random(shape: tuple[int, ...], dtype: np.dtype, seed: Sequence[int]) -> np.ndarray:
    """Normal numbers, of which a large tensor repeats a million: they are there to be moved."""
    size = math.prod(shape)
    numbers = np.random.default_rng(seed).standard_normal(min(size, 1_000_003), np.float32)
    return np.resize((0.02 * numbers).astype(dtype), size).reshape(shape)


def _same_tensors(one: Path, other: Path) -> bool:
    """Whether all ranks hold the same bits under the same names."""
    from plug_jax.convert.sources import open_plug

    ranks = zip(open_plug(one).ranks, open_plug(other).ranks, strict=True)
    return all(
        a.keys() == b.keys()
        and all(a[name].read().tobytes() == b[name].read().tobytes() for name in a)
        for a, b in ranks
    )
