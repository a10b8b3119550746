"""int8 weights for inference, quantized once with qwix, and the hook by which the model reads them.

The kernels of every projection in the encoder and decoder become int8 with a float32 scale per
output channel; activations, biases, norms and caches are unchanged. So are the embedding tables:
the word table is used for both look-up and logits, which rounding hurts most, and it is 0.6% of
PLUG's 27B parameters.

Axis letters: L stacked layers.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax.errors import PlugError


def quantize(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters in training's layout, with int8 kernels (qwix `QArray`) in encoder and decoder.

    Works kernel by kernel, on their devices and in their shardings. Takes over `params`: a kernel's
    device memory is freed once its integers exist.

    A kernel [2 inputs, 2 outputs] of [[1, -0.5], [-0.5, 0.1]] has the scales [1, 0.5] / 127.5 and
    the integers [[127, -127], [-64, 25]]: no weight is off by more than half a scale.

    Raises:
        PlugError: qwix is not installed.
    """
    quantized = functools.partial(_quantized, qwix=_qwix(), stacked=False)
    return {
        name: quantized(part) if name in ("encoder", "decoder") else part
        for name, part in params.items()
    }


def _quantized(tree: Any, *, qwix: ModuleType, stacked: bool) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    if "kernel" in tree:
        # [L?, inputs..., outputs...], next to a bias [L?, outputs...].
        kernel, first = tree["kernel"], int(stacked)
        inputs = range(first, first + kernel.ndim - tree["bias"].ndim)
        outputs = tuple(axis for axis in range(kernel.ndim) if axis not in inputs)
        integers = _quantize_kernel(kernel, qwix=qwix, outputs=outputs)
        if isinstance(kernel, jax.Array) and not isinstance(kernel, jax.core.Tracer):
            jax.block_until_ready(integers)
            kernel.delete()
        return {**tree, "kernel": integers}
    return {
        name: _quantized(child, qwix=qwix, stacked=stacked or name == "layers")
        for name, child in tree.items()
    }


@functools.partial(jax.jit, static_argnames=("qwix", "outputs"))
def _quantize_kernel(kernel: jax.Array, *, qwix: ModuleType, outputs: tuple[int, ...]) -> Any:
    return qwix.quantize(kernel.astype(jnp.float32), jnp.int8, channelwise_axes=outputs)


def dequantize_projections(
    call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    """For `nn.intercept_methods`: dequantizes the int8 kernel of a projection.

    The kernel is converted at its use, one layer at a time, also in a scan over layers: on TPU, XLA
    fuses this into the matmul, which then reads only integers from memory.
    """
    module = context.module
    if context.method_name != "__call__" or not isinstance(module, nn.DenseGeneral):
        return call(*args, **kwargs)
    params = module.variables["params"]
    if isinstance(params["kernel"], jax.Array):
        return call(*args, **kwargs)
    floats = {**params, "kernel": _qwix().dequantize(params["kernel"])}
    return module.clone(parent=None).apply({"params": floats}, *args, **kwargs)


def _qwix() -> ModuleType:
    try:
        return importlib.import_module("qwix")
    except ImportError:
        raise PlugError(
            "int8 needs qwix, which is not installed: pip install 'plug-jax[int8]'"
        ) from None
