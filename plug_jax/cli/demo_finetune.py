"""`plug-jax demo-finetune`: whether pre-training helps on real reviews, in minutes on a CPU."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from plug_jax.cli.sweep import interrupt_on_termination

SUMMARY = "Fine-tune the demo's encoder on reviews; compare with scratch training and n-grams."
EXAMPLE = """example:
  plug-jax demo-finetune --output demo_output

It takes the encoder of `plug-jax demo` in OUTPUT/stage1, and trains it first if there is none.
Everything else goes to OUTPUT/finetune. After an interruption the same command resumes; --fresh
starts over, but keeps the encoder. Any gin macro of demo/finetune.gin can be set: --gin.EPOCHS=2.
"""
UNKNOWN_ARGUMENTS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax demo-finetune`."""
    parser.add_argument(
        "--output", default="demo_output", help="the directory of `plug-jax demo` (%(default)s)"
    )
    parser.add_argument("--fresh", action="store_true", help="remove OUTPUT/finetune first")


def run(args: argparse.Namespace) -> int:
    """Run the remaining parts, and write the report."""
    from plug_jax.cli import gin_config
    from plug_jax.cli.finetuned_runs import load_run
    from plug_jax.cli.main import import_tensorflow
    from plug_jax.cli.train import configure

    overrides = gin_config.overrides(args.unknown)
    import_tensorflow()
    from plug_jax.demo.finetuning import compare
    from plug_jax.demo.pretraining import trained_stage1

    output = Path(args.output)
    directory = output / "finetune"
    if args.fresh:
        shutil.rmtree(directory, ignore_errors=True)
    stage1 = trained_stage1(output, configure)
    interrupt_on_termination()
    as_trained = argparse.Namespace(data_dir=None, gin_file=None)
    compare(stage1, directory, overrides, configure, lambda path: load_run(as_trained, str(path)))
    return 0
