"""`plug-jax evaluate`: score a checkpoint on a split."""

from __future__ import annotations

import argparse
import math

from plug_jax import strict_json
from plug_jax.cli import gin_config

SUMMARY = "Score a checkpoint on a split of a task: every metric of its stage, as JSON."
EXAMPLE = """examples:
  plug-jax evaluate --gin_file=runs/evaluate.gin --gin_file=objectives/palm.gin \\
    --gin_file=mesh/cpu1.gin --gin.CHECKPOINT="'run2'" --gin.TEST_FILES="'test.txt'" \\
    --gin.MIXTURE_OR_TASK_NAME="@pretrain.palm_text()" \\
    --gin.TASK_FEATURE_LENGTHS="{'encoder': 1024, 'decoder': 1024}"
  plug-jax evaluate --gin_file=runs/evaluate_finetuned.gin --gin_file=mesh/cpu1.gin \\
    --gin.CHECKPOINT="'finetuned/tnews'" --gin.CLUE_DIR="'CLUE'"
"""
UNKNOWN_ARGUMENTS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax evaluate`."""
    gin_config.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the metrics as one JSON object; those that are not finite are null."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    import jax

    from plug_jax.cli.processes import joined
    from plug_jax.inference.model import NoNumbersError

    with joined():
        metrics = evaluate(args.gin_file, gin_config.overrides(args.unknown))
        if jax.process_index() == 0:
            print(strict_json.dumps(metrics, indent=2))
        if not all(map(math.isfinite, metrics.values())):
            raise NoNumbersError
    return 0


def evaluate(files: list[str], bindings: list[str]) -> dict[str, float]:
    """Evaluate with gin files and bindings; returns the metrics by name."""
    from plug_jax.training import evaluate as evaluation

    config = gin_config.configured(evaluation.EvaluateConfig, files=files, bindings=bindings)
    return evaluation.evaluate_checkpoint(config)
