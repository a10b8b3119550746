"""The parameter tree: the model's, its objectives' heads, LoRA's."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import Objectives, abstract_heads, init_heads
from plug_jax.techniques.lora import LORA, Lora

# Key in the tree of the parameters of the objectives' own heads.
HEADS = "heads"


def abstract_params(model: PlugModel, objectives: Objectives = (), lora: Lora | None = None) -> Any:
    """The parameter tree as ShapeDtypeStructs, boxed with logical axes.

    The objectives' heads are under `heads`, LoRA's parameters under `lora`, if there are any.
    """
    params = jax.eval_shape(lambda: _boxed_params(model, jax.random.key(0)))
    heads = abstract_heads(objectives, model.config)
    params = {**params, HEADS: heads} if heads else params
    return params if lora is None else {**params, LORA: lora.abstract(params)}


def init_params(
    model: PlugModel, rng: jax.Array, objectives: Objectives = (), lora: Lora | None = None
) -> Any:
    """Initialised parameters, a tree of float32 arrays."""
    params = nn.unbox(_boxed_params(model, rng))
    heads = init_heads(objectives, model.config, rng)
    params = {**params, HEADS: heads} if heads else params
    if lora is None:
        return params
    return {**params, LORA: lora.init(abstract_params(model), rng)}


# Traced once for each model and mesh: a run asks for the tree several times. Axis rules, which the
# cache does not know, concern only the forward pass, and nothing of that is returned.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _boxed_params(model: PlugModel, rng: jax.Array) -> Any:
    return model.init(rng, jnp.zeros((1, 1), jnp.int32))["params"]


def with_shardings(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of a tree's leaves with these shardings."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
    )
