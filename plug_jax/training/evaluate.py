"""Evaluation on a whole split."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from plug_jax.checkpoints.parameters import abstract_params, with_shardings
from plug_jax.checkpoints.saved_model import open_checkpoint, vocabulary_fingerprint
from plug_jax.compilation import Compilation, CompiledProgram, use_compilation_cache
from plug_jax.config import PlugConfig
from plug_jax.data.drops import what_was_dropped
from plug_jax.data.pipeline import pipeline
from plug_jax.data.pipeline.batches import Counts, add_counts
from plug_jax.data.pipeline.file_checks import check_files
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.formats import Outputs
from plug_jax.downstream.kinds import described_format
from plug_jax.downstream.record_task import RecordTask, check_task, read_as, record_tasks
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.hosts.activity import doing
from plug_jax.hosts.processes import of_all_processes
from plug_jax.metrics import Metrics, add
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import (
    Objectives,
    check_objectives,
    check_rows,
    check_settings,
    features_of,
    summarize_metrics,
)
from plug_jax.partitioning import Partitioner, put_batch
from plug_jax.standard_error import say
from plug_jax.training.feed import Feed
from plug_jax.training.program import abstract_batch
from plug_jax.training.step import StepConfig, make_eval_step

_MOST_KEPT = 1 << 28  # bytes per process


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `plug-jax evaluate` builds from its gin files."""

    checkpoint: str  # a MODEL_DIR, or one step in it
    objectives: Objectives
    data: DatasetConfig
    partitioner: Partitioner
    step: StepConfig
    compilation_cache_dir: str | None = None  # keeps compiled programs for later runs
    verify_checkpoint: bool = True  # check the arrays against their checksums

    def __post_init__(self) -> None:
        check_fields(self)
        check_rows(self.objectives, pack=self.data.pack, predict=True)


def evaluate_checkpoint(config: EvaluateConfig) -> dict[str, float]:
    """Metrics by name of a stored model on a whole split."""
    use_compilation_cache(config.compilation_cache_dir)
    saved = open_checkpoint(config.checkpoint)
    task = config.data.mixture_or_task_name
    vocabulary = pipeline.vocabulary_of(task, module=config.data.module)
    if jax.process_index() == 0:
        check_files(config.data)  # otherwise damaged files would be left out of the metrics
    objectives, of_records = config.objectives, bool(record_tasks(task))
    if saved.task is not None and of_records:
        vocabulary = saved.vocabulary()
        read_as(task, described_format(saved.task), vocabulary)
        check_task(task, objectives)
    check_vocabulary(saved.config, vocabulary, task)
    fingerprint = saved.vocabulary_fingerprint  # None if it was converted without a vocabulary
    if fingerprint is not None and vocabulary_fingerprint(vocabulary) != fingerprint:
        raise PlugError(
            f"CHECKPOINT {saved.path} was trained with another vocabulary than {task!r} has; the "
            f"one it needs is {saved.vocabulary_path}"
        )
    check_objectives(objectives, saved.config)
    check_settings(objectives, pipeline.find_task(task), config.data.split)
    evaluator = Evaluator(saved.config, objectives, config.data, config.partitioner, config.step)
    boxed = abstract_params(PlugModel(saved.config), objectives)
    shardings = config.partitioner.param_shardings(boxed)
    scores = evaluator(saved.params(shardings, "float32", verify=config.verify_checkpoint))
    left_out = what_was_dropped(evaluator.dropped())
    if left_out and jax.process_index() == 0:
        say(left_out)
    if of_records and not any(f"{one.name}_loss" in scores for one in objectives):
        raise PlugError(
            f"the split {config.data.split!r} of {task!r} has no gold answers to score by; "
            "`plug-jax infer` gives the answers to its rows"
        )
    return scores


class Evaluator:
    """Evaluates parameters on every example of a split, with one compiled step."""

    def __init__(
        self,
        model: PlugConfig,
        objectives: Objectives,
        data: DatasetConfig,
        partitioner: Partitioner,
        step: StepConfig,
        *,
        keep_batches: bool = False,
    ) -> None:
        """`data.num_epochs` should be 1: each example once, the same corruption every time.

        With `keep_batches` the data are read once, for the first evaluation, and kept in host
        memory, unless they take more than 256 MiB per process.
        """
        partitioner.check_batch(data.batch_size)
        self._model, self._data, self._partitioner = model, data, partitioner
        self._objectives, self._features = objectives, features_of(objectives)
        self._step = step
        self._compilation = Compilation(lambda: self._lowered, partitioner.context)
        self._told = False  # whether its compilation was reported
        self._opened: Feed | None = None
        self._counts: Counts = {}  # of this process, from the last reading
        self._keep = keep_batches
        self._kept: list[dict[str, np.ndarray]] | None = None  # all batches, once read
        provider = pipeline.find_task(data.mixture_or_task_name)
        self._task = provider if isinstance(provider, RecordTask) else None

    def read_ahead(self) -> None:
        """Read the first batch now, for the next evaluation, so that errors show at once."""
        if self._opened is None:
            self._opened = self._open()
            self._opened.read_ahead()

    def _open(self) -> Feed:
        return Feed(
            self._data,
            self._features,
            model=self._model,
            sharding=self._partitioner.batch_sharding,
        )

    def compile_ahead(self) -> None:
        """Begin to compile the step; the first evaluation waits for it."""
        self._compilation.start()

    def newly_compiled(self) -> CompiledProgram | None:
        """The step if compiled since the last call; raises the error of a failed compilation."""
        if self._told or not self._compilation.done:
            return None
        self._told = True
        return self._compilation.result()

    def metric_names(self) -> set[str]:
        """The metric names of an evaluation, without compiling."""
        with self._partitioner.context():
            metrics, outputs = self._lowered.out_info
        nothing = jax.tree.map(lambda one: np.ones(one.shape, one.dtype), metrics)
        names = set(self._values(nothing))
        if self._task is not None and outputs:
            count = self._task.num_examples(self._data.split)
            made = {
                name: np.zeros((count, *one.shape[1:]), one.dtype)
                for name, one in outputs.items()
                if name != "example_index"
            }
            names |= set(self._task.splits_of_records.metrics(self._data.split, made))
        return names

    @functools.cached_property
    def _lowered(self) -> jax.stages.Lowered:
        model = PlugModel(self._model)
        boxed = abstract_params(model, self._objectives)
        params = with_shardings(nn.unbox(boxed), self._partitioner.param_shardings(boxed))
        step = jax.jit(
            make_eval_step(model, self._objectives, self._step),
            out_shardings=self._partitioner.replicated,
        )
        batch = abstract_batch(self._data, self._features, self._partitioner)
        return step.lower(params, batch)

    def __call__(self, params: Any) -> dict[str, float]:
        """Metrics by name, each a weighted mean over the split, and those of a `RecordTask`."""
        return self.scored(params)[0]

    def scored(self, params: Any) -> tuple[dict[str, float], Outputs]:
        """The metrics of a call, and `outputs`."""
        scores, outputs = self._run(params)
        values = self._values(add(scores))
        if self._task is not None and outputs:
            values |= self._task.splits_of_records.metrics(self._data.split, outputs)
        return values, outputs

    def _values(self, metrics: Metrics) -> dict[str, float]:
        """Values by name, with the total `loss` as training logs it: the weighted sum."""
        values = summarize_metrics(self._objectives, metrics)
        values.pop("tokens")
        terms = [
            one.weight * values[name]
            for one in self._objectives
            if (name := f"{one.name}_loss") in values  # else the split has no answers for it
        ]
        return values | {"loss": sum(terms)} if terms else values

    def outputs(self, params: Any) -> Outputs:
        """The outputs for predictions on a split, by name: [n, ...] for its n examples."""
        return self._run(params)[1]

    def dropped(self) -> Mapping[str, int]:
        """What the last reading of the split dropped, by reason; all processes must call it."""
        return add_counts(of_all_processes(self._counts)).get("dropped", {})

    def _run(self, params: Any) -> tuple[list[Metrics], Outputs]:
        doing("compiling", watched=False)
        step = self._compilation.result().call
        results: collections.deque[Any] = collections.deque()
        scores, outputs = [], []

        def read() -> None:
            of_batch, made = jax.device_get(results.popleft())
            scores.append(of_batch)
            outputs.append(made)

        with self._partitioner.context():
            for rows in self._rows():
                batch = put_batch(rows, self._partitioner.batch_sharding)
                doing(f"evaluating, batch {len(scores) + len(results) + 1}")
                results.append(step(params, batch))
                if len(results) > 2:  # prefetch the next batch, but not more
                    read()
            while results:
                read()
        # Examples of several tasks are numbered separately, without a common order.
        return scores, _of_examples(outputs) if self._task is not None else {}

    def _rows(self) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of each batch."""
        if self._kept is not None:
            yield from self._kept
            return
        feed, self._opened = self._opened or self._open(), None
        kept: list[dict[str, np.ndarray]] | None = [] if self._keep else None
        size = 0
        for rows in feed.rows():
            if kept is not None:
                kept.append(rows)
                size += sum(array.nbytes for array in rows.values())
                if size > _MOST_KEPT:
                    kept = None
            yield rows
        self._kept, self._counts = kept, feed.counts_so_far()


def _of_examples(batches: Sequence[Outputs]) -> Outputs:
    """Outputs of batches in the order of their examples, without empty rows."""
    if not batches[0]:
        return {}
    joined = {name: np.concatenate([one[name] for one in batches]) for name in batches[0]}
    numbers = joined.pop("example_index")
    order = np.argsort(numbers, kind="stable")[np.count_nonzero(numbers < 0) :]
    if (numbers[order] != np.arange(len(order))).any():
        raise AssertionError(f"examples are missing or doubled: {numbers[order]}")
    return {name: values[order] for name, values in joined.items()}


def check_vocabulary(model: PlugConfig, vocabulary: PlugVocabulary, task: str) -> None:
    """PlugError unless the model has exactly one embedding for every piece."""
    if vocabulary.vocab_size != model.vocab_size:
        raise PlugError(
            f"the vocabulary of {task!r} has {vocabulary.vocab_size} pieces, but PlugConfig."
            f"vocab_size is {model.vocab_size}; set it to {vocabulary.vocab_size}, or use the "
            "vocabulary that the model was made for"
        )
