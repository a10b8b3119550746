"""Needs t5x. A trainer that prepares the whole batch before the loss."""

from __future__ import annotations

import functools
from typing import Any

import jax
from t5x import trainer as t5x_trainer

from plug_jax.objectives.forward import Batch
from plug_jax.objectives.objective import Progress


class T5xPlugTrainer(t5x_trainer.Trainer):
    """For `train.trainer_cls`: t5x's trainer, with `T5xPlugModel.prepared` in each step."""

    def __init__(self, *args: Any, total_steps: int, **kwargs: Any) -> None:
        """`total_steps` is the length of the run, for objectives that end before it."""
        super().__init__(*args, **kwargs)
        self._total_steps = total_steps

    def _get_step_rng(self, step: Any) -> jax.Array:
        """The dropout key."""
        if self._model.seed is None:
            return super()._get_step_rng(step)
        return jax.random.fold_in(jax.random.key(self._model.seed), step)

    @functools.cached_property
    def _partitioned_train_step(self) -> Any:
        def train_step(train_state: Any, batch: Batch) -> Any:
            step = train_state.step
            return t5x_trainer.train_with_lr(
                train_state,
                self._model.prepared(batch, Progress(step, self._total_steps)),
                learning_rate=self._learning_rate_fn(step),
                dropout_rng=self._get_step_rng(step),
                model=self._model,
                num_microbatches=self._num_microbatches,
                weight_metrics_computer=self._weight_metrics_computer,
                data_partition_spec=self._partitioner.data_partition_spec,
            )

        rows = self._partitioner.data_partition_spec
        return self._partitioner.partition(
            train_step,
            in_axis_resources=(self._train_state_axes, rows),
            out_axis_resources=(self._train_state_axes, None),
            donate_argnums=(0,),
        )
