"""`plug-jax demo`: both stages of PLUG on real Chinese news, in minutes on a CPU."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

SUMMARY = "Train both stages of a small model on real Chinese news, and generate texts."
EXAMPLE = """example:
  plug-jax demo --output demo_output

After an interruption the same command resumes from the last checkpoint; --fresh starts over.
Any gin macro of demo/common.gin can be set: --gin.BATCH_SIZE=8.
"""
UNKNOWN_ARGUMENTS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax demo`."""
    parser.add_argument("--output", default="demo_output", help="directory to write (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="remove its contents first")


def run(args: argparse.Namespace) -> int:
    """Make the data, train both stages, generate, and write the report."""
    from plug_jax.cli import gin_config
    from plug_jax.cli.main import import_tensorflow
    from plug_jax.cli.train import configure

    import_tensorflow()
    from plug_jax.demo.pretraining import run_demo

    output = Path(args.output)
    if args.fresh:
        shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    run_demo(output, gin_config.overrides(args.unknown), configure)
    return 0
