"""Ensembles of runs of one task: averaged outputs, members selected on dev."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from plug_jax.checkpoints.best import sign_of
from plug_jax.downstream.formats import Answer, Outputs, softmax
from plug_jax.downstream.record_task import SplitRecords
from plug_jax.errors import PlugError
from plug_jax.finetuning.runs import FineTunedRun
from plug_jax.training.same_run import what_is_told

Method = Literal["mean", "vote"]
Gain = Callable[[tuple[int, ...]], float]  # score of models by number; higher is better

_SUMMED = ("span_logits", "regression_values")  # averaged directly
_LEAST = 1e-30  # lower bound of a probability, for its logarithm


def combine(outputs: Sequence[Outputs], method: Method = "mean") -> Outputs:
    """Combined outputs of several models, from which formats make answers.

    A single model's outputs are unchanged. "mean": the logarithm of the mean probabilities; for
    spans the mean of the logits. "vote": the votes for labels, tags and choices; ties are decided
    by the mean probabilities.

    Raises:
        PlugError: a vote on spans or numbers.
    """
    if len(outputs) == 1:
        return outputs[0]  # unchanged, because CHID compares logits of several blanks
    return {
        name: _combine(name, [of_model[name] for of_model in outputs], method)
        for name in outputs[0]
    }


def _combine(name: str, arrays: Sequence[np.ndarray], method: Method) -> np.ndarray:
    if name in _SUMMED:
        if method == "vote":
            raise PlugError("votes need labels or choices; use the mean for spans and numbers")
        return np.mean(arrays, axis=0)
    likely = np.mean([softmax(array) for array in arrays], axis=0)
    if method == "vote":
        votes = [array == array.max(axis=-1, keepdims=True) for array in arrays]
        likely = np.sum(votes, axis=0) + likely * 0.5
    return np.log(np.maximum(likely, _LEAST))


def pick_members(count: int, gain: Gain) -> list[int]:
    """Greedy selection: the best of `count` models, then the one that helps most, while any helps.

    `gain` scores a set of models; of equal ones the first is taken.
    """
    chosen: list[int] = []
    best = -np.inf
    while len(chosen) < count:
        gains = {one: gain((*chosen, one)) for one in range(count) if one not in chosen}
        number = max(gains, key=lambda one: gains[one])
        if gains[number] <= best:
            break
        best = gains[number]
        chosen.append(number)
    return chosen


@dataclasses.dataclass(frozen=True)
class EnsembleReport:
    """Scores of runs and ensembles by a metric, in percent on a split."""

    metric: str
    split: str
    runs: dict[str, float]  # by path
    everyone: float  # the ensemble of all
    members: list[str]  # selected greedily on this split
    picked: float  # their score on it: optimistic
    cross_validated: float  # members selected on each half, scored on the other

    @property
    def best_single(self) -> float:
        """Score of the best run."""
        return max(self.runs.values(), key=lambda value: sign_of(self.metric) * value)

    @property
    def mean_single(self) -> float:
        """Mean score over runs."""
        return float(np.mean(list(self.runs.values())))

    @property
    def single_deviation(self) -> float:
        """Sample standard deviation over runs; 0 for one."""
        return float(np.std(list(self.runs.values()), ddof=1)) if len(self.runs) > 1 else 0.0


def check_alike(runs: Sequence[FineTunedRun]) -> None:
    """PlugError if runs' outputs for an example are not comparable."""
    if not runs:
        raise PlugError("there are no runs")
    first = _meaning(runs[0])
    for run in runs[1:]:
        other = _meaning(run)
        different = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if different:
            shown = "; ".join(
                f"{name} is {first.get(name)} and {other.get(name)}" for name in different
            )
            raise PlugError(
                f"{runs[0].path} and {run.path} are not runs of the same kind, and cannot be "
                f"averaged: {shown}"
            )


def _meaning(run: FineTunedRun) -> dict[str, Any]:
    """The settings that determine the example and answer of each output."""
    task = run.saved.task or {}
    by_token = task.get("kind") in ("question", "entity")  # these need the same tokens
    told = dict(task) if by_token else dict(what_is_told(task))
    for name in ("name", "pooler"):
        told.pop(name, None)
    vocabulary = {"vocabulary": run.saved.vocabulary_fingerprint} if by_token else {}
    return {"task": run.task, **told, **vocabulary}


def ensemble(
    runs: Sequence[FineTunedRun], *, split: str, metric: str | None, method: Method
) -> EnsembleReport:
    """Score runs alone and together on a split that has gold answers.

    Raises:
        PlugError: runs of different tasks, no gold answers, or no such metric.
    """
    check_alike(runs)
    records = runs[0].records
    outputs = [run.outputs(split) for run in runs]
    of_split = records.records(split)

    @functools.cache
    def answers(members: tuple[int, ...]) -> Sequence[Answer]:
        return records.answers(split, combine([outputs[i] for i in members], method))

    def metrics(members: Sequence[int], part: Sequence[int]) -> dict[str, float]:
        answered = answers(tuple(members))
        return records.format.metrics([of_split[i] for i in part], [answered[i] for i in part])

    everything = range(len(of_split))
    known = metrics([0], everything)
    if not known:
        raise PlugError(f"the split {split!r} has no gold answers to score by")
    name = metric or next(iter(known))
    if name not in known:
        raise PlugError(f"there is no metric {name!r}; the task has {', '.join(known)}")

    def pick(part: Sequence[int]) -> list[int]:
        return pick_members(len(runs), lambda members: sign_of(name) * metrics(members, part)[name])

    halves = _halves(records, split)
    crossed = [metrics(pick(half), other)[name] for half, other in (halves, halves[::-1])]
    picked = pick(everything)
    return EnsembleReport(
        metric=name,
        split=split,
        runs={run.path: metrics([i], everything)[name] for i, run in enumerate(runs)},
        everyone=metrics(range(len(runs)), everything)[name],
        members=[runs[i].path for i in picked],
        picked=metrics(picked, everything)[name],
        cross_validated=float(np.average(crossed, weights=[len(one) for one in halves[::-1]])),
    )


def _halves(records: SplitRecords, split: str) -> tuple[list[int], list[int]]:
    """Two halves of the records, keeping records that are decided together."""
    groups = records.format.groups(records.records(split))
    names = list(dict.fromkeys(groups))
    half = {name: number % 2 for number, name in enumerate(names)}
    if len(names) < 2:
        raise PlugError(f"the split {split!r} is too small to be halved")
    first, second = (
        [number for number, group in enumerate(groups) if half[group] == side] for side in (0, 1)
    )
    return first, second
