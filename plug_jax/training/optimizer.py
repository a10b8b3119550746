"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from plug_jax.errors import PlugError

OptimizerName = Literal["adamw", "adafactor"]
ScheduleName = Literal["linear", "cosine", "rsqrt", "constant"]
MomentDtype = Literal["float32", "bfloat16"]


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
    moment_dtype: MomentDtype = "float32"  # of what AdamW keeps: bfloat16 is half the memory

    def __post_init__(self) -> None:
        for field, choices in (
            ("name", OptimizerName),
            ("schedule", ScheduleName),
            ("moment_dtype", MomentDtype),
        ):
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
        adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon)
        if config.moment_dtype == "bfloat16":
            adam = bfloat16_moments(adam)
        steps += [
            adam,
            optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(schedule),
        ]
    else:
        # The step is the schedule's alone, as in T5X: no scaling by the parameter's size.
        steps += [
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(schedule),
        ]
    return optax.chain(*steps)


def bfloat16_moments(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """`adam`, its moments kept in bfloat16 between the steps; each update is made in float32.

    They are rounded up or down at random, so that what is kept is right on average: with b2 = 0.999
    a step changes the second moment by less than half of bfloat16's spacing (0.4%), and rounding
    to the nearest would never let it fall.
    """

    def init(params: optax.Params) -> optax.OptState:
        state = adam.init(params)
        return state._replace(
            mu=optax.tree.cast(state.mu, jnp.bfloat16), nu=optax.tree.cast(state.nu, jnp.bfloat16)
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        moments = optax.tree.cast((state.mu, state.nu), jnp.float32)
        wide = state._replace(mu=moments[0], nu=moments[1])
        updates, wide = adam.update(updates, wide, params)
        leaves, tree = jax.tree.flatten((wide.mu, wide.nu))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), wide.count), len(leaves))
        rounded = [round_at_random(x, k) for x, k in zip(leaves, keys, strict=True)]
        mu, nu = jax.tree.unflatten(tree, rounded)
        return updates, wide._replace(mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> one of the two nearest bfloat16, the likelier the nearer: right on average.

    Adds 16 random bits below those that bfloat16 keeps, and cuts: 1 + 1/512, a quarter of the way
    from 1 to the next, becomes 1 + 1/128 once in four times and else 1.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16)
    return lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def decay_mask(params: Any) -> Any:
    """True at the leaves that weight decay applies to: kernels and embedding tables."""

    def decays(path: Any, _: Any) -> bool:
        name = path[-1].key
        return name == "kernel" or name.endswith("_embeddings")

    return jax.tree_util.tree_map_with_path(decays, params)
