"""Skips updates whose loss or gradient is not finite or is an outlier.

Everything here happens on the devices, within the step, and depends only on the state and batch:
the host learns of it when it reads metrics, and a resumed run decides the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.metrics import Mean

WINDOW = 128  # number of recent losses to compare with
_KNOWN = 32  # minimum number of losses before one can be an outlier
_MEMORY = 0.97  # decay per step of the running mean of gradient norms
_SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


@dataclasses.dataclass(frozen=True)
class SafetyConfig:
    """When updates are skipped or clipped, and when the run rolls back."""

    skipped_in_a_row: int = 5  # roll back after this many skipped updates in a row
    rollbacks: int = 10  # limit for the whole run; the next one ends it
    # A loss this many deviations above the median of the last 128 is also skipped; 0: off. The
    # deviation is 1.4826 times the median absolute deviation.
    loss_spike: float = 0.0
    # Gradients are scaled down to so many times their usual norm (AdaGC's way: Wang et al., 2025,
    # arXiv 2502.11034), a running mean of what it was after that; 0: they are not.
    norm_spike: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("skipped_in_a_row", 1), ("rollbacks", 0)):
            if getattr(self, name) < least:
                raise PlugError(
                    f"SafetyConfig.{name} must be {least} or more, got {getattr(self, name)}"
                )
        if not self.loss_spike >= 0:
            raise PlugError(f"SafetyConfig.loss_spike must be 0 or more, got {self.loss_spike}")
        if self.norm_spike != 0 and not self.norm_spike >= 1:
            raise PlugError(
                "SafetyConfig.norm_spike must be 0 (no clipping) or 1 or more, got "
                f"{self.norm_spike}"
            )


DEFAULT_SAFETY = SafetyConfig()


@flax.struct.dataclass
class SafetyState:
    """The state behind the decisions, saved with the parameters. Scalars except `losses`."""

    skipped: Any  # int32: skipped updates
    in_a_row: Any  # int32: skipped updates since the last successful one
    rollbacks: Any  # int32: number of rollbacks
    rolled_back_at: Any  # int32: the step of the last rollback, -1 without one
    rolled_back_to: Any  # int32: its checkpoint, -1 without one
    norm: Any  # float32: running mean of the gradient norm, 0 before the first
    losses: Any  # float32 [WINDOW]: the last finite losses, NaN for empty places

    @classmethod
    def start(cls) -> SafetyState:
        """The initial state, also for checkpoints without one."""
        zero, none = np.zeros((), np.int32), np.full((), -1, np.int32)
        losses = np.full(WINDOW, np.nan, np.float32)
        return cls(zero, zero, zero, none, none, np.zeros((), np.float32), losses)

    def metrics(self) -> dict[str, Mean]:
        """Metrics once updates were skipped: `skipped` and `skipped_in_a_row`."""
        counts = {"skipped": self.skipped, "skipped_in_a_row": self.in_a_row}
        return {
            name: Mean(count.astype(jnp.float32), (count > 0).astype(jnp.float32))
            for name, count in counts.items()
        }


def judge(
    config: SafetyConfig, state: SafetyState, step: jax.Array, loss: jax.Array, norm: jax.Array
) -> tuple[jax.Array, SafetyState]:
    """Whether to apply the update, a bool scalar, and the state after the step.

    `loss` of the batch and `norm` of its gradient, float32 scalars; `step`: steps done before.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    good = finite if config.loss_spike == 0 else finite & ~_is_spike(config, state.losses, loss)
    skipped = 1 - good.astype(jnp.int32)
    # Spikes are included in the losses, so that a permanently higher loss soon becomes normal.
    losses = jnp.where(finite, state.losses.at[step % WINDOW].set(loss), state.losses)
    used = norm * clipping(config, state, norm)
    running = jnp.where(state.norm > 0, _MEMORY * state.norm + (1 - _MEMORY) * used, used)
    return good, dataclasses.replace(
        state,
        skipped=state.skipped + skipped,
        in_a_row=(state.in_a_row + 1) * skipped,
        norm=jnp.where(good, running, state.norm),
        losses=losses,
    )


def clipping(config: SafetyConfig, state: SafetyState, norm: jax.Array) -> jax.Array:
    """The factor for a gradient with this `norm`: a float32 scalar of at most 1."""
    if config.norm_spike == 0:
        return jnp.ones(())
    limit = config.norm_spike * state.norm
    return jnp.where((limit > 0) & (norm > limit), limit / norm, 1.0)


def _is_spike(config: SafetyConfig, losses: jax.Array, loss: jax.Array) -> jax.Array:
    median = jnp.nanmedian(losses)
    deviation = _SIGMA * jnp.nanmedian(jnp.abs(losses - median))
    known = jnp.sum(jnp.isfinite(losses)) >= _KNOWN
    # If most losses are equal, the deviation is meaningless.
    return known & (deviation > 0) & (loss > median + config.loss_spike * deviation)


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of every array is finite: a bool scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
