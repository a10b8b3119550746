"""A seqio task over records: examples to train on, and the metrics of their answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.clue.tasks import Split
from plug_jax.data.features import output_features
from plug_jax.data.pipeline import find_task
from plug_jax.data.vocabularies import PlugVocabulary
from plug_jax.downstream.examples import Examples
from plug_jax.downstream.formats import Answer, Format, Outputs
from plug_jax.downstream.records import AnyRecord
from plug_jax.errors import PlugError
from plug_jax.objectives.objective import Objective
from plug_jax.objectives.task_heads import TaskObjective

ReadSplit = Callable[[str], Split]


class SplitRecords:
    """Records of a few splits in one format, and the examples that are made of them, once."""

    def __init__(
        self, format: Format, vocabulary: PlugVocabulary, read: ReadSplit, names: Sequence[str]
    ) -> None:
        """`read` gives the records of one of the splits of these names."""
        self.format, self.vocabulary, self.names = format, vocabulary, tuple(names)
        self.read = functools.cache(read)
        self.examples = functools.cache(self._examples)

    def records(self, split: str) -> Sequence[AnyRecord]:
        """Those of a split, in the order of its file."""
        return self.read(split).records

    def _examples(self, split: str) -> Examples:
        examples = self.format.examples(self.records(split), self.vocabulary)
        if not len(examples):
            raise PlugError(f"the split {split!r} has no example: {self.read(split).path}")
        return examples

    def answers(self, split: str, outputs: Outputs) -> list[Answer]:
        """Of each record of a split, from the outputs of all of its examples in order."""
        return self.format.answers(self.records(split), self.examples(split), outputs)

    def metrics(self, split: str, outputs: Outputs) -> dict[str, float]:
        """In percent; {} where the split has no gold answers."""
        return self.format.metrics(self.records(split), self.answers(split, outputs))


class RecordTask(seqio.Task):
    """A task over records, of which a training run is the usual reader.

    Examples have the format's features and the text `split`. What a model gives for an example are
    its objective's `outputs` by name: `postprocess_fn` keeps them with the example's place, and the
    metric function makes answers of all of a split, for some metrics are of several together. In
    `seqio.Evaluator`, whose `target_field_name` is then "example_index", as in training.
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
        self, targets: Sequence[Place], predictions: Sequence[tuple[Place, Any]]
    ) -> dict[str, float]:
        """Metrics of the split that the targets are of; each of its examples is needed."""
        splits = {split for split, _ in targets}
        if len(splits) != 1:
            raise PlugError(f"metrics are of one split, not of {sorted(splits)}")
        (split,) = splits
        by_number = {number: outputs for (_, number), outputs in predictions}
        return self.splits_of_records.metrics(split, in_order(by_number, self.num_examples(split)))

    def num_examples(self, split: str) -> int:
        """How many examples a split has."""
        return len(self.splits_of_records.examples(split))


def record_tasks(of: str | seqio.Task | seqio.Mixture) -> list[RecordTask]:
    """The tasks over records that a task or mixture, or one of a name, has; [] if it has others."""
    tasks = seqio.get_subtasks(find_task(of) if isinstance(of, str) else of)
    ours = [task for task in tasks if isinstance(task, RecordTask)]
    return ours if len(ours) == len(tasks) else []


def task_description(
    mixture_or_task_name: str, objectives: Sequence[Objective] = ()
) -> dict[str, Any] | None:
    """What a checkpoint keeps of a task over records, in JSON; None of another.

    And of the objective that is trained on it, whether its head has a pooler.

    `plug_jax.downstream.kinds` makes the format of it: predictions never depend on an order in
    code. Of a mixture, it is the first task's.
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
    """A line for each task over records that has the split: how many, and how many were dropped."""
    lines = []
    for task in record_tasks(mixture_or_task_name):
        if split in task.splits:
            read = task.splits_of_records.read(split)
            dropped = "".join(f", {n:,} dropped: {why}" for why, n in read.dropped.items())
            counts = f"{len(read.records):,} records, {task.num_examples(split):,} examples"
            lines.append(f"{task.name} {split}: {counts}{dropped}")
    return lines


def register(task: RecordTask) -> str:
    """Register a task in place of one that has the name already; its name."""
    if task.name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
    name: str = task.name
    return name


def read_as(mixture_or_task_name: str, kept: Format, vocabulary: PlugVocabulary) -> SplitRecords:
    """Register a task over records anew in the format and vocabulary that a checkpoint keeps.

    Another order of the labels, or another length of texts, in code changes nothing then.

    Returns:
        Its records as they are read now.

    Raises:
        PlugError: a mixture, or a task of another kind or with labels that the checkpoint has not.
    """
    task = find_task(mixture_or_task_name)
    if not isinstance(task, RecordTask):
        raise PlugError(
            f"{mixture_or_task_name!r} is no task over records, or a mixture; score a fine-tuned "
            "checkpoint on its tasks, one by one"
        )
    task.format.check_told_by(kept, task.name)
    records = task.splits_of_records
    ours = SplitRecords(kept, vocabulary, records.read, records.names)
    register(RecordTask(task.name, ours))
    return ours


def check_task(mixture_or_task_name: str, objectives: Sequence[Objective]) -> None:
    """PlugError where the objectives, or tasks of a mixture, do not mean the same by a number."""
    tasks = record_tasks(mixture_or_task_name)
    for task in tasks:
        for objective in objectives:
            if isinstance(objective, TaskObjective):
                task.format.check_objective(objective)


Place = tuple[str, int]  # the split, and the example's number


def in_order(by_number: Mapping[int, Mapping[str, Any]], count: int) -> Outputs:
    """Outputs of examples by their numbers, as arrays [count, ...]. PlugError if some lack."""
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
    """An example's place, for a target; with what the model gave, for a prediction."""
    assert example is not None
    place = (bytes(example["split"]).decode(), int(example["example_index"][0]))
    return place if is_target else (place, value)


class _RecordSource(seqio.DataSource):
    """Examples out of memory."""

    def __init__(self, splits: SplitRecords) -> None:
        super().__init__(splits=splits.names, caching_permitted=False)
        self._records = splits

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """False: seqio takes every n-th example for a shard."""
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        """The first of the split's files: there is one shard."""
        return [self._records.read(split).path]

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
