"""The JAX model in float32 against the float64 NumPy reference, on random parameters and inputs."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from plug_jax.config import PlugConfig
from plug_jax.models.plug import PlugModel
from tests import reference_model

PLUG = PlugConfig(
    vocab_size=101,
    hidden_size=24,
    num_encoder_layers=3,
    num_decoder_layers=2,
    num_heads=3,
    head_dim=8,
    mlp_dim=40,
    max_positions=37,
    norm_placement="pre",
)
CONFIGS = {
    "plug": PLUG,
    "plug_released_inference": dataclasses.replace(PLUG, encoder_final_norm_repeats=2),
    "unrolled": dataclasses.replace(PLUG, scan_layers=False),
    "pooler": dataclasses.replace(PLUG, use_pooler=True, num_sentence_classes=2),
    "post_norm": dataclasses.replace(PLUG, norm_placement="post"),
    "bert": dataclasses.replace(
        PLUG,
        norm_placement="post",
        use_pooler=True,
        layer_norm_epsilon=1e-12,
        num_token_types=2,
        num_decoder_layers=0,
    ),
    "heads_narrower_than_hidden": dataclasses.replace(
        PLUG, hidden_size=13, num_heads=5, head_dim=7, mlp_dim=11
    ),
}
ENCODER_LENGTH, DECODER_LENGTH = 19, 11


def plain_batch(config, rng):
    """Two full rows; every optional input left out."""
    return {
        "tokens": rng.integers(0, config.vocab_size, (2, ENCODER_LENGTH), np.int32),
        "decoder_tokens": rng.integers(0, config.vocab_size, (2, DECODER_LENGTH), np.int32),
    }


def packed_batch(config, rng):
    """Rows of three, one and two examples, with padding on both sides."""
    segments = _segments([[7, 3, 5], [19], [1, 12]], ENCODER_LENGTH)
    decoder_segments = _segments([[2, 4, 3], [8], [10, 1]], DECODER_LENGTH)
    return {
        "tokens": rng.integers(0, config.vocab_size, segments.shape, np.int32),
        "token_types": rng.integers(0, config.num_token_types, segments.shape, np.int32),
        "positions": _positions(segments),
        "segment_ids": segments,
        "decoder_tokens": rng.integers(0, config.vocab_size, decoder_segments.shape, np.int32),
        "decoder_positions": _positions(decoder_segments),
        "decoder_segment_ids": decoder_segments,
    }


def _segments(lengths, row_length):
    rows = np.zeros((len(lengths), row_length), np.int32)
    for row, row_lengths in zip(rows, lengths, strict=True):
        row[: sum(row_lengths)] = np.repeat(np.arange(len(row_lengths)) + 1, row_lengths)
    return rows


def _positions(segments):
    positions = np.zeros_like(segments)
    for row, row_segments in zip(positions, segments, strict=True):
        for segment in np.unique(row_segments[row_segments > 0]):
            row[row_segments == segment] = np.arange((row_segments == segment).sum())
    return positions


def outputs_of(encode, decode, mlm_logits, sentence_logits, config, batch):
    """All outputs of one implementation, zeroed at padding."""
    optional = {
        key: batch[key] for key in ("token_types", "positions", "segment_ids") if key in batch
    }
    hidden = encode(batch["tokens"], **optional)
    real = batch.get("segment_ids", np.ones_like(batch["tokens"]))[..., None] > 0
    outputs = {
        "encoder_hidden": hidden * real,
        "mlm_logits": mlm_logits(hidden) * real,
        "sentence_logits": sentence_logits(hidden) * real,
    }
    if config.num_decoder_layers:
        optional = {}
        if "segment_ids" in batch:
            optional = {
                "positions": batch["decoder_positions"],
                "segment_ids": batch["decoder_segment_ids"],
                "encoder_segment_ids": batch["segment_ids"],
            }
        logits = decode(batch["decoder_tokens"], hidden, **optional)
        segments = batch.get("decoder_segment_ids", np.ones_like(batch["decoder_tokens"]))
        outputs["decoder_logits"] = logits * (segments[..., None] > 0)
    return outputs


def jax_outputs(config, params, batch):
    model = PlugModel(config)

    def method(name):
        return lambda *args, **kwargs: model.apply({"params": params}, *args, method=name, **kwargs)

    names = ("encode", "decode", "mlm_logits", "sentence_logits")
    return jax.jit(lambda: outputs_of(*map(method, names), config, batch))()


def reference_outputs(config, params, batch):
    def method(function):
        return lambda *args, **kwargs: function(params, config, *args, **kwargs)

    functions = (
        reference_model.encode,
        reference_model.decode,
        reference_model.mlm_logits,
        reference_model.sentence_logits,
    )
    return outputs_of(*map(method, functions), config, batch)


@pytest.mark.parametrize("name", ["plug", "post_norm", "bert", "heads_narrower_than_hidden"])
def test_the_parameter_tree_is_the_documented_one(name):
    config = CONFIGS[name]
    tokens = np.zeros((1, 2), np.int32)
    variables = jax.eval_shape(PlugModel(config).init, jax.random.key(0), tokens)
    found = jax.tree.map(lambda leaf: leaf.shape, nn.meta.unbox(variables["params"]))
    assert found == reference_model.parameter_shapes(config)


@pytest.mark.parametrize(
    ("name", "make_batch"),
    [*((name, packed_batch) for name in CONFIGS), ("plug", plain_batch), ("bert", plain_batch)],
)
def test_the_model_matches_the_reference(name, make_batch):
    config = CONFIGS[name]
    params = reference_model.random_params(config, seed=0)
    batch = make_batch(config, np.random.default_rng(1))
    found = jax_outputs(config, params, batch)
    expected = reference_outputs(config, params, batch)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert np.abs(value).max() > 0.5, key  # the comparison is not of zeros
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["plug", "post_norm"])
def test_a_packed_example_gives_what_it_gives_alone(name):
    # Check the reference itself, which is only useful if its masks are right.
    config = CONFIGS[name]
    params = reference_model.random_params(config, seed=0)
    batch = packed_batch(config, np.random.default_rng(2))
    packed = reference_outputs(config, params, batch)
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            where = batch["segment_ids"][row] == segment
            decoder_where = batch["decoder_segment_ids"][row] == segment
            hidden = reference_model.encode(
                params,
                config,
                batch["tokens"][row, where][None],
                token_types=batch["token_types"][row, where][None],
            )
            logits = reference_model.decode(
                params, config, batch["decoder_tokens"][row, decoder_where][None], hidden
            )
            np.testing.assert_allclose(packed["encoder_hidden"][row, where], hidden[0], atol=1e-12)
            np.testing.assert_allclose(
                packed["decoder_logits"][row, decoder_where], logits[0], atol=1e-12
            )
