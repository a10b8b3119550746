"""Runs whose length is given in epochs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from plug_jax.data.features import ENCODER, Feature
from plug_jax.data.pipeline import DatasetConfig, make_iterator
from plug_jax.downstream.record_task import record_tasks


def steps_of(epochs: float, rows: int, batch_size: int) -> int:
    """So many times the steps that see all rows: the last batch of an epoch need not be full.

    Example: 3 epochs of 10 rows in batches of 4 are 9 steps.
    """
    return math.ceil(epochs * math.ceil(rows / batch_size))


def rows_of_an_epoch(data: DatasetConfig, features: Sequence[Feature]) -> int:
    """How many rows the data make once through, without shuffling: it reads them all.

    Of a task over records a row is an example, and they are known.

    Without packing they are the examples that tasks give, after whatever they drop or divide.
    """
    tasks = record_tasks(data.mixture_or_task_name)
    if len(tasks) == 1 and not data.pack:
        return tasks[0].num_examples(data.split)
    once = dataclasses.replace(data, num_epochs=1, shuffle=False)
    return sum(
        int((batch[f"{ENCODER}_segment_ids"].max(axis=1) > 0).sum())
        for batch in make_iterator(once, features)
    )
