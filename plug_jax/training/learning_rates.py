"""Learning rates that differ between parts of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import unflatten_dict

from plug_jax.parameter_paths import STACK, by_path, covered, layers_of
from plug_jax.techniques.lora import LORA


def learning_rate_scales(
    layer_decay: float, multipliers: Mapping[str, float], params: Mapping[str, Any]
) -> Any:
    """Learning rate multipliers: a tree of float32 like `params`.

    float32 [layers,1,...] for stacked arrays, float32 [] for others. None: all are 1.

    Layer-wise decay is ELECTRA's (google-research/electra, `_get_layer_lrs`): with n layers, depth
    k gets layer_decay ** (n + 2 - k). Embeddings are at depth 0, layer i at i + 1, and all heads,
    the model's (mlm_head, pooler, sentence_head) and the objectives', at n + 2. A decoder continues
    where the encoder ends: its layers count too, and its layer i is at num_encoder_layers + i + 1.
    The norm after a stack's last layer is at the depth of the next layer. LoRA's parameters are at
    the depth of the kernels that they update.

    Raises:
        PlugError: a multiplier for missing parameters.
    """
    if layer_decay == 1.0 and not multipliers:
        return None
    shapes = by_path(params)
    scales = _layer_decay(layer_decay, shapes)
    for pattern, factor in multipliers.items():
        for path, where in covered("learning_rate_multipliers", pattern, shapes).items():
            where = where.reshape(where.shape + (1,) * (scales[path].ndim - where.ndim))
            scales[path] = np.where(where, scales[path] * factor, scales[path])
    return unflatten_dict({p: s.astype(np.float32) for p, s in scales.items()}, sep="/")


def scale_by(scales: Any) -> optax.GradientTransformation:
    """Multiplies updates by `scales`, a tree like theirs."""

    def update(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        return jax.tree.map(lambda u, s: u * s, updates, scales)

    return optax.stateless(update)


def _layer_decay(decay: float, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    encoder, decoder = (_stack_size(shapes, name) for name in ("encoder", "decoder"))
    above = encoder + decoder + 2

    def depth(path: str, leaf: Any) -> np.ndarray:
        module, *rest = path.removeprefix(f"{LORA}/").split("/")
        if module == "embeddings":
            return np.array(0)
        if module not in ("encoder", "decoder"):
            return np.array(above)
        below = encoder if module == "decoder" else 0
        if STACK in rest:
            layers = np.arange(leaf.shape[0]).reshape(-1, *[1] * (len(leaf.shape) - 1))
            return below + 1 + layers
        return np.array(below + 1 + (decoder if module == "decoder" else encoder))

    return {path: decay ** (above - depth(path, leaf)) for path, leaf in shapes.items()}


def _stack_size(shapes: Mapping[str, Any], module: str) -> int:
    sizes = (layers_of(p, leaf) for p, leaf in shapes.items() if p.startswith(f"{module}/"))
    return next(filter(None, sizes), 0)
