"""Scoring a whole split."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from plug_jax import partitioning
from plug_jax.config import PlugConfig
from plug_jax.data import pipeline
from plug_jax.data.pipeline import DatasetConfig
from plug_jax.data.vocabularies import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner
from plug_jax.training import metrics as metrics_lib
from plug_jax.training.checkpointing import open_checkpoint
from plug_jax.training.state import abstract_params
from plug_jax.training.step import StepConfig, make_eval_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `plug-jax evaluate` builds from its gin files."""

    checkpoint: str  # a MODEL_DIR, or one step in it
    data: DatasetConfig
    partitioner: Partitioner
    step: StepConfig


def evaluate_checkpoint(config: EvaluateConfig) -> dict[str, float]:
    """Metrics by name of a stored model on a whole split."""
    saved = open_checkpoint(config.checkpoint)
    task = config.data.mixture_or_task_name
    vocabulary = pipeline.vocabulary_of(task, module=config.data.module)
    check_vocabulary(saved.config, vocabulary, task)
    evaluator = Evaluator(saved.config, config.data, config.partitioner, config.step)
    boxed = abstract_params(PlugModel(saved.config))
    return evaluator(saved.params(config.partitioner.param_shardings(boxed)))


class Evaluator:
    """Scores parameters on every example of a split, with one compiled step."""

    def __init__(
        self, model: PlugConfig, data: DatasetConfig, partitioner: Partitioner, step: StepConfig
    ) -> None:
        """`data.num_epochs` should be 1: each example once, the same corruption every time."""
        partitioner.check_batch(data.batch_size)
        plug = PlugModel(model)
        self._model, self._data, self._partitioner = model, data, partitioner
        self._step = jax.jit(
            make_eval_step(plug, step),
            in_shardings=(
                partitioner.param_shardings(abstract_params(plug)),
                partitioner.batch_sharding,
            ),
            out_shardings=partitioner.replicated,
        )

    def __call__(self, params: Any) -> dict[str, float]:
        """Metrics by name, each a weighted mean over the split."""
        batches = open_batches(self._data)
        sharding = self._partitioner.batch_sharding
        scores = []
        with self._partitioner.context():
            for batch in batches:
                check_batch(batch, self._model)
                scores.append(self._step(params, partitioning.put_batch(batch, sharding)))
                if len(scores) > 2:  # the host prepares the next batch, but does not run away
                    jax.block_until_ready(scores[-3])
        values = metrics_lib.summarize(metrics_lib.add(scores))
        values.pop("tokens")
        return values


def open_batches(data: DatasetConfig) -> pipeline.BatchIterator:
    """This process's share of the batches."""
    return pipeline.make_iterator(
        data, process_index=jax.process_index(), process_count=jax.process_count()
    )


def check_vocabulary(model: PlugConfig, vocabulary: PlugVocabulary, task: str) -> None:
    """PlugError unless the model has exactly one embedding for every piece."""
    if vocabulary.vocab_size != model.vocab_size:
        raise PlugError(
            f"the vocabulary of {task!r} has {vocabulary.vocab_size} pieces, but PlugConfig."
            f"vocab_size is {model.vocab_size}; set it to {vocabulary.vocab_size}, or use the "
            "vocabulary that the model was made for"
        )


def check_batch(batch: dict[str, np.ndarray], model: PlugConfig) -> None:
    """PlugError for a position beyond the model's table: XLA would silently clamp it."""
    for name in ("encoder_positions", "decoder_positions"):
        if name in batch and (last := int(batch[name].max())) >= model.max_positions:
            raise PlugError(
                f"{name} reaches {last}, but the model's position table has {model.max_positions} "
                "rows; shorten the task's examples (max_length) or raise PlugConfig.max_positions"
            )
