"""Dropout of arrays: how often, which, and what remains."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from plug_jax.models.layers import Dropout
from plug_jax.ops.dropout import dropout

KEY = jax.random.key(3)


@pytest.fixture(params=["cpu", "tpu"])
def platform(request, monkeypatch):
    """The devices that it is traced for."""
    monkeypatch.setattr("plug_jax.ops.dropout.target_platform", lambda: request.param)
    return request.param


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 0.999])
@pytest.mark.parametrize("shape", [(200_001,), (400, 501), (4, 50, 1000)])
def test_elements_are_zero_as_often_as_asked_and_the_mean_stays(rate, shape, platform):
    dropped = np.asarray(dropout(jnp.ones(shape), rate, KEY))
    share = np.mean(dropped == 0)
    assert abs(share - rate) <= 5 * np.sqrt(rate * (1 - rate) / dropped.size)
    (kept,) = np.unique(dropped[dropped != 0])
    assert kept == pytest.approx(1 / (1 - rate), rel=1e-6)


@pytest.mark.parametrize("shape", [(), (7,), (4, 9), (3, 5, 1, 8)])
def test_it_drops_what_flax_drops(shape, platform):
    x = jax.random.normal(jax.random.key(1), shape)
    for key in jax.random.split(KEY, 3):
        flax_s = nn.Dropout(0.3).apply({}, x, deterministic=False, rng=key)
        np.testing.assert_allclose(dropout(x, 0.3, key), flax_s, rtol=1e-6)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_other_generators_draw_their_own(impl):
    x, key = jnp.ones((40, 9)), jax.random.key(3, impl=impl)
    flax_s = nn.Dropout(0.3).apply({}, x, deterministic=False, rng=key)
    np.testing.assert_allclose(dropout(x, 0.3, key), flax_s, rtol=1e-6)


def test_keys_in_the_old_style_are_the_same():
    x = jnp.ones((4, 9))
    np.testing.assert_array_equal(dropout(x, 0.3, jax.random.PRNGKey(3)), dropout(x, 0.3, KEY))


def test_no_element_says_anything_of_another():
    zero = np.asarray(dropout(jnp.ones((2000, 128)), 0.5, KEY)) == 0
    correlations = np.corrcoef(zero, rowvar=False) - np.eye(128)
    assert np.abs(correlations).max() < 5.5 / np.sqrt(2000)
    assert np.abs(np.corrcoef(zero[:100]) - np.eye(100)).max() < 5.5 / np.sqrt(128)


def test_another_key_drops_others():
    other = dropout(jnp.ones((64, 64)), 0.5, jax.random.key(4))
    assert 0.4 < np.mean(np.asarray(other != dropout(jnp.ones((64, 64)), 0.5, KEY))) < 0.6


def test_the_gradient_passes_where_the_value_does(platform):
    x = jax.random.normal(jax.random.key(1), (16, 33))
    value, pullback = jax.vjp(lambda x: dropout(x, 0.3, KEY), x)
    (gradient,) = pullback(jnp.ones_like(x))
    np.testing.assert_allclose(gradient * x, value, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_stays(dtype, platform):
    assert dropout(jnp.ones((2, 8), dtype), 0.1, KEY).dtype == dtype


def test_it_is_the_same_however_the_array_is_sharded():
    x = jax.random.normal(jax.random.key(1), (4, 8, 64))
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    expected = dropout(x, 0.1, KEY)
    for spec in (("data",), (None, "model"), ("data", "model"), ("data", None, "model")):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        program = jax.jit(
            lambda x: dropout(x, 0.1, KEY), in_shardings=sharding, out_shardings=sharding
        )
        np.testing.assert_array_equal(program(jax.device_put(x, sharding)), expected)


def test_the_module_does_nothing_if_it_is_not_to():
    x = jnp.ones((4, 8))
    assert Dropout(0.5).apply({}, x, deterministic=True) is x
    assert Dropout(0.0).apply({}, x, deterministic=False) is x
    dropped = Dropout(0.5).apply({}, x, deterministic=False, rngs={"dropout": KEY})
    assert 0 < np.sum(np.asarray(dropped) == 0) < x.size
