"""A run up to one of its steps, again: from its newest checkpoint before that, and only reading."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from plug_jax.data import pipeline
from plug_jax.downstream.record_task import check_task, task_description
from plug_jax.errors import PlugError
from plug_jax.objectives.composition import features_of
from plug_jax.techniques.child_tuning import ChildTuningD
from plug_jax.training.checkpoint_format import PlainPath
from plug_jax.training.checkpointing import Checkpoints
from plug_jax.training.compilation import use_compilation_cache
from plug_jax.training.feed import Feed
from plug_jax.training.initial_checkpoint import first_state
from plug_jax.training.module_numbers import StepNumbers, numbers_of_step
from plug_jax.training.program import TrainConfig, train_program
from plug_jax.training.writers import read_metrics


@dataclasses.dataclass(frozen=True)
class Replayed:
    """A step of a run, and what was in it."""

    step: int
    batch: Mapping[str, np.ndarray]  # [B, row length] of each feature, as the task gives it
    numbers: StepNumbers


def replay(config: TrainConfig, step: int, *, say: Callable[[str], None]) -> Replayed:
    """Do the steps before `step` again, and look into it; MODEL_DIR is left as it is.

    Raises:
        PlugError: the run has no such step, or its way there cannot be gone again.
    """
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
        model_dir = PlainPath.of(config.model_dir)
        description = task_description(task, config.objectives)
        checkpoints = Checkpoints(
            model_dir,
            config.checkpoint,
            model=config.model,
            vocabulary=vocabulary,
            task=description,
            lora=config.techniques.lora,
        )
        start = checkpoints.newest_before(step)
        _check_way(config, start, step)
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


def _check_way(config: TrainConfig, start: int, step: int) -> None:
    """PlugError where the run did more between the two than steps over batches."""
    for record in read_metrics(config.model_dir):
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
