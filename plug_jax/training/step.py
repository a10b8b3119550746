"""One training step and one evaluation step, as pure functions to be jitted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.training import objectives
from plug_jax.training.metrics import Mean
from plug_jax.training.objectives import Batch
from plug_jax.training.state import TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Mean]]]
EvalStep = Callable[[Any, Batch], dict[str, Mean]]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """How a batch is turned into an update."""

    micro_batches: int = 1  # gradients are summed over this many slices of the batch
    mlm_fraction: float = 1.0  # masked LM is on for this first part of the steps (stage 2: 0.9)
    # Positions of an encoder row that may be predicted, as a part of it. Stage 1 predicts 24% on
    # average (15% masked, 9% shuffled), stage 2 15%; what a row has beyond is counted.
    prediction_capacity: float = 0.375
    loss_chunk: int = 0  # positions of a row whose logits exist at one time; 0: all

    def __post_init__(self) -> None:
        if self.micro_batches < 1:
            raise PlugError(f"StepConfig.micro_batches must be 1 or more, got {self.micro_batches}")
        if self.loss_chunk < 0:
            raise PlugError(f"StepConfig.loss_chunk must be 0 or more, got {self.loss_chunk}")
        for name in ("mlm_fraction", "prediction_capacity"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise PlugError(f"StepConfig.{name} must be in [0, 1], got {getattr(self, name)}")

    def mlm_steps(self, train_steps: int) -> int:
        """The first step without masked LM."""
        return round(self.mlm_fraction * train_steps)


def make_train_step(
    model: PlugModel,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: StepConfig,
    *,
    train_steps: int,
    seed: int,
    grad_shardings: Any = None,
) -> TrainStep:
    """The step (state, batch) -> (state, metrics). Dropout's randomness is folded from the step.

    Gradients take `grad_shardings` (None: one device), and so does what micro-batches add them up
    in.
    """
    mlm_steps = config.mlm_steps(train_steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        metrics = objectives.batch_metrics(batch)
        batch = objectives.select_predictions(batch, capacity=config.prediction_capacity)
        batch = objectives.without_masked_lm(batch, state.step < mlm_steps)
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, trained = _gradients(model, state.params, batch, rng, config, grad_shardings)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        one = jnp.ones((), jnp.float32)
        metrics |= trained | {
            "grad_norm": Mean(optax.tree.norm(grads), one),
            "learning_rate": Mean(jnp.asarray(schedule(state.step), jnp.float32), one),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_eval_step(model: PlugModel, config: StepConfig) -> EvalStep:
    """The step (params, batch) -> metrics."""

    def eval_step(params: Any, batch: Batch) -> dict[str, Mean]:
        batch = objectives.select_predictions(batch, capacity=config.prediction_capacity)
        return objectives.evaluation_metrics(model, params, batch, chunk=config.loss_chunk)

    return eval_step


def _gradients(
    model: PlugModel,
    params: Any,
    batch: Batch,
    rng: jax.Array,
    config: StepConfig,
    grad_shardings: Any,
) -> tuple[Any, dict[str, Mean]]:
    """Gradient of the summed objectives, and their metrics, over all micro-batches.

    Each objective is divided by its weight in the whole batch, so any number of micro-batches
    gives the same gradient.
    """
    weights = objectives.objective_weights(batch)
    micro_batches = config.micro_batches

    def loss(params: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        metrics = objectives.training_metrics(model, params, batch, rng, chunk=config.loss_chunk)
        parts = [
            metrics[objectives.TRAINED[name]].total / jnp.maximum(weight, 1.0)
            for name, weight in weights.items()
        ]
        total = functools.reduce(jnp.add, parts)
        # Micro-batches hold shares of the loss: their sum is the batch's.
        metrics["loss"] = Mean(total, jnp.full((), 1.0 / micro_batches))
        return total, metrics

    def constrain(grads: Any) -> Any:
        if grad_shardings is None:
            return grads
        return lax.with_sharding_constraint(grads, grad_shardings)

    def gradient(params: Any, batch: Batch, rng: jax.Array) -> tuple[Any, dict[str, Mean]]:
        grads, metrics = jax.grad(loss, has_aux=True)(params, batch, rng)
        return constrain(grads), metrics

    if micro_batches == 1:
        return gradient(params, batch, rng)

    def split(x: jax.Array) -> jax.Array:
        # Neighbouring rows go to different micro-batches: no row has to leave its device.
        return x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    def body(total: Any, slice_: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        micro, index = slice_
        return jax.tree.map(
            jnp.add, total, gradient(params, micro, jax.random.fold_in(rng, index))
        ), None

    slices = (jax.tree.map(split, batch), jnp.arange(micro_batches))
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], slices[0]), rng)
    grads, metrics = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return lax.scan(body, (constrain(grads), metrics), slices)[0]
