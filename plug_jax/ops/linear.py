"""A matmul whose gradient is fast on XLA's CPU backend.

A weight's gradient contracts activations and their gradients over all tokens. For this, XLA's CPU
backend copies one of them transposed, by default often the wider one, or uses a slower kernel. Its
fastest kernel contracts the first axes of two matrices, the narrower one on the left. So here all
tokens are one axis, and the result, which is no larger than the weight, is transposed if need be.
With several devices it is lax.dot_general, since tokens may be sharded along two axes.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from plug_jax.ops.platform import on_one_cpu, target_platform

# ((contracted axes of x, of the weight), ((), ())), as lax.dot_general has them.
DimensionNumbers = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[()], tuple[()]]]


def linear(
    x: jax.Array,
    weight: jax.Array,
    dimension_numbers: DimensionNumbers,
    precision: None = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`lax.dot_general` without batch axes, bitwise equal; for `dot_general` of Flax's layers.

    Args:
        x: activations, [tokens..., contracted...] in any order.
        weight: [contracted..., features...] in any order.
        dimension_numbers: which axes are contracted.
        precision: only XLA's default.
        preferred_element_type: of the result; None: that of the arguments.

    Returns:
        [tokens..., features...].
    """
    (of_x, of_weight), batch = dimension_numbers
    assert precision is None and tuple(map(tuple, batch)) == ((), ())
    contracted = tuple(of_x), tuple(of_weight)
    product = _linear if on_one_cpu() else _product
    return product(x, weight, contracted, preferred_element_type)


def _product(x: jax.Array, weight: jax.Array, contracted: Any, dtype: Any) -> jax.Array:
    return lax.dot_general(x, weight, (contracted, ((), ())), preferred_element_type=dtype)


_linear = jax.custom_vjp(_product, nondiff_argnums=(2, 3))


def _forward(x: jax.Array, weight: jax.Array, contracted: Any, dtype: Any) -> Any:
    return _product(x, weight, contracted, dtype), (x, weight)


def _backward(contracted: Any, dtype: Any, saved: Any, gradient: jax.Array) -> Any:
    x, weight = saved
    (of_x,) = jax.linear_transpose(lambda x: _product(x, weight, contracted, dtype), x)(gradient)
    return of_x, _weight_gradient(x, weight, gradient, contracted, dtype)


_linear.defvjp(_forward, _backward)


def _weight_gradient(
    x: jax.Array, weight: jax.Array, gradient: jax.Array, contracted: Any, dtype: Any
) -> jax.Array:
    of_x, of_weight = contracted
    tokens = [axis for axis in range(x.ndim) if axis not in of_x]
    features = [axis for axis in range(weight.ndim) if axis not in of_weight]
    inputs = [of_weight[of_x.index(axis)] for axis in sorted(of_x)]  # in x's order
    shape = [weight.shape[axis] for axis in inputs], [weight.shape[axis] for axis in features]
    count = math.prod(x.shape[axis] for axis in tokens)
    first = jnp.transpose(x, tokens + sorted(of_x)).reshape(count, math.prod(shape[0]))
    second = gradient.reshape(count, math.prod(shape[1]))
    axes = inputs + features  # of the weight, in the product's order
    if first.shape[1] > second.shape[1]:
        first, second, axes = second, first, features + inputs
    product = lax.dot_general(
        first, second, (((0,), (0,)), ((), ())), preferred_element_type=dtype
    ).astype(weight.dtype)
    product = product.reshape([weight.shape[axis] for axis in axes])
    if axes == sorted(axes):
        return product
    # Otherwise XLA would merge this into one product that transposes the wider one.
    return jnp.transpose(lax.optimization_barrier(product), [axes.index(i) for i in sorted(axes)])


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [tokens..., V] + bias [V], for a large V.

    The bias's gradient is a sum over all tokens, for which XLA's CPU backend takes about ten times
    as long as for a product with ones, if V is a vocabulary. On other devices it is a sum.
    """
    return (_add_bias if target_platform() == "cpu" else jnp.add)(x, bias)


@jax.custom_vjp
def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + bias


def _bias_gradient(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    *tokens, _size = gradient.shape
    axes = tuple(range(len(tokens)))
    ones = jnp.ones(tokens, gradient.dtype)
    return gradient, lax.dot_general(ones, gradient, ((axes, axes), ((), ())))


_add_bias.defvjp(lambda x, bias: (x + bias, None), _bias_gradient)
