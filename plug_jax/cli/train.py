"""`plug-jax train`: pre-train a stage from gin files."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from plug_jax.cli import gin_config

if TYPE_CHECKING:
    from plug_jax.training.program import TrainConfig

SUMMARY = "Pre-train the encoder (stage 1) or encoder and decoder (stage 2) from gin files."
EXAMPLE = """example:
  plug-jax train --gin_file=runs/structbert_pretrain.gin --gin_file=models/tiny.gin \\
    --gin_file=mesh/cpu1.gin --gin.MODEL_DIR="'run1'" --gin.TRAIN_STEPS=1000 \\
    --gin.TRAIN_FILES="'news/*.txt'" --gin.VALIDATION_FILES="'held_out.txt'" \\
    --gin.VOCABULARY="'vocabulary'" --gin.VOCAB_SIZE=8000 --gin.BATCH_SIZE=16

The same command again continues from the newest checkpoint in MODEL_DIR. On a TPU slice or a
cluster start it on every host: docs/tpu.md.
"""
UNKNOWN_ARGUMENTS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax train`."""
    gin_config.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train to the end."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.cli.processes import joined
    from plug_jax.training.loop import train

    with joined():
        train(configure(args.gin_file, gin_config.overrides(args.unknown)))
    return 0


def configure(files: list[str], bindings: list[str]) -> TrainConfig:
    """The run that gin files and bindings describe; what was read goes to MODEL_DIR/config.gin."""
    import jax
    from etils import epath

    from plug_jax.training.program import TrainConfig

    config = gin_config.configured(TrainConfig, files=files, bindings=bindings)
    if jax.process_index() == 0:
        model_dir = epath.Path(config.model_dir)
        model_dir.mkdir(parents=True, exist_ok=True)
        (model_dir / "config.gin").write_text(gin_config.operative_config())
    return config
