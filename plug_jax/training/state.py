"""The training state and its sharded initialisation."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from plug_jax.checkpoints.parameters import abstract_params, init_params, with_shardings
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import Objectives
from plug_jax.partitioning import Partitioner
from plug_jax.techniques.lora import Lora
from plug_jax.training.safety import SafetyState
from plug_jax.training.trained import EVERYTHING, Trained


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
        """ShapeDtypeStructs with shardings, as targets for restoring a checkpoint."""
        state: TrainState = with_shardings(self.abstract, self.shardings)
        return state


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
    """An initial state, created directly on its devices: none ever holds all of it."""

    def init() -> TrainState:
        params = init_params(model, jax.random.key(seed), objectives, layout.lora)
        slots = optimizer.init(layout.trained.take(params))
        return TrainState(jnp.zeros((), jnp.int32), params, slots)

    return jax.jit(init, out_shardings=layout.shardings)()
