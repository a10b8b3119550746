"""Runs whose length is given in epochs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from plug_jax.data.features import ENCODER, Feature
from plug_jax.data.pipeline.pipeline import DatasetConfig, make_iterator
from plug_jax.downstream.record_task import record_tasks


def steps_of(epochs: float, rows: int, batch_size: int) -> int:
    """`epochs` times the steps for all rows; the last batch of an epoch need not be full.

    Example: 3 epochs of 10 rows in batches of 4 are 9 steps.
    """
    return math.ceil(epochs * math.ceil(rows / batch_size))


def rows_of_an_epoch(data: DatasetConfig, features: Sequence[Feature]) -> int:
    """Number of rows in one pass over the data, unshuffled, by reading them all.

    For tasks over records, rows are examples, and their number is known.

    Without packing, rows are the tasks' examples after all drops and splits.
    """
    tasks = record_tasks(data.mixture_or_task_name)
    if len(tasks) == 1 and not data.pack:
        return tasks[0].num_examples(data.split)
    once = dataclasses.replace(data, num_epochs=1, shuffle=False)
    return sum(
        int((batch[f"{ENCODER}_segment_ids"].max(axis=1) > 0).sum())
        for batch in make_iterator(once, features)
    )
