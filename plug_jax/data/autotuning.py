"""tf.data's autotuning, which is off wherever examples are read."""

from __future__ import annotations

import tensorflow as tf


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset, whose parallel calls are as many as the cores, 16 at most, and stay so.

    A thread that tunes them sleeps up to a minute at a time (`kOptimizationPeriodMaxMs` of
    tensorflow's model.h). Whoever deletes an iterator waits for it, since it can miss the call to
    end: at the end of a program, or after each file of a corpus.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
