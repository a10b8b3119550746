"""cuDNN's attention: the calls to the GPU, and, where there is one, equality with dot attention."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.errors import PlugError
from plug_jax.ops import attention
from plug_jax.ops.cudnn_attention import cudnn_attention, cudnn_takes
from tests.ops.test_splash_attention import CROSS_KEYS, DECODER, ENCODER, normal

needs_gpu = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="runs on a GPU; without one its lowering is tested"
)
ROWS = pytest.mark.parametrize(
    ("query_segments", "key_segments", "causal"),
    [(ENCODER, ENCODER, False), (ENCODER, ENCODER, True), (DECODER, CROSS_KEYS, False)],
    ids=["encoder", "causal", "cross"],
)
CUDNN = "jax._src.cudnn.fused_attention_stablehlo"


@pytest.fixture
def traced_for_h100() -> Iterator[None]:
    """JAX's queries to the GPU during tracing, answered as an H100 with cuDNN 9.10 would."""
    with (
        mock.patch(f"{CUDNN}.check_cudnn_version", return_value=91000),
        mock.patch(f"{CUDNN}.check_compute_capability", return_value=True),
    ):
        yield


def with_gradients(attend: Callable[..., jax.Array], *arrays: jax.Array) -> tuple[jax.Array, ...]:
    output, pull = jax.vjp(attend, *arrays)
    return (output, *pull(normal(output.shape, 9).astype(output.dtype)))


def inputs(query_segments: jax.Array, key_segments: jax.Array) -> list[jax.Array]:
    """Queries, keys and values in bfloat16 for these rows: two heads of 64."""
    lengths = (query_segments.shape[1], key_segments.shape[1], key_segments.shape[1])
    return [
        normal((len(query_segments), n, 2, 64), seed).astype(jnp.bfloat16)
        for seed, n in enumerate(lengths)
    ]


@needs_gpu
@ROWS
def test_equals_dot_attention_with_gradients(
    query_segments: jax.Array, key_segments: jax.Array, causal: bool
) -> None:
    """As splash's test: packed rows, queries without keys, keys without queries."""
    mask = attention.segment_mask(query_segments, key_segments)
    mask = mask & attention.causal_mask(key_segments.shape[1]) if causal else mask
    cudnn = functools.partial(
        cudnn_attention, query_segments=query_segments, key_segments=key_segments, causal=causal
    )
    arrays = inputs(query_segments, key_segments)
    got = [
        np.asarray(a, np.float32) for a in jax.jit(with_gradients, static_argnums=0)(cudnn, *arrays)
    ]
    dot = functools.partial(attention.dot_product_attention, mask=mask)
    exact = with_gradients(dot, *(a.astype(jnp.float32) for a in arrays))
    for a, b in zip(got, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.03)
    sees, seen = (np.asarray(mask.any(axis)[:, 0]) for axis in (3, 2))
    for array, used in zip(got, (sees, sees, seen, seen), strict=True):
        np.testing.assert_array_equal(array[~used], 0)


@ROWS
@pytest.mark.usefixtures("traced_for_h100")
def test_lowered_for_cuda(query_segments: jax.Array, key_segments: jax.Array, causal: bool) -> None:
    """One forward and one backward kernel, with the segments as a bias shared by the heads."""
    cudnn = functools.partial(cudnn_attention, causal=causal)

    def step(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        *arrays, queries, keys = arrays
        return with_gradients(lambda *qkv: cudnn(*qkv, queries, keys), *arrays)

    kernels = ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]
    exported = jax.export.export(
        jax.jit(step),
        platforms=["cuda"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(name) for name in kernels],
    )(*inputs(query_segments, key_segments), query_segments, key_segments)
    text = exported.mlir_module()
    assert re.findall(r"custom_call @(\S+?)\(", text) == kernels
    rows, queries, keys = *query_segments.shape, key_segments.shape[1]
    assert f"tensor<{rows}x1x{queries}x{keys}xbf16>" in text
    assert f"tensor<{rows}x2x{queries}x{keys}x" not in text  # the scores of the heads
    assert set(re.findall(r"mask_type\\22: \\22(\w+)\\22", text)) == {
        "CAUSAL" if causal else "NO_MASK"
    }


def test_same_numbers_through_jax_own_reference() -> None:
    """With the kernel's mask, JAX's own implementation gives dot attention's results."""
    arrays = inputs(ENCODER, ENCODER)
    mask = attention.segment_mask(ENCODER, ENCODER) & attention.causal_mask(256)
    plain = jax.nn.dot_product_attention

    def as_xla(*arrays: jax.Array, implementation: str, **options: object) -> jax.Array:
        assert implementation == "cudnn"
        return plain(*arrays, implementation="xla", **options)

    with mock.patch("jax.nn.dot_product_attention", as_xla):
        got = cudnn_attention(*arrays, ENCODER, ENCODER, causal=True)
    expected = attention.dot_product_attention(*arrays, mask=mask)
    np.testing.assert_allclose(
        got.astype(np.float32), expected.astype(np.float32), rtol=0.02, atol=0.02
    )


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is cuDNN")
def test_without_cudnn() -> None:
    with pytest.raises(PlugError, match=r"'cudnn' does not run here: cuDNN.*'auto' or 'dot'"):
        cudnn_attention(*inputs(ENCODER, ENCODER), ENCODER, ENCODER)


@pytest.mark.usefixtures("traced_for_h100")
@pytest.mark.parametrize(
    ("head_dim", "dtype", "says"),
    [(60, jnp.bfloat16, "multiple of 8"), (64, jnp.float32, "dtype")],
)
def test_what_the_kernel_does_not_take(head_dim: int, dtype: type, says: str) -> None:
    arrays = [normal((2, 256, 2, head_dim), seed).astype(dtype) for seed in range(3)]
    with pytest.raises(PlugError, match=f"{says}.*'auto' or 'dot'"):
        jax.eval_shape(cudnn_attention, *arrays, ENCODER, ENCODER)


@pytest.mark.parametrize(
    ("head_dim", "lengths", "takes"),
    [(64, (512, 256), True), (60, (512,), False), (256, (512,), False), (64, (512, 255), False)],
)
def test_what_auto_takes_it_for(head_dim: int, lengths: tuple[int, ...], takes: bool) -> None:
    assert cudnn_takes(head_dim, lengths) == takes
