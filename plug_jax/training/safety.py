"""Which updates are made: none of a loss or a gradient that is not finite, or far off the usual.

Everything here is done on the devices, within the step, and depends on the state and the batch
alone: the host learns of it when it reads the metrics, and a resumed run decides the same.
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

WINDOW = 128  # steps whose losses a new one is compared with
_KNOWN = 32  # losses that there must be before one can be far off
_MEMORY = 0.97  # of the running mean of gradient norms, a step
_SIGMA = 1.4826  # standard deviations of a normal law in one median absolute deviation


@dataclasses.dataclass(frozen=True)
class SafetyConfig:
    """What is skipped, what is clipped, and when the run goes back to an earlier checkpoint."""

    skipped_in_a_row: int = 5  # updates skipped in a row that send the run back
    rollbacks: int = 10  # of the whole run; the next one ends it
    # A loss so many deviations above the median of the last 128 is skipped too; 0: none is. The
    # deviation is 1.4826 times the median absolute one.
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
    """What the decisions depend on; saved with the parameters. Scalars but for `losses`."""

    skipped: Any  # int32: updates that were not made
    in_a_row: Any  # int32: those since the last one that was
    rollbacks: Any  # int32: how often the run went back
    rolled_back_at: Any  # int32: the step of the last time, -1 before
    rolled_back_to: Any  # int32: the checkpoint that it went to, -1 before
    norm: Any  # float32: running mean of the gradient's norm, 0 before the first
    losses: Any  # float32 [WINDOW]: the finite losses of the last steps, NaN where there is none

    @classmethod
    def start(cls) -> SafetyState:
        """That of a run that begins, and of a checkpoint that has none."""
        zero, none = np.zeros((), np.int32), np.full((), -1, np.int32)
        losses = np.full(WINDOW, np.nan, np.float32)
        return cls(zero, zero, zero, none, none, np.zeros((), np.float32), losses)

    def metrics(self) -> dict[str, Mean]:
        """What is logged once there is any: `skipped`, and of these `skipped_in_a_row`."""
        counts = {"skipped": self.skipped, "skipped_in_a_row": self.in_a_row}
        return {
            name: Mean(count.astype(jnp.float32), (count > 0).astype(jnp.float32))
            for name, count in counts.items()
        }


def judge(
    config: SafetyConfig, state: SafetyState, step: jax.Array, loss: jax.Array, norm: jax.Array
) -> tuple[jax.Array, SafetyState]:
    """Whether the update is made, a bool scalar, and the state after the step.

    `loss` is the batch's and `norm` its gradient's, float32 scalars; `step` the steps done before.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    good = finite if config.loss_spike == 0 else finite & ~_is_spike(config, state.losses, loss)
    skipped = 1 - good.astype(jnp.int32)
    # Spikes are among the losses too: where the loss stays high, that is soon the usual.
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
    """What to multiply a gradient of this `norm` with: a float32 scalar up to 1."""
    if config.norm_spike == 0:
        return jnp.ones(())
    limit = config.norm_spike * state.norm
    return jnp.where((limit > 0) & (norm > limit), limit / norm, 1.0)


def _is_spike(config: SafetyConfig, losses: jax.Array, loss: jax.Array) -> jax.Array:
    median = jnp.nanmedian(losses)
    deviation = _SIGMA * jnp.nanmedian(jnp.abs(losses - median))
    known = jnp.sum(jnp.isfinite(losses)) >= _KNOWN
    # Where most losses are the same, the deviation says nothing.
    return known & (deviation > 0) & (loss > median + config.loss_spike * deviation)


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of every array is finite: a bool scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
