"""Masked language modelling: selecting and replacing encoder tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.data.preprocessors.slices import flat_values, with_flat_values
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

# Shares of the selected tokens that become [MASK] and a random token; the rest is unchanged.
MASK_SHARE = 0.8
RANDOM_SHARE = 0.1


@tf.autograph.experimental.do_not_convert  # converting takes seconds and changes nothing
def masked_language_model(
    dataset: tf.data.Dataset, *, vocabulary: PlugVocabulary, mask_rate: float = 0.15
) -> tf.data.Dataset:
    """Masks some of the encoder's tokens for the model to predict.

    Every token except special ones is selected independently with probability `mask_rate`. Of
    the selected, 80% become [MASK], 10% a random regular token and 10% stay (BERT, section 3.1;
    StructBERT and PLUG keep this rule, without whole-word masking).

    Takes examples or, which is faster, batches of them. Reads `encoder_original_tokens` (int32 [n]
    or ragged [b, None]); adds `encoder_input_tokens` (what the model sees) and
    `encoder_loss_weights` (1 at the selected tokens, 0 elsewhere) of the same shape. All other
    features pass through. Seeded by `seqio.map_seed_manager`.

    Example, with [CLS] = 2, [SEP] = 3, [MASK] = 4, regular ids 5 to 29, mask_rate = 0.5 and map
    seed 50: of the three selected tokens, 11 is replaced, 13 masked and 16 kept.

        encoder_original_tokens  [2, 11, 12, 13, 14, 15, 16, 3]
        encoder_input_tokens     [2, 19, 12,  4, 14, 15, 16, 3]
        encoder_loss_weights     [0,  1,  0,  1,  0,  0,  1, 0]

    Raises:
      PlugError: `mask_rate` is not within [0, 1].
    """
    if not 0 <= mask_rate <= 1:
        raise PlugError(f"mask_rate is a probability in [0, 1], got {mask_rate}")

    def mask(example: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        original = example["encoder_original_tokens"]
        tokens, selected = mask_tokens(flat_values(original), seed, vocabulary, rate=mask_rate)
        return {
            **example,
            "encoder_input_tokens": with_flat_values(original, tokens),
            "encoder_loss_weights": with_flat_values(original, selected),
        }

    return seqio.map_over_dataset(mask, num_seeds=1)(dataset)


def mask_tokens(
    tokens: tf.Tensor, seed: tf.Tensor, vocabulary: PlugVocabulary, *, rate: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Masks one sequence: int32 [n] and an int [2] seed to (corrupted int32 [n], selected [n]).

    `selected` is int32, 1 where a token was selected, whether or not it changed.
    """
    fate_seed, choice_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    fates = tf.random.stateless_uniform(tf.shape(tokens), fate_seed)  # in [0, 1)
    selected = (fates < rate) & ~is_special(tokens, vocabulary)
    places = tf.where(selected)
    fates, chosen = tf.gather_nd(fates, places), tf.gather_nd(tokens, places)
    regular_ids = tf.constant(vocabulary.regular_ids, tf.int32)
    choices = tf.random.stateless_uniform(
        tf.shape(chosen), choice_seed, maxval=len(vocabulary.regular_ids), dtype=tf.int32
    )
    replaced = tf.where(
        fates < (MASK_SHARE + RANDOM_SHARE) * rate, tf.gather(regular_ids, choices), chosen
    )
    replaced = tf.where(fates < MASK_SHARE * rate, vocabulary.mask_id, replaced)
    return tf.tensor_scatter_nd_update(tokens, places, replaced), tf.cast(selected, tf.int32)


def is_special(tokens: tf.Tensor, vocabulary: PlugVocabulary) -> tf.Tensor:
    """Tells the control tokens ([CLS], [SEP], [PAD] ...) from text: int [...] ids to bool [...]."""
    special = np.zeros(vocabulary.vocab_size, bool)
    special[list(vocabulary.special_ids)] = True
    return tf.gather(special, tokens)
