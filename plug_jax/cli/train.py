"""`plug-jax train`: pre-train a stage, or fine-tune, from gin files."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from typing import TYPE_CHECKING

from plug_jax.cli import gin_config
from plug_jax.cli.supervise import supervise
from plug_jax.errors import PlugError
from plug_jax.standard_error import flush_output

if TYPE_CHECKING:
    from plug_jax.training.program import TrainConfig

SUMMARY = "Pre-train the encoder (stage 1) or encoder and decoder (stage 2), or fine-tune them."
EXAMPLE = """example:
  plug-jax train --gin_file=runs/structbert_pretrain.gin --gin_file=models/tiny.gin \\
    --gin_file=mesh/cpu1.gin --gin.MODEL_DIR="'run1'" --gin.TRAIN_STEPS=1000 \\
    --gin.TRAIN_FILES="'news/*.txt'" --gin.VALIDATION_FILES="'held_out.txt'" \\
    --gin.VOCABULARY="'vocabulary'" --gin.VOCAB_SIZE=8000 --gin.BATCH_SIZE=16

  plug-jax train --gin_file=runs/finetune.gin --gin_file=clue/tnews.gin --gin_file=mesh/cpu1.gin \\
    --gin.CLUE_DIR="'CLUE'" --gin.INITIAL_CHECKPOINT="'run1'" --gin.MODEL_DIR="'tnews'"

The same command again continues from the newest checkpoint in MODEL_DIR. On a TPU slice or a
cluster start it on every host: docs/tpu.md.
"""
UNKNOWN_ARGUMENTS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax train`."""
    gin_config.add_arguments(parser)
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="train in a child process, and start it again up to N times when it is killed, or a "
        "host was lost or hung: docs/reliability.md (default: 0)",
    )


def run(args: argparse.Namespace) -> int:
    """Train to the end."""
    if args.restarts:
        return supervise(_unsupervised(args), args.restarts)
    from plug_jax.cli.main import import_tensorflow, report

    import_tensorflow()
    from plug_jax.checkpoints.saving import SaveHangs
    from plug_jax.cli.processes import joined
    from plug_jax.training.loop import train

    try:
        with joined():
            train(configure(args.gin_file, gin_config.overrides(args.unknown)))
    except SaveHangs as error:
        status = report(error)
        flush_output()
        os._exit(status)  # a thread that waits for the file system would keep the process alive
    return 0


def _unsupervised(args: argparse.Namespace) -> list[str]:
    """The same command without --restarts."""
    if args.restarts < 0:
        raise PlugError(f"--restarts must be 0 or more, got {args.restarts}")
    files = (f"--gin_file={file}" for file in args.gin_file)
    return [sys.executable, "-m", "plug_jax", "train", *files, *args.unknown]


def configure(files: list[str], bindings: list[str]) -> TrainConfig:
    """The run that gin files and bindings describe."""
    from plug_jax.training.program import TrainConfig

    config = gin_config.configured(TrainConfig, files=files, bindings=bindings)
    return dataclasses.replace(config, config_gin=gin_config.operative_config())
