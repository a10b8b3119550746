"""The model's attention boundaries, and equal results from layouts of the same computation."""

from __future__ import annotations

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.config import PlugConfig
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from tests import synthetic

PRE, POST = {"norm_placement": "pre"}, {"norm_placement": "post"}
BOTH = pytest.mark.parametrize("norm", [PRE, POST], ids=["pre", "post"])


def init(config: PlugConfig) -> dict:
    variables = jax.jit(PlugModel(config).init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return nn.unbox(variables)["params"]


def tokens(shape: tuple[int, ...], seed: int = 1) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), shape, 5, 90)


@BOTH
def test_decoder_is_causal_by_gradient(norm: dict) -> None:
    """d logits[q] / d embedding of token k is zero exactly where k > q."""
    config = synthetic.tiny_config(**norm)
    model, params = PlugModel(config), init(config)
    length = 6
    ids = jnp.arange(10, 10 + length)[None]  # all different: one embedding row per position
    encoded = jax.random.normal(jax.random.key(2), (1, 5, config.hidden_size))

    def logits(table: jax.Array) -> jax.Array:
        replaced = {**params, "embeddings": {**params["embeddings"], "word_embeddings": table}}
        hidden = model.apply({"params": replaced}, ids, encoded, method="decode")
        # Only one output column, whose row of the tied table is not an input.
        return hidden[0, :, 50]

    jacobian = jax.jit(jax.jacobian(logits))(params["embeddings"]["word_embeddings"])  # [q, V, M]
    depends = np.abs(jacobian[:, 10 : 10 + length]).sum(-1) > 0  # [q, k]
    np.testing.assert_array_equal(depends, np.tril(np.ones((length, length), bool)))


@BOTH
def test_segments_are_isolated_by_gradient(norm: dict) -> None:
    """Nothing flows between packed examples, within either side or across; nor from padding."""
    config = synthetic.tiny_config(**norm)
    model, params = PlugModel(config), init(config)
    encoder_segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    decoder_segments = jnp.array([[1, 1, 2, 2, 2, 0]])
    encoder_ids = jnp.arange(10, 18)[None]
    decoder_ids = jnp.arange(20, 26)[None]

    def outputs(table: jax.Array) -> tuple[jax.Array, jax.Array]:
        replaced = {**params, "embeddings": {**params["embeddings"], "word_embeddings": table}}
        encoded = model.apply(
            {"params": replaced}, encoder_ids, segment_ids=encoder_segments, method="encode"
        )
        logits = model.apply(
            {"params": replaced},
            decoder_ids,
            encoded,
            segment_ids=decoder_segments,
            encoder_segment_ids=encoder_segments,
            method="decode",
        )
        return encoded[0, :, 0], logits[0, :, 50]

    by_encoder, by_decoder = jax.jit(jax.jacobian(outputs))(params["embeddings"]["word_embeddings"])
    enc, dec = np.array(encoder_segments[0]), np.array(decoder_segments[0])
    seen = np.abs(by_encoder[:, 10:18]).sum(-1) > 0
    same = (enc[:, None] == enc[None]) & (enc[:, None] > 0)
    real = enc > 0
    np.testing.assert_array_equal(seen[real], same[real])
    seen = np.abs(by_decoder[:, 10:18]).sum(-1) > 0
    np.testing.assert_array_equal(seen[dec > 0], (dec[:, None] == enc[None])[dec > 0])
    seen = np.abs(by_decoder[:, 20:26]).sum(-1) > 0
    expected = (dec[:, None] == dec[None]) & np.tril(np.ones((6, 6), bool))
    np.testing.assert_array_equal(seen[dec > 0], expected[dec > 0])


@BOTH
def test_packed_equals_alone(norm: dict) -> None:
    """Examples that share a row give the same as each in its own row."""
    config = synthetic.tiny_config(**norm)
    model, params = PlugModel(config), init(config)
    batch = synthetic.batch(rows=2, decoder=20, seed=5)
    packed = forward(model, params, batch)
    compared = 0
    for row in range(2):
        for segment in range(1, int(batch["encoder_segment_ids"][row].max()) + 1):
            alone: dict[str, np.ndarray] = {}
            at = {
                side: batch[f"{side}_segment_ids"][row] == segment
                for side in ("encoder", "decoder")
            }
            for name, value in batch.items():
                side = "decoder" if name.startswith("decoder") else "encoder"
                alone[name] = np.zeros_like(value)  # the other row and the rest remain padding
                alone[name][0, : at[side].sum()] = value[row][at[side]]
            if not at["decoder"].any():
                continue
            encoded, logits = forward(model, params, alone)
            for side, got, expected in zip(at, (encoded, logits), packed, strict=True):
                np.testing.assert_allclose(
                    got[0, : at[side].sum()], expected[row][at[side]], atol=1e-5
                )
            compared += 1
    assert compared >= 3


@functools.partial(jax.jit, static_argnums=0)
def forward(model: PlugModel, params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    encoded = model.apply(
        {"params": params},
        batch["encoder_input_tokens"],
        positions=batch["encoder_positions"],
        token_types=batch["encoder_token_types"],
        segment_ids=batch["encoder_segment_ids"],
        method="encode",
    )
    logits = model.apply(
        {"params": params},
        batch["decoder_input_tokens"],
        encoded,
        positions=batch["decoder_positions"],
        segment_ids=batch["decoder_segment_ids"],
        encoder_segment_ids=batch["encoder_segment_ids"],
        method="decode",
    )
    return encoded, logits


@pytest.mark.slow
@pytest.mark.long
def test_scanned_unrolled_and_rematerialised_agree() -> None:
    """The same parameters, loss and gradients, with dropout on, for every layout of the code."""
    base = synthetic.tiny_config(dropout_rate=0.1, attention_dropout_rate=0.1)
    params = init(base)
    ids = tokens((2, 9))

    def loss_and_gradient(config: PlugConfig) -> tuple[jax.Array, dict]:
        model = PlugModel(config)

        def loss(params: dict, deterministic: bool = False) -> jax.Array:
            options = {"deterministic": deterministic, "rngs": {"dropout": jax.random.key(4)}}
            encoded = model.apply({"params": params}, ids, method="encode", **options)
            logits = model.apply({"params": params}, ids, encoded, method="decode", **options)
            return jnp.mean(logits**2)

        plain = jax.jit(functools.partial(loss, deterministic=True)).lower(params).as_text()
        assert ("stablehlo.while" in plain) == config.scan_layers  # drawing dropout also loops
        return jax.jit(jax.value_and_grad(loss))(params)

    expected = loss_and_gradient(base)
    for change in (
        {"scan_layers": False},
        {"remat_policy": "full"},
        {"remat_policy": "dots"},
        {"remat_policy": "names"},
        {"remat_policy": "offload", "remat_saved_names": ("input", "context", "wi")},
        {"scan_layers": False, "remat_policy": "full"},
    ):
        got = loss_and_gradient(dataclasses.replace(base, **change))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), expected, got
        )


def test_padding_rows_are_zero_in_attention_and_finite() -> None:
    """A decoder row without an encoder segment attends to nothing: finite outputs and gradients."""
    config = synthetic.tiny_config()
    model, params = PlugModel(config), init(config)
    encoded = jnp.ones((1, 4, config.hidden_size))

    def loss(params: dict) -> jax.Array:
        logits = model.apply(
            {"params": params},
            tokens((1, 5)),
            encoded,
            segment_ids=jnp.array([[1, 1, 3, 0, 0]]),
            encoder_segment_ids=jnp.array([[1, 1, 2, 2]]),
            method="decode",
        )
        return jnp.sum(logits**2)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_every_parameter_has_logical_axes_and_dtype() -> None:
    config = synthetic.tiny_config(use_pooler=True, dtype="bfloat16")
    boxed = PlugModel(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    known = {"embed", "mlp", "heads", "kv", "vocab", "position", "layers", None}
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim and set(leaf.names) <= known
        assert any(leaf.names) or leaf.value.shape == (config.num_sentence_classes,)
        assert leaf.value.dtype == jnp.float32
    encoded = PlugModel(config).apply({"params": nn.unbox(boxed)}, tokens((1, 4)), method="encode")
    assert encoded.dtype == jnp.bfloat16


def test_parameter_count_of_27b() -> None:
    """The released model has 26.10B unique parameters."""
    config = synthetic.plug_27b(use_pooler=True)  # the released model has its weights, unused
    shapes = jax.eval_shape(
        lambda: PlugModel(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(26.10, abs=0.005)


def test_config_says_what_is_wrong() -> None:
    with pytest.raises(PlugError, match=r"hidden_size must be at least 1, got 0; dropout_rate"):
        synthetic.tiny_config(hidden_size=0, dropout_rate=1.5)
    with pytest.raises(PlugError, match="norm_placement must be one of"):
        synthetic.tiny_config(norm_placement="middle")
    with pytest.raises(PlugError, match=r"'splash' has no dropout; set attention_dropout_rate = 0"):
        synthetic.tiny_config(attention="splash", attention_dropout_rate=0.1)
    with pytest.raises(PlugError, match=r"attention_block_size must be a multiple of 128, got 100"):
        synthetic.tiny_config(attention_block_size=100)
    with pytest.raises(PlugError, match="remat_saved_names must be .* 'wi', not .*'mlp'"):
        synthetic.tiny_config(remat_saved_names=("qkv", "mlp"))
    values = synthetic.tiny_config().to_dict()
    assert PlugConfig.from_dict(json.loads(json.dumps(values))) == synthetic.tiny_config()
    with pytest.raises(PlugError, match=r"no field 'hiden_size'; did you mean 'hidden_size'"):
        PlugConfig.from_dict({**values, "hiden_size": 3})
    del values["num_heads"]
    with pytest.raises(PlugError, match="missing num_heads"):
        PlugConfig.from_dict(values)
