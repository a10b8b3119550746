"""Inspection of a task: its examples, decoded and counted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import seqio

from plug_jax.data.autotuning import without_autotuning
from plug_jax.data.caching.files import check_token_files
from plug_jax.data.drops import reset_counts, why_nothing_is_left
from plug_jax.data.pipeline.file_checks import check_source
from plug_jax.data.task_settings import TaskSettings
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.record_task import record_tasks
from plug_jax.errors import PlugError
from plug_jax.objectives.composition import Objectives, objectives_for, stage_of
from plug_jax.objectives.examples import Example
from plug_jax.objectives.objective import Objective
from plug_jax.objectives.stages import KNOWN
from plug_jax.task_reports.counting import count_examples
from plug_jax.task_reports.decoded_examples import DecodedExample, decode_example, describe_example
from plug_jax.task_reports.statistics import TaskStatistics


@dataclasses.dataclass
class Inspected:
    """A split of a task, and its objectives: none if it has other features.

    Raises:
        PlugError: there is no such split, files of it are missing or damaged, or the task does not
          support a named objective.
    """

    provider: seqio.Task | seqio.Mixture
    split: str
    seed: int
    feature_lengths: str  # as the user gives them
    named: Sequence[Objective]  # objectives that the task must support

    def __post_init__(self) -> None:
        task, split = self.provider, self.split
        if split not in task.splits:
            splits = ", ".join(task.splits)
            raise PlugError(f"{task.name!r} has no split {split!r}, only {splits}")
        for part in seqio.get_subtasks(task):
            if split in part.splits:
                check_source(part.source, split, f"the {split} split of {part.name!r}")
            check_token_files(part, split)
        features = task.output_features
        self.objectives = _objectives(task, self.named)
        self.vocabulary = features["encoder_input_tokens"].vocabulary if self.objectives else None
        self.lengths = sequence_lengths(self.feature_lengths, features, self.objectives)

    def examples(self, number: int) -> Iterator[Example]:
        """At most this many of the first examples, without padding; resets the counts of drops."""
        reset_counts()
        dataset = self.provider.get_dataset(
            sequence_length=self.lengths,
            split=self.split,
            shuffle=False,
            seed=self.seed,
            num_epochs=1,
            trim_output_features=False,  # the preprocessors set lengths: cut nothing
        )
        examples = without_autotuning(dataset.take(number))
        return map(_without_padding, examples.as_numpy_iterator())

    def decode(self, example: Example) -> DecodedExample:
        """An example, ready to be shown."""
        if self.vocabulary is None:
            return describe_example(example, self.provider.output_features)
        return decode_example(example, self.objectives, self.vocabulary)

    def count(self, examples: Iterable[Example]) -> TaskStatistics:
        """Statistics of `examples`.

        Raises:
            PlugError: there is none, or its features of one side differ in length.
        """
        statistics = count_examples(
            examples,
            self.objectives,
            self.vocabulary,
            TaskSettings.of(self.provider, self.split),
            bounds=self.lengths,
        )
        if not statistics.examples:
            raise PlugError(
                f"{self.provider.name!r} gives no example in split {self.split!r}. "
                + why_nothing_is_left(statistics.drops)
            )
        return statistics


def registered() -> list[str]:
    """A line for each registered task and mixture: name, kind, and objectives."""
    kinds = dict.fromkeys(seqio.TaskRegistry.names(), "task")
    kinds |= dict.fromkeys(seqio.MixtureRegistry.names(), "mixture")
    width = max(map(len, kinds), default=0)
    stages = {1: "stage 1 (StructBERT)", 2: "stage 2 (PALM)"}
    lines = []
    for name, kind in sorted(kinds.items()):
        found = objectives_for(seqio.get_mixture_or_task(name).output_features, KNOWN)
        names = ", ".join(type(one).__name__ for one in found) or "features of its own"
        lines.append(f"{name:{width}}  {kind:7}  {stages.get(stage_of(found) or 0, names)}")
    return lines or ["no task is registered; name a module that registers one with --module"]


def sequence_lengths(
    text: str, features: Collection[str], objectives: Objectives = ()
) -> dict[str, int] | None:
    """The lengths of --feature_lengths by feature; None, meaning no limit, for none.

    The objectives' features can also be named by side.

    >>> sequence_lengths("inputs=512", ["inputs", "targets"])
    {'inputs': 512}
    """
    sides = {feature.name: feature.side for one in objectives for feature in one.features}
    lengths: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        key, _, value = (word.strip() for word in part.partition("="))
        names = [name for name in features if key in (name, sides.get(name))]
        if not names:
            keys = sorted({sides.get(name, name) for name in features})
            raise PlugError(f"--feature_lengths has no {key!r} to limit, only {', '.join(keys)}")
        if not re.fullmatch("0*[1-9][0-9]{0,8}", value):  # more digits might exceed 32 bits
            raise PlugError(f"--feature_lengths: {part!r} should read {key}=512, or another length")
        lengths |= dict.fromkeys(names, int(value))
    return lengths or None


def _without_padding(example: Example) -> Example:
    """An example of several padded texts, without their padding; any other unchanged."""
    segments = example.get("encoder_segment_ids")
    if segments is None:
        return example
    real = segments > 0
    return {
        name: value[real] if np.shape(value) == real.shape else value
        for name, value in example.items()
    }


def _objectives(provider: seqio.Task | seqio.Mixture, named: Sequence[Objective]) -> Objectives:
    """The named objectives, all of which the task must support, and known ones it supports.

    A task over records has its own; one with another vocabulary than ours has none.
    """
    features = provider.output_features
    for one in named:
        if missing := sorted({feature.name for feature in one.features} - set(features)):
            raise PlugError(
                f"the task lacks {', '.join(missing)}, which the objective "
                f"{type(one).__name__} needs; it has {', '.join(sorted(features))}"
            )
    own = [task.format.make_objective() for task in record_tasks(provider)[:1]]
    found = objectives_for(features, [*named, *own, *KNOWN])
    if found and isinstance(features["encoder_input_tokens"].vocabulary, PlugVocabulary):
        return found
    return ()
