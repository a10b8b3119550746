"""The product and its gradients equal lax's, whatever operand they transpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from plug_jax.ops.linear import add_bias, linear

# Shapes of activations and weight, and the contracted axes of each.
PRODUCTS = {
    "wider": ((3, 5, 4), (4, 16), ((2,), (0,))),
    "narrower": ((3, 5, 16), (16, 4), ((2,), (0,))),
    "queries, keys and values": ((3, 5, 4), (4, 3, 2, 6), ((2,), (0,))),
    "heads": ((3, 5, 2, 6), (2, 6, 12), ((2, 3), (0, 1))),
    "heads to fewer": ((3, 5, 2, 6), (2, 6, 4), ((2, 3), (0, 1))),
    "logits": ((3, 5, 4), (16, 4), ((2,), (1,))),
    "logits of few": ((3, 5, 16), (4, 16), ((2,), (1,))),
    "contracted in another order": ((3, 6, 5, 2), (7, 2, 6), ((3, 1), (1, 2))),
    "one token": ((4,), (4, 6), ((0,), (0,))),
    "no tokens": ((3, 0, 4), (4, 6), ((2,), (0,))),
}


@pytest.fixture(autouse=True)
def one_cpu(monkeypatch):
    monkeypatch.setattr("plug_jax.ops.linear.on_one_cpu", lambda: True)


def both(shapes, axes, dtype, preferred=None):
    """(Output, gradients) of ours and of lax, for a random output gradient."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, weight = (
        jax.random.normal(k, shape, dtype) for k, shape in zip(keys[:2], shapes, strict=True)
    )
    numbers = (axes, ((), ()))

    def of(function):
        output, pull = jax.vjp(
            lambda x, w: function(x, w, numbers, preferred_element_type=preferred), x, weight
        )
        gradient = jax.random.normal(keys[2], output.shape, output.dtype)
        return output, *pull(gradient)

    return of(linear), of(lax.dot_general)


@pytest.mark.parametrize("name", PRODUCTS)
def test_it_is_laxs_product_with_its_gradients(name):
    *shapes, axes = PRODUCTS[name]
    ours, theirs = both(shapes, axes, jnp.float32)
    np.testing.assert_array_equal(ours[0], theirs[0])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_types_are_laxs(preferred):
    *shapes, axes = PRODUCTS["logits"]
    ours, theirs = both(shapes, axes, jnp.bfloat16, preferred)
    assert [a.dtype for a in ours] == [a.dtype for a in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            mine.astype(jnp.float32), other.astype(jnp.float32), rtol=1e-2, atol=1e-3
        )


def test_gradients_of_gradients_are_laxs():
    """SMART needs gradients of gradients."""

    def twice(function):
        def inner(x, w):
            numbers = (((1,), (0,)), ((), ()))
            return jnp.sum(jnp.sin(function(x, w, numbers)))

        return jax.grad(lambda x, w: jnp.sum(jax.grad(inner, argnums=1)(x, w) ** 2), argnums=(0, 1))

    x, w = jnp.linspace(0, 1, 12).reshape(3, 4), jnp.linspace(-1, 1, 8).reshape(4, 2)
    for mine, other in zip(twice(linear)(x, w), twice(lax.dot_general)(x, w), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("turned", [True, False])
def test_only_programs_for_one_cpu_are_others(monkeypatch, turned):
    monkeypatch.setattr("plug_jax.ops.linear.on_one_cpu", lambda: turned)
    numbers = (((1,), (1,)), ((), ()))
    gradient = jax.grad(lambda w: jnp.sum(linear(jnp.ones((3, 2)), w, numbers)))
    assert ("optimization_barrier" in str(jax.make_jaxpr(gradient)(jnp.ones((4, 2))))) is turned


@pytest.mark.parametrize("shape", [(3, 5, 16), (7, 16), (16,)])
def test_a_bias_gets_the_sum_over_all_tokens(shape):
    x, bias, upstream = (
        jax.random.normal(key, size)
        for key, size in zip(
            jax.random.split(jax.random.key(1), 3), (shape, shape[-1:], shape), strict=True
        )
    )
    output, pull = jax.vjp(add_bias, x, bias)
    np.testing.assert_array_equal(output, x + bias)
    of_x, of_bias = pull(upstream)
    np.testing.assert_array_equal(of_x, upstream)
    np.testing.assert_allclose(of_bias, upstream.reshape(-1, 16).sum(0), rtol=1e-5, atol=1e-6)
