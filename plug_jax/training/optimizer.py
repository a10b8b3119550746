"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from plug_jax.errors import PlugError

OptimizerName = Literal["adamw", "adafactor"]
ScheduleName = Literal["linear", "cosine", "rsqrt", "constant"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Defaults are the released PLUG's: Adam, decay 0.01, clip 1.0, linear, 1% warm-up, 1e-4."""

    name: OptimizerName = "adamw"
    learning_rate: float = 1e-4  # the peak, reached after the warm-up
    schedule: ScheduleName = "linear"  # after the warm-up; linear and cosine end at 0
    warmup_fraction: float = 0.01  # of the training steps
    weight_decay: float = 0.01  # on matrices and embeddings, never on biases and norms
    clip_norm: float = 1.0  # global norm of the gradient; 0 switches clipping off
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for field, choices in (("name", OptimizerName), ("schedule", ScheduleName)):
            if getattr(self, field) not in get_args(choices):
                raise PlugError(
                    f"OptimizerConfig.{field} must be one of {get_args(choices)}, "
                    f"got {getattr(self, field)!r}"
                )
        if self.learning_rate <= 0 or not 0 <= self.warmup_fraction < 1:
            raise PlugError(
                "OptimizerConfig: learning_rate must be positive and warmup_fraction in [0, 1), "
                f"got {self.learning_rate} and {self.warmup_fraction}"
            )


def make_schedule(config: OptimizerConfig, train_steps: int) -> optax.Schedule:
    """Learning rate by step: a linear rise over the warm-up, then the named decay."""
    peak = config.learning_rate
    warmup = max(1, round(config.warmup_fraction * train_steps))
    remaining = max(1, train_steps - warmup)
    decay: optax.Schedule
    if config.schedule == "linear":
        decay = optax.linear_schedule(peak, 0.0, remaining)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, remaining)
    elif config.schedule == "rsqrt":
        # Also called for the warm-up, with steps below 0, and then not used.
        decay = lambda step: peak * (warmup / jnp.maximum(step + warmup, 1)) ** 0.5  # noqa: E731
    else:
        decay = optax.constant_schedule(peak)
    # The first step already moves: step n of the warm-up runs at (n + 1) / warmup of the peak.
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW or Adafactor with decoupled weight decay."""
    steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "adamw":
        steps.append(
            optax.adamw(
                schedule,
                b1=config.b1,
                b2=config.b2,
                eps=config.epsilon,
                weight_decay=config.weight_decay,
                mask=decay_mask,
            )
        )
    else:
        # The step is the schedule's alone, as in T5X: no scaling by the parameter's size.
        steps += [
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(schedule),
        ]
    return optax.chain(*steps)


def decay_mask(params: Any) -> Any:
    """True at the leaves that weight decay applies to: kernels and embedding tables."""

    def decays(path: Any, _: Any) -> bool:
        name = path[-1].key
        return name == "kernel" or name.endswith("_embeddings")

    return jax.tree_util.tree_map_with_path(decays, params)
