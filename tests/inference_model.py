"""A small model over letters whose greedy texts are varied."""

from __future__ import annotations

import copy
import functools
import math

import jax
import numpy as np

from plug_jax.config import PlugConfig
from plug_jax.inference.model import InferenceModel
from plug_jax.models.plug import PlugModel
from tests import reference_model

CONFIG = PlugConfig(
    vocab_size=60,
    hidden_size=32,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    max_positions=48,
    vocab_multiple=64,
)


class Letters:
    """A vocabulary of one id per letter, after PLUG's special ids and an extra control id."""

    pad_id, unk_id, cls_id, sep_id, mask_id = range(5)
    special_ids = (0, 1, 2, 3, 4, 5)
    vocab_size = CONFIG.vocab_size

    def encode(self, text):
        return [ord(letter) - ord("A") + 6 for letter in text]

    def decode(self, ids):
        assert all(6 <= token < self.vocab_size for token in ids)
        return "".join(chr(token - 6 + ord("A")) for token in ids)


NOT_TEXT = [0, 1, 2, 4, 5, *range(CONFIG.vocab_size, CONFIG.padded_vocab_size)]


def lively_params(config):
    """Random parameters whose decoder depends on the prompt and generates more than one token."""
    params = reference_model.random_params(config, seed=0)
    params["embeddings"]["position_embeddings"] *= 3
    words = params["embeddings"]["word_embeddings"]
    words[[3, 15]] = words[[15, 3]]  # with [SEP] in this position, the greedy texts tried here end
    params["decoder"]["layers"]["cross_attention"]["out"]["kernel"] *= 4
    params["decoder"]["layers"]["mlp"]["wo"]["kernel"] *= 4
    if config.norm_placement == "pre":
        params["decoder"]["final_norm"]["bias"] *= 0.2
    return params


@functools.cache
def lively_model() -> InferenceModel:
    """The model of CONFIG, shared by a process's tests for its compiled programs."""
    return InferenceModel(CONFIG, lively_params(CONFIG), Letters())


def broken_model(number=math.nan) -> InferenceModel:
    """`lively_model` with NaN weights, or `number` times as large."""
    model = copy.copy(lively_model())  # including the compiled programs
    model.params = jax.tree.map(lambda leaf: leaf * number, model.params)
    return model


@functools.cache
def jitted(config, method, *, unstacked_layers=False, **options):
    """A method of the bare model as a compiled function of (params, ...)."""
    model = PlugModel(config, unstacked_layers=unstacked_layers)
    return jax.jit(
        lambda params, *args, **arrays: model.apply(
            {"params": params}, *args, **arrays, **options, method=method
        )
    )


def padded(rows, length):
    """Rows of ids as an int32 matrix, padded with [PAD] = 0."""
    return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)
