"""A seqio task over records: examples to train on, and the metrics of their answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.clue.tasks import Split
from plug_jax.data.features import output_features
from plug_jax.data.pipeline.pipeline import find_task
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.examples import Examples
from plug_jax.downstream.formats import Answer, Format, Outputs
from plug_jax.downstream.records import AnyRecord
from plug_jax.errors import PlugError
from plug_jax.objectives.objective import Objective
from plug_jax.objectives.task_heads import TaskObjective

ReadSplit = Callable[[str], Split]


class SplitRecords:
    """Records of some splits in one format, and their examples, built once."""

    def __init__(
        self,
        format: Format,
        vocabulary: PlugVocabulary,
        read: ReadSplit,
        names: Sequence[str],
        reading: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """`read` returns the records of one of these splits, by the settings `reading`."""
        self.format, self.vocabulary, self.names = format, vocabulary, tuple(names)
        self.reading = reading
        self.read = functools.cache(read)
        self.examples = functools.cache(self._examples)

    def records(self, split: str) -> Sequence[AnyRecord]:
        """The records of a split, in file order."""
        return self.read(split).records

    def _examples(self, split: str) -> Examples:
        examples = self.format.examples(self.records(split), self.vocabulary)
        if not len(examples):
            raise PlugError(f"the split {split!r} has no example: {self.read(split).path}")
        return examples

    def answers(self, split: str, outputs: Outputs) -> list[Answer]:
        """The answer for each record of a split, from the outputs of all its examples in order."""
        return self.format.answers(self.records(split), self.examples(split), outputs)

    def metrics(self, split: str, outputs: Outputs) -> dict[str, float]:
        """Metrics in percent; {} if the split has no gold answers."""
        return self.format.metrics(self.records(split), self.answers(split, outputs))


class RecordTask(seqio.Task):
    """A task over records, usually read by a training run.

    Examples have the format's features and the text `split`. A model's prediction for an example is
    its objective's `outputs` by name: `postprocess_fn` keeps them with the example's index, and the
    metric function computes answers for the whole split, since some depend on several examples.
    This works in `seqio.Evaluator` with `target_field_name="example_index"`, as in training.
    """

    def __init__(self, name: str, splits: SplitRecords) -> None:
        self.splits_of_records = splits
        objective = splits.format.make_objective()
        super().__init__(
            name,
            source=_RecordSource(splits),
            preprocessors=[],
            output_features=output_features(objective.features, splits.vocabulary),
            postprocess_fn=_with_place,
            metric_fns=[self._metrics],
        )

    @property
    def format(self) -> Format:
        """How records become examples."""
        return self.splits_of_records.format

    def _metrics(
        self, targets: Sequence[ExampleId], predictions: Sequence[tuple[ExampleId, Any]]
    ) -> dict[str, float]:
        """Metrics of the targets' split, which must be complete."""
        splits = {split for split, _ in targets}
        if len(splits) != 1:
            raise PlugError(f"metrics are for one split, not for {sorted(splits)}")
        (split,) = splits
        by_number = {number: outputs for (_, number), outputs in predictions}
        return self.splits_of_records.metrics(split, in_order(by_number, self.num_examples(split)))

    def num_examples(self, split: str) -> int:
        """Number of examples in a split."""
        return len(self.splits_of_records.examples(split))


def record_tasks(of: str | seqio.Task | seqio.Mixture) -> list[RecordTask]:
    """The tasks over records of a task or mixture, given as object or name; [] if any other."""
    tasks = seqio.get_subtasks(find_task(of) if isinstance(of, str) else of)
    ours = [task for task in tasks if isinstance(task, RecordTask)]
    return ours if len(ours) == len(tasks) else []


def task_description(
    mixture_or_task_name: str, objectives: Sequence[Objective] = ()
) -> dict[str, Any] | None:
    """A checkpoint's description of a task over records, as JSON; None for other tasks.

    Includes whether the objective's head has a pooler.

    `plug_jax.downstream.kinds` rebuilds the format from it, so predictions do not depend on the
    order of labels in code. For a mixture, it is the first task's.
    """
    tasks = record_tasks(mixture_or_task_name)
    if not tasks:
        return None
    description = {"name": tasks[0].name, **tasks[0].format.description()}
    for objective in objectives:
        if isinstance(objective, TaskObjective):
            description["pooler"] = objective.pooler
    return description


def record_counts(mixture_or_task_name: str, split: str) -> list[str]:
    """A line per task over records with this split: numbers of records and drops."""
    lines = []
    for task in record_tasks(mixture_or_task_name):
        if split in task.splits:
            read = task.splits_of_records.read(split)
            dropped = "".join(f", {n:,} dropped: {why}" for why, n in read.dropped.items())
            counts = f"{len(read.records):,} records, {task.num_examples(split):,} examples"
            lines.append(f"{task.name} {split}: {counts}{dropped}")
    return lines


def register(task: RecordTask) -> str:
    """Register a task, replacing one of the same name; returns its name."""
    if task.name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
    name: str = task.name
    return name


def read_as(mixture_or_task_name: str, kept: Format, vocabulary: PlugVocabulary) -> SplitRecords:
    """Re-register a task over records with a checkpoint's format and vocabulary.

    So a different label order or text length in code has no effect.

    Returns:
        Its records as they are read now.

    Raises:
        PlugError: a mixture, or a task of another kind or with labels unknown to the checkpoint.
    """
    task = find_task(mixture_or_task_name)
    if not isinstance(task, RecordTask):
        raise PlugError(
            f"{mixture_or_task_name!r} is not a task over records, or is a mixture; score a "
            "fine-tuned checkpoint on its tasks, one by one"
        )
    task.format.check_told_by(kept, task.name)
    records = task.splits_of_records
    ours = SplitRecords(kept, vocabulary, records.read, records.names, records.reading)
    register(RecordTask(task.name, ours))
    return ours


def check_task(mixture_or_task_name: str, objectives: Sequence[Objective]) -> None:
    """PlugError if the objectives, or a mixture's tasks, interpret label numbers differently."""
    tasks = record_tasks(mixture_or_task_name)
    for task in tasks:
        for objective in objectives:
            if isinstance(objective, TaskObjective):
                task.format.check_objective(objective)


ExampleId = tuple[str, int]  # the split, and the example's number


def in_order(by_number: Mapping[int, Mapping[str, Any]], count: int) -> Outputs:
    """Outputs by example number, as arrays [count, ...]. PlugError if some are missing."""
    if missing := sorted(set(range(count)) - set(by_number)):
        raise PlugError(
            f"{len(missing):,} of {count:,} examples have no outputs, the first is {missing[0]}"
        )
    names = by_number[0] if count else ()
    return {
        name: np.stack([np.asarray(by_number[number][name]) for number in range(count)])
        for name in names
    }


def _with_place(
    value: Any, *, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> Any:
    """An example's index, as a target; with the model's outputs, as a prediction."""
    assert example is not None
    place = (bytes(example["split"]).decode(), int(example["example_index"][0]))
    return place if is_target else (place, value)


class _RecordSource(seqio.DataSource):
    """Examples from memory."""

    def __init__(self, splits: SplitRecords) -> None:
        super().__init__(splits=splits.names, caching_permitted=False)
        self._records = splits

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """False: seqio uses every n-th example for a shard."""
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        """The first of the split's files: there is one shard."""
        return [self._records.read(split).path]

    def settings_of_records(self, split: str) -> dict[str, Any]:
        """All that a split's examples depend on; `stream_settings` asks for it by this name."""
        records = self._records
        format_ = records.format.settings_of_examples()
        return {**records.reading, "format": format_, "files": dict(records.read(split).sizes)}

    def num_input_examples(self, split: str) -> int:
        """Examples of the split."""
        return len(self._records.examples(split))

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """Examples, and the text `split` in each."""
        dataset = self._records.examples(split).dataset(shuffle=shuffle, seed=seed)
        return dataset.map(lambda example: {**example, "split": split})
