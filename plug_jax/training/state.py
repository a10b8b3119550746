"""The training state and its sharded initialisation."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes."""

    step: Any  # int32 scalar: steps done
    params: Any  # float32
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Shapes and shardings of a TrainState, known before any array exists."""

    abstract: Any  # a TrainState of ShapeDtypeStructs
    shardings: Any  # a TrainState of NamedShardings
    gradients: Any  # NamedShardings of the parameters' gradients

    def with_shardings(self) -> TrainState:
        """ShapeDtypeStructs that carry their sharding: what a checkpoint is restored into."""
        state: TrainState = with_shardings(self.abstract, self.shardings)
        return state


def with_shardings(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs like the leaves of a tree, that carry these shardings."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
    )


def state_layout(
    model: PlugModel, optimizer: optax.GradientTransformation, partitioner: Partitioner
) -> StateLayout:
    """Shapes and shardings by abstract evaluation. PlugError when the mesh does not divide."""
    boxed = abstract_params(model)
    params = nn.unbox(boxed)
    param_shardings = partitioner.param_shardings(boxed)
    gradients = partitioner.gradient_shardings(params, param_shardings)
    opt_state = jax.eval_shape(optimizer.init, params)
    return StateLayout(
        TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, opt_state),
        TrainState(
            partitioner.replicated,
            param_shardings,
            partitioner.optimizer_shardings(opt_state, params, gradients),
        ),
        gradients,
    )


def init_state(
    model: PlugModel,
    optimizer: optax.GradientTransformation,
    layout: StateLayout,
    *,
    seed: int,
) -> TrainState:
    """A fresh state, made in place on its devices: none ever holds the whole of it."""

    def init() -> TrainState:
        params = init_params(model, jax.random.key(seed))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return jax.jit(init, out_shardings=layout.shardings)()


def abstract_params(model: PlugModel) -> Any:
    """The parameter tree as ShapeDtypeStructs, still boxed with its logical axes."""
    return jax.eval_shape(lambda: _boxed_params(model, jax.random.key(0)))


def init_params(model: PlugModel, rng: jax.Array) -> Any:
    """Fresh parameters, a tree of float32 arrays."""
    return nn.unbox(_boxed_params(model, rng))


def _boxed_params(model: PlugModel, rng: jax.Array) -> Any:
    return model.init(rng, jnp.zeros((1, 1), jnp.int32))["params"]
