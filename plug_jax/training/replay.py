"""Replays a run up to a step from the newest checkpoint before it, without writing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from plug_jax.checkpoints.format import CHECKPOINTS, PlainPath
from plug_jax.compilation import use_compilation_cache
from plug_jax.data.pipeline import pipeline
from plug_jax.downstream.record_task import check_task, task_description
from plug_jax.errors import PlugError
from plug_jax.objectives.composition import features_of
from plug_jax.techniques.child_tuning import ChildTuningD
from plug_jax.training.checkpointing import Checkpoints
from plug_jax.training.feed import Feed
from plug_jax.training.initial_checkpoint import first_state
from plug_jax.training.module_numbers import StepNumbers, numbers_of_step
from plug_jax.training.program import TrainConfig, train_program
from plug_jax.training.writers import read_metrics


@dataclasses.dataclass(frozen=True)
class Replayed:
    """A step of a run, with its state and batch."""

    step: int
    batch: Mapping[str, np.ndarray]  # [B, row length] of each feature, unprepared
    numbers: StepNumbers


def replay(config: TrainConfig, step: int, *, say: Callable[[str], None]) -> Replayed:
    """Repeat the steps before `step`, and return its inputs; MODEL_DIR is not changed.

    Raises:
        PlugError: the run has no such step, or the steps before it cannot be repeated.
    """
    model_dir = PlainPath.of(config.model_dir)
    if not (model_dir / CHECKPOINTS).is_dir():
        raise PlugError(f"MODEL_DIR {model_dir} has no run to look at: it has no {CHECKPOINTS}")
    use_compilation_cache(config.compilation_cache_dir)
    task = config.train_data.mixture_or_task_name
    vocabulary = pipeline.vocabulary_of(task, module=config.train_data.module)
    check_task(task, config.objectives)
    config = config.in_steps()
    if not 1 <= step <= config.steps:
        raise PlugError(f"the run has the steps 1 to {config.steps:,}, not {step:,}")
    with config.partitioner.context():
        program = train_program(config)
        feed = Feed(
            config.train_data,
            features_of(config.objectives),
            model=config.model,
            sharding=config.partitioner.batch_sharding,
        )
        description = task_description(task, config.objectives)
        checkpoints = Checkpoints(
            model_dir,
            config.checkpoint,
            model=config.model,
            vocabulary=vocabulary,
            task=description,
            lora=config.techniques.lora,
            create=False,
        )
        start = checkpoints.newest_before(step)
        _check_way(config, model_dir, start, step)
        if start:
            state, _ = checkpoints.restore(program.layout, feed, step=start)
        else:
            state, _ = first_state(config, program, vocabulary, description)
        checkpoints.close()
        say(f"from the {f'checkpoint of step {start}' if start else 'beginning'} to step {step}")
        for _ in range(start + 1, step):
            state, _ = program.train_step(state, next(feed))
        batch = next(feed)
        return Replayed(step, jax.device_get(batch), numbers_of_step(config, program, state, batch))


def _check_way(config: TrainConfig, model_dir: PlainPath, start: int, step: int) -> None:
    """PlugError if the run did more between these steps than train on batches."""
    for record in read_metrics(model_dir):
        if record["split"] == "rollback" and start < record["step"] < step:
            raise PlugError(
                f"after step {record['step']} the run went back to an earlier checkpoint, and none "
                f"is left from between that and step {step}: look at a step up to "
                f"{record['step']}, or one after the newest checkpoint"
            )
    if not start and isinstance(config.techniques.child_tuning, ChildTuningD):
        raise PlugError(
            f"no checkpoint is left from before step {step}, and with ChildTuningD a run's first "
            "steps cannot be done again without its mask"
        )
