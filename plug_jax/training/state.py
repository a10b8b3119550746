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
from plug_jax.objectives.composition import Objectives, abstract_heads, init_heads
from plug_jax.partitioning import Partitioner
from plug_jax.techniques.lora import LORA, Lora
from plug_jax.training.safety import SafetyState
from plug_jax.training.trained import EVERYTHING, Trained

# Where the parameters of the objectives' own heads are in the tree, beside the model's.
HEADS = "heads"


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes."""

    step: Any  # int32 scalar: steps done
    params: Any  # float32
    opt_state: optax.OptState  # of the trained part of them
    safety: SafetyState = dataclasses.field(default_factory=SafetyState.start)


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Shapes and shardings of a TrainState, known before any array exists."""

    abstract: Any  # a TrainState of ShapeDtypeStructs
    shardings: Any  # a TrainState of NamedShardings
    gradients: Any  # NamedShardings of the gradients of the trained part
    trained: Trained = EVERYTHING
    lora: Lora | None = None

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
    model: PlugModel,
    objectives: Objectives,
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    trained: Trained = EVERYTHING,
    lora: Lora | None = None,
) -> StateLayout:
    """Shapes and shardings by abstract evaluation. PlugError when the mesh does not divide."""
    boxed = abstract_params(model, objectives, lora)
    params = nn.unbox(boxed)
    param_shardings = partitioner.param_shardings(boxed)
    part = jax.eval_shape(trained.take, params)
    gradients = partitioner.gradient_shardings(part, trained.select(param_shardings))
    opt_state = jax.eval_shape(optimizer.init, part)
    safety = jax.eval_shape(SafetyState.start)
    return StateLayout(
        TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, opt_state, safety),
        TrainState(
            partitioner.replicated,
            param_shardings,
            partitioner.optimizer_shardings(opt_state, part, gradients),
            jax.tree.map(lambda _: partitioner.replicated, safety),
        ),
        gradients,
        trained,
        lora,
    )


def init_state(
    model: PlugModel,
    objectives: Objectives,
    optimizer: optax.GradientTransformation,
    layout: StateLayout,
    *,
    seed: int,
) -> TrainState:
    """A fresh state, made in place on its devices: none ever holds the whole of it."""

    def init() -> TrainState:
        params = init_params(model, jax.random.key(seed), objectives, layout.lora)
        slots = optimizer.init(layout.trained.take(params))
        return TrainState(jnp.zeros((), jnp.int32), params, slots)

    return jax.jit(init, out_shardings=layout.shardings)()


def abstract_params(model: PlugModel, objectives: Objectives = (), lora: Lora | None = None) -> Any:
    """The parameter tree as ShapeDtypeStructs, still boxed with its logical axes.

    Under `heads` are those that the objectives bring, if any, and under `lora` LoRA's.
    """
    params = jax.eval_shape(lambda: _boxed_params(model, jax.random.key(0)))
    heads = abstract_heads(objectives, model.config)
    params = {**params, HEADS: heads} if heads else params
    return params if lora is None else {**params, LORA: lora.abstract(params)}


def init_params(
    model: PlugModel, rng: jax.Array, objectives: Objectives = (), lora: Lora | None = None
) -> Any:
    """Fresh parameters, a tree of float32 arrays."""
    params = nn.unbox(_boxed_params(model, rng))
    heads = init_heads(objectives, model.config, rng)
    params = {**params, HEADS: heads} if heads else params
    if lora is None:
        return params
    return {**params, LORA: lora.init(abstract_params(model), rng)}


def _boxed_params(model: PlugModel, rng: jax.Array) -> Any:
    return model.init(rng, jnp.zeros((1, 1), jnp.int32))["params"]
