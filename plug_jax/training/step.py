"""One training step and one evaluation step, as pure functions to be jitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.metrics import Mean
from plug_jax.models.plug import PlugModel
from plug_jax.objectives import composition
from plug_jax.objectives.composition import Objectives
from plug_jax.objectives.forward import Batch
from plug_jax.objectives.objective import Progress
from plug_jax.techniques.passes import Passes
from plug_jax.techniques.techniques import NO_TECHNIQUES, Techniques
from plug_jax.training.safety import DEFAULT_SAFETY, SafetyConfig, clipping, judge
from plug_jax.training.state import TrainState
from plug_jax.training.trained import EVERYTHING, Trained

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Mean]]]
EvalStep = Callable[[Any, Batch], tuple[dict[str, Mean], dict[str, jax.Array]]]
# (trained parameters, batch, key) to the loss and its metrics.
Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, dict[str, Mean]]]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """How a batch is turned into an update."""

    micro_batches: int = 1  # gradients are summed over this many slices of the batch
    loss_chunk: int = 0  # positions per row whose logits are in memory at a time; 0: all

    def __post_init__(self) -> None:
        check_fields(self)
        if self.micro_batches < 1:
            raise PlugError(f"StepConfig.micro_batches must be 1 or more, got {self.micro_batches}")
        if self.loss_chunk < 0:
            raise PlugError(f"StepConfig.loss_chunk must be 0 or more, got {self.loss_chunk}")


def make_train_step(
    model: PlugModel,
    objectives: Objectives,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    config: StepConfig,
    *,
    train_steps: int,
    seed: int,
    grad_shardings: Any = None,
    trained: Trained = EVERYTHING,
    techniques: Techniques = NO_TECHNIQUES,
    safety: SafetyConfig = DEFAULT_SAFETY,
) -> TrainStep:
    """The step (state, batch) -> (state, metrics). Dropout keys are derived from the step.

    If the loss or the gradient is not finite, parameters and slots stay bitwise unchanged, and only
    the step is incremented: see `plug_jax.training.safety`.

    Gradients and their accumulators over micro-batches have `grad_shardings` (None: one device).
    Gradients and updates cover the `trained` part of the parameters.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        metrics = composition.batch_metrics(batch)
        batch = composition.prepare(objectives, batch, Progress(state.step, train_steps))
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        part = trained.take(state.params)
        weights = composition.objective_weights(objectives, batch)

        def loss(part: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
            params = techniques.model_params(trained.put(state.params, part))
            passes = Passes(objectives, model, params, batch, weights, config.loss_chunk)
            return loss_of(techniques, passes, rng)

        def gradient(part: Any, rng: jax.Array) -> tuple[Any, dict[str, Mean]]:
            return gradients(loss, part, batch, rng, config.micro_batches, grad_shardings)

        if techniques.fgm is None:
            grads, of_objectives = gradient(part, rng)
        else:
            grads, of_objectives = techniques.fgm.gradient(gradient, part, rng)
        norm = optax.tree.norm(grads)
        good, after = judge(safety, state.safety, state.step, of_objectives["loss"].total, norm)
        if safety.norm_spike:
            scale = clipping(safety, state.safety, norm)
            grads = jax.tree.map(lambda grad: grad * scale, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, part, step=state.step)

        def made(new: Any, old: Any) -> Any:
            # Elementwise, so that each array still reuses its donated buffer.
            return jax.tree.map(lambda x, y: jnp.where(good, x, y), new, old)

        params = trained.put(state.params, made(optax.apply_updates(part, updates), part))
        one = jnp.ones((), jnp.float32)
        metrics |= of_objectives | {
            "grad_norm": Mean(norm, one),
            "learning_rate": Mean(jnp.asarray(schedule(state.step), jnp.float32), one),
            **after.metrics(),
        }
        opt_state = made(opt_state, state.opt_state)
        return TrainState(state.step + 1, params, opt_state, after), metrics

    return train_step


def make_eval_step(model: PlugModel, objectives: Objectives, config: StepConfig) -> EvalStep:
    """The step (params, batch) -> (metrics, outputs for predictions)."""

    def eval_step(params: Any, batch: Batch) -> tuple[dict[str, Mean], dict[str, jax.Array]]:
        return composition.evaluate(objectives, model, params, batch, chunk=config.loss_chunk)

    return eval_step


def loss_of(
    techniques: Techniques, passes: Passes, rng: jax.Array
) -> tuple[jax.Array, dict[str, Mean]]:
    """The total loss: the objectives', plus the techniques' terms."""
    first = passes.forward(rng)
    if techniques.r_drop is None:
        total, metrics = passes.loss(first)
    else:
        total, metrics = techniques.r_drop.loss(passes, first, rng)
    if techniques.smart is not None:
        added, metrics["smart_kl"] = techniques.smart.loss(passes, first, rng)
        total += added
    return total, metrics


def gradients(
    loss: Loss,
    part: Any,
    batch: Batch,
    rng: jax.Array,
    micro_batches: int,
    grad_shardings: Any,
) -> tuple[Any, dict[str, Mean]]:
    """Gradient of the summed loss with respect to `part` of the parameters, and its metrics.

    Each objective is divided by its weight in the whole batch, so any number of micro-batches
    gives the same gradient.
    """

    def share(part: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        total, metrics = loss(part, batch, rng)
        # Micro-batches have shares of the loss, which sum to the batch's.
        metrics["loss"] = Mean(total, jnp.full((), 1.0 / micro_batches))
        return total, metrics

    def constrain(grads: Any) -> Any:
        if grad_shardings is None:
            return grads
        return lax.with_sharding_constraint(grads, grad_shardings)

    def gradient(batch: Batch, rng: jax.Array) -> tuple[Any, dict[str, Mean]]:
        grads, metrics = jax.grad(share, has_aux=True)(part, batch, rng)
        return constrain(grads), metrics

    if micro_batches == 1:
        return gradient(batch, rng)

    def body(total: Any, slice_: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        micro, index = slice_
        return jax.tree.map(jnp.add, total, gradient(micro, jax.random.fold_in(rng, index))), None

    slices = (divided(batch, micro_batches), jnp.arange(micro_batches))
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], slices[0]), rng)
    grads, metrics = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return lax.scan(body, (constrain(grads), metrics), slices)[0]


def divided(batch: Batch, micro_batches: int) -> Batch:
    """Rows [B, ...] as [micro_batches, B / micro_batches, ...].

    Neighbouring rows go to different micro-batches, so that no row leaves its device.
    """

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)
