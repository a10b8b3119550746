"""Scoring a whole split."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from plug_jax.config import PlugConfig
from plug_jax.data import pipeline
from plug_jax.data.pipeline import DatasetConfig
from plug_jax.data.vocabularies import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner
from plug_jax.training import metrics as metrics_lib
from plug_jax.training.checkpointing import open_checkpoint
from plug_jax.training.compilation import Compiled, compile_program, use_compilation_cache
from plug_jax.training.feed import Feed
from plug_jax.training.program import abstract_batch
from plug_jax.training.state import abstract_params, with_shardings
from plug_jax.training.step import StepConfig, make_eval_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `plug-jax evaluate` builds from its gin files."""

    checkpoint: str  # a MODEL_DIR, or one step in it
    data: DatasetConfig
    partitioner: Partitioner
    step: StepConfig
    compilation_cache_dir: str | None = None  # keeps compiled programs for later runs


def evaluate_checkpoint(config: EvaluateConfig) -> dict[str, float]:
    """Metrics by name of a stored model on a whole split."""
    use_compilation_cache(config.compilation_cache_dir)
    saved = open_checkpoint(config.checkpoint)
    task = config.data.mixture_or_task_name
    vocabulary = pipeline.vocabulary_of(task, module=config.data.module)
    check_vocabulary(saved.config, vocabulary, task)
    evaluator = Evaluator(saved.config, config.data, config.partitioner, config.step)
    boxed = abstract_params(PlugModel(saved.config))
    return evaluator(saved.params(config.partitioner.param_shardings(boxed), "float32"))


class Evaluator:
    """Scores parameters on every example of a split, with one compiled step."""

    def __init__(
        self, model: PlugConfig, data: DatasetConfig, partitioner: Partitioner, step: StepConfig
    ) -> None:
        """`data.num_epochs` should be 1: each example once, the same corruption every time."""
        partitioner.check_batch(data.batch_size)
        self._model, self._data, self._partitioner = model, data, partitioner
        self._step = step
        self._compiled: Compiled | None = None

    def compiled(self) -> Compiled:
        """The step; the first call compiles it."""
        if self._compiled is None:
            with self._partitioner.context():
                self._compiled = compile_program(self._lower)
        return self._compiled

    def _lower(self) -> jax.stages.Lowered:
        model = PlugModel(self._model)
        boxed = abstract_params(model)
        params = with_shardings(nn.unbox(boxed), self._partitioner.param_shardings(boxed))
        step = jax.jit(
            make_eval_step(model, self._step), out_shardings=self._partitioner.replicated
        )
        return step.lower(params, abstract_batch(self._data, self._partitioner))

    def __call__(self, params: Any) -> dict[str, float]:
        """Metrics by name, each a weighted mean over the split."""
        step, sharding = self.compiled().call, self._partitioner.batch_sharding
        scores = []
        with self._partitioner.context():
            for batch in Feed(self._data, model=self._model, sharding=sharding):
                scores.append(step(params, batch))
                if len(scores) > 2:  # the host prepares the next batch, but does not run away
                    jax.block_until_ready(scores[-3])
        values = metrics_lib.summarize(metrics_lib.add(scores))
        values.pop("tokens")
        return values


def check_vocabulary(model: PlugConfig, vocabulary: PlugVocabulary, task: str) -> None:
    """PlugError unless the model has exactly one embedding for every piece."""
    if vocabulary.vocab_size != model.vocab_size:
        raise PlugError(
            f"the vocabulary of {task!r} has {vocabulary.vocab_size} pieces, but PlugConfig."
            f"vocab_size is {model.vocab_size}; set it to {vocabulary.vocab_size}, or use the "
            "vocabulary that the model was made for"
        )
