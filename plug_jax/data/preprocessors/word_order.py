"""The word structural objective: restoring the order of tokens in short shuffled windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.data.preprocessors.masking import is_special
from plug_jax.data.preprocessors.slices import flat_values, with_flat_values
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary


@tf.autograph.experimental.do_not_convert  # converting takes seconds and changes nothing
def shuffle_windows(
    dataset: tf.data.Dataset,
    *,
    vocabulary: PlugVocabulary,
    window: int = 3,
    rate: float = 0.05,
    label_moved_only: bool = False,
) -> tf.data.Dataset:
    """Shuffles some windows of consecutive tokens, after masking (StructBERT, section 2.2).

    Every run of `window` tokens without a special token or one selected for masking is shuffled
    with probability `rate`; shuffled windows never overlap. All orders, including the original one,
    are equally likely.

    Takes examples or, which is faster, batches of them; each must begin and end with a special
    token, as [CLS] ... [SEP] does. Reads `encoder_input_tokens` and `encoder_loss_weights` (int32
    [n] or ragged [b, None], from `masked_language_model`); changes the tokens, sets the weights to
    1 in the shuffled windows, and adds `encoder_shuffled` (1 there, 0 elsewhere). The labels are
    `encoder_original_tokens`, which passes through with all other features. With
    `label_moved_only`, weights and `encoder_shuffled` are set only where the token has changed (the
    rule of the released PLUG code). Seeded by `seqio.map_seed_manager`.

    Example, with [CLS] = 2, [SEP] = 3, [MASK] = 4, window = 3, rate = 0.3 and map seed 1:

        encoder_original_tokens      [2, 11, 12, 13, 14, 15, 16, 17, 18, 19, 3]
        encoder_input_tokens before  [2, 11, 12, 13, 14, 15, 16,  4, 18, 19, 3]
        encoder_loss_weights before  [0,  0,  0,  0,  0,  0,  0,  1,  0,  0, 0]
        encoder_input_tokens         [2, 11, 12, 13, 15, 14, 16,  4, 18, 19, 3]
        encoder_loss_weights         [0,  0,  0,  0,  1,  1,  1,  1,  0,  0, 0]
        encoder_shuffled             [0,  0,  0,  0,  1,  1,  1,  0,  0,  0, 0]

    Raises:
      PlugError: `window` is below 2, or `rate` is not within [0, 1 / window].
    """
    if window < 2:
        raise PlugError(f"a window to shuffle holds at least 2 tokens, got window = {window}")
    if not 0 <= rate <= 1 / window:
        raise PlugError(
            f"rate must be in [0, 1 / window] = [0, {1 / window:.4g}], because windows do not "
            f"overlap; got {rate}"
        )

    def shuffle(example: dict[str, tf.Tensor], seeds: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        tokens = flat_values(example["encoder_input_tokens"])
        weights = flat_values(example["encoder_loss_weights"])

        # Special tokens at both ends prevent windows across two examples of a batch.
        def fixed(places: tf.Tensor) -> tf.Tensor:
            special = is_special(tf.gather(tokens, places), vocabulary)
            return special | (tf.gather(weights, places) > 0)

        mixed, shuffled = shuffle_tokens(tokens, fixed, seeds, window=window, rate=rate)
        if label_moved_only:
            shuffled *= tf.cast(mixed != tokens, tf.int32)
        changed = {
            "encoder_input_tokens": mixed,
            "encoder_loss_weights": tf.maximum(weights, shuffled),
            "encoder_shuffled": shuffled,
        }
        like = example["encoder_input_tokens"]
        return {**example, **{name: with_flat_values(like, new) for name, new in changed.items()}}

    return seqio.map_over_dataset(shuffle, num_seeds=2)(dataset)


def shuffle_tokens(
    tokens: tf.Tensor,
    fixed: Callable[[tf.Tensor], tf.Tensor],
    seeds: Sequence[tf.Tensor],
    *,
    window: int,
    rate: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Shuffles windows of one sequence: int32 [n] to (int32 [n], shuffled int32 [n]).

    `fixed` maps positions, int64 [...], to whether their tokens are fixed, bool [...]; windows with
    a fixed token are not shuffled. `seeds` are two int [2] seeds: for the windows and for the
    orders within them. `shuffled` is 1 in the shuffled windows.
    """
    window_seed, order_seed = seeds
    # W windows are drawn, w of them kept; K positions each.
    starts = draw_window_starts(tf.size(tokens), window_seed, window=window, rate=rate)
    positions = starts[:, tf.newaxis] + tf.range(window, dtype=tf.int64)  # [W, K]
    free = tf.logical_not(tf.reduce_any(fixed(positions), axis=1))
    positions = tf.gather(positions, tf.where(free)[:, 0])  # [w, K]
    keys = tf.random.stateless_uniform(tf.shape(positions), order_seed)
    sources = tf.gather(positions, tf.argsort(keys), batch_dims=1)  # [w, K]
    targets = positions[:, :, tf.newaxis]
    mixed = tf.tensor_scatter_nd_update(tokens, targets, tf.gather(tokens, sources))
    shuffled = tf.scatter_nd(targets, tf.ones_like(positions, tf.int32), tf.shape(tokens, tf.int64))
    return mixed, shuffled


def draw_window_starts(
    length: tf.Tensor, seed: tf.Tensor, *, window: int, rate: float
) -> tf.Tensor:
    """Starts of non-overlapping windows within `length` positions: increasing int64 [w].

    Every start that leaves room for its window has probability exactly `rate`, independently of
    the tokens and their masking.

    The starts are a segment of a stationary process: each free position starts a window with
    probability q, which occupies `window` positions. So starts are `window` + (1 - q) / q apart on
    average, which q = rate / (1 - (window - 1) rate) makes 1 / rate. A window has started at each
    of positions -1 ... -(window - 1) with probability `rate`, and blocks the first positions.
    """
    blocked_rates = rate * np.arange(1, window)
    free_rate = rate / (1 - (window - 1) * rate)
    draws = tf.random.stateless_uniform([length + 1], seed)
    blocked = tf.math.count_nonzero(draws[0] < blocked_rates)
    # One draw per step: a step is one position, or a whole window if one starts. The i-th window
    # starts after as many steps as its index among the draws, i of which were whole windows.
    steps = tf.where(draws[1:] < free_rate)[:, 0]
    starts = blocked + steps + (window - 1) * tf.range(tf.size(steps, tf.int64), dtype=tf.int64)
    fitting = tf.math.count_nonzero(starts <= tf.cast(length, tf.int64) - window)
    return starts[:fitting]
