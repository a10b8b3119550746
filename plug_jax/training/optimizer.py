"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.training.learning_rates import scale_by
from plug_jax.training.muon import muon_and

OptimizerName = Literal["adamw", "adafactor", "muon"]
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
    moment_dtype: MomentDtype = "float32"  # for AdamW and Muon; bfloat16 halves the memory
    muon_beta: float = 0.95  # momentum of matrices with "muon", which also use learning_rate
    # By parts of the model, see learning_rates.py and plug_jax.parameter_paths.
    layer_decay: float = 1.0  # ratio of a layer's learning rate to that of the layer above
    learning_rate_multipliers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    freeze: tuple[str, ...] = ()  # frozen parts, such as ("embeddings", "encoder/layers:0-5")

    def __post_init__(self) -> None:
        check_fields(self)
        tiny, largest = (float(x) for x in (jnp.finfo("float32").tiny, jnp.finfo("float32").max))
        wanted = {
            "learning_rate": (tiny <= self.learning_rate <= largest, "positive"),
            "warmup_fraction": (0 <= self.warmup_fraction < 1, "in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay <= largest, "0 or more"),
            "clip_norm": (0 <= self.clip_norm <= largest, "0 (no clipping) or positive"),
            "b1": (0 <= self.b1 < 1, "in [0, 1)"),
            "b2": (0 <= self.b2 < 1, "in [0, 1)"),
            "muon_beta": (0 <= self.muon_beta < 1, "in [0, 1)"),
            "epsilon": (tiny <= self.epsilon <= largest, "positive"),
            "layer_decay": (0 < self.layer_decay <= 1, "in (0, 1]"),
            "learning_rate_multipliers": (
                all(tiny <= x <= largest for x in self.learning_rate_multipliers.values()),
                "positive",
            ),
        }
        problems = [
            f"{name} must be {what} in float32, got {getattr(self, name)}"
            for name, (good, what) in wanted.items()
            if not good
        ]
        if problems:
            raise PlugError("OptimizerConfig: " + "; ".join(problems))


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
        # Also called during warm-up, with steps below 0 and an unused result.
        decay = lambda step: peak * (warmup / jnp.maximum(step + warmup, 1)) ** 0.5  # noqa: E731
    else:
        decay = optax.constant_schedule(peak)
    # The first step is not zero: step n of the warm-up has (n + 1) / warmup of the peak.
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    *,
    scales: Any = None,
    masking: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Clipping by the global norm, then AdamW, Adafactor or Muon, with decoupled weight decay.

    `scales` multiply the learning rate: a tree like the parameters (None: 1 everywhere). `masking`
    applies to clipped gradients. `update` takes the `step`, an int32 scalar, for the schedule and
    `masking`.
    """
    steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if masking is not None:
        steps.append(masking)
    if config.name == "adafactor":
        # Only the schedule scales updates, as in T5X: not the parameter's size.
        steps += [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
    else:
        adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon)
        if config.moment_dtype == "bfloat16":
            adam = bfloat16_moments(adam)
        if config.name == "muon":
            adam = muon_and(adam, beta=config.muon_beta, moment_dtype=config.moment_dtype)
        steps.append(adam)
    steps += [
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        scale_by_learning_rate(schedule),
    ]
    if scales is not None:
        steps.append(scale_by(scales))
    return optax.chain(*steps)


def scale_by_learning_rate(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Like optax's, with the `step` passed to `update`, as its own count lacks skipped updates."""
    by_count = optax.scale_by_learning_rate(schedule)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        step: jax.Array | None = None,
        **_: Any,
    ) -> tuple[optax.Updates, Any]:
        return by_count.update(
            updates, state if step is None else state._replace(count=step), params
        )

    return optax.GradientTransformationExtraArgs(by_count.init, update)


def bfloat16_moments(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """`adam` with moments stored in bfloat16 between steps; updates are computed in float32.

    They are rounded stochastically, so that stored values are unbiased: with b2 = 0.999 a step
    changes the second moment by less than half of bfloat16's spacing (0.4%), and rounding to
    nearest would never let it decrease.
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
    """Stochastic rounding of float32 to one of the two nearest bfloat16 values, unbiased.

    Adds 16 random bits below those that bfloat16 keeps, and truncates: 1 + 1/512, a quarter of the
    way from 1 to the next, becomes 1 + 1/128 with probability 1/4, else 1.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16)
    return lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def decay_mask(params: Any) -> Any:
    """True at leaves with weight decay: kernels, including LoRA's, and embeddings."""

    def decays(path: Any, _: Any) -> bool:
        name = path[-1].key
        return name in ("kernel", "a", "b") or name.endswith("_embeddings")

    return jax.tree_util.tree_map_with_path(decays, params)
