"""`plug-jax infer`: batch inference over input rows, on any number of devices and hosts."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from plug_jax.cli import gin_config, jobs
from plug_jax.field_types import check_fields

if TYPE_CHECKING:
    from plug_jax.inference.batch_generation import Generation
    from plug_jax.inference.jobs import Job, Work

SUMMARY = "Generate texts, or fine-tuned predictions, for every row; resumable, on any mesh."
EXAMPLE = """examples:
  plug-jax infer --gin_file=runs/infer.gin --gin_file=mesh/cpu1.gin --gin.CHECKPOINT="'run2'" \\
    --gin.INPUT="'prompts/*.jsonl'" --gin.OUTPUT="'texts.jsonl'" --gin.NUM_SAMPLES=4
  plug-jax infer --gin_file=runs/infer.gin --gin_file=mesh/cpu1.gin --gin.CHECKPOINT="'run2'" \\
    --gin.MIXTURE_OR_TASK_NAME="@pretrain.palm_text()" --gin.TEST_FILES="'test.txt'" \\
    --gin.OUTPUT="'texts.jsonl'"
  plug-jax infer --gin_file=runs/infer.gin --gin_file=mesh/cpu1.gin \\
    --gin.CHECKPOINT="'finetuned/tnews'" --gin.INPUT="'rows.jsonl'" --gin.OUTPUT="'labels.jsonl'"

A fine-tuned checkpoint gives labels, choices, answers or entities. The same command again resumes
where it was stopped. Status 3: all rows are written, some of them
with an `error` in place of an answer. docs/inference.md says more.
"""
UNKNOWN_ARGUMENTS = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferConfig:
    """The settings of runs/infer.gin."""

    job: Job
    work: Generation

    def __post_init__(self) -> None:
        from plug_jax.inference.batch_generation import Generation
        from plug_jax.inference.jobs import Job

        check_fields(self, {"Job": Job, "Generation": Generation})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax infer`."""
    gin_config.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write OUTPUT."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.cli.processes import joined
    from plug_jax.inference.prediction import Prediction

    with joined():
        files, bindings = args.gin_file, gin_config.overrides(args.unknown)
        if task := jobs.fine_tuned_for(files, bindings):
            return infer(jobs.prediction_job(task, files, bindings), Prediction())
        config = gin_config.configured(InferConfig, files=files, bindings=bindings)
        return infer(config.job, config.work)


def infer(job: Job, work: Work[Any, Any]) -> int:
    """Do the job, and report the outcome on stderr; returns the exit status."""
    import jax

    from plug_jax.inference.jobs import ERROR, run

    rows = errors = 0
    first = None
    for row in run(job, work):
        rows += 1
        if ERROR in row:
            errors += 1
            first = first or row[ERROR]
    if jax.process_index() == 0:
        print(f"{job.output} has {rows:,} rows, {errors:,} with an error", file=sys.stderr)
        jobs.say_first_error(first)
    return jobs.status(errors)
