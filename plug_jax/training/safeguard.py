"""Host-side handling of skipped updates: recording, and rollback after too many.

A rollback replaces parameters and slots by those of an earlier checkpoint. The step, and with it
data position, schedule and phase, continues: so no batch since that checkpoint is seen again, no
record is written twice, and the learning rate is unaffected.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from plug_jax.errors import PlugError
from plug_jax.hosts.activity import current, doing
from plug_jax.metrics import Mean
from plug_jax.training.checkpointing import Checkpoints
from plug_jax.training.safety import SafetyConfig, SafetyState, all_finite
from plug_jax.training.state import StateLayout, TrainState
from plug_jax.training.writers import MetricsWriter

_LINES = 10  # printed for skipped updates; later ones are only in metrics.jsonl


class NotFinite(PlugError):
    """The run has skipped too many updates in a row, too often."""

    status: ClassVar[int] = 65


class Skips:
    """The skipped updates of a run, as far as the host has read them."""

    def __init__(self, config: SafetyConfig, step: int, safety: SafetyState) -> None:
        """Start after `step`."""
        self._config = config
        self._pending: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self.goes_on(step, safety)

    def goes_on(self, step: int, safety: SafetyState) -> None:
        """The run continues after `step` with `safety`; unread earlier steps are dropped."""
        self._pending.clear()
        self._step, self.in_a_row = step, int(safety.in_a_row)
        self._rollbacks = int(safety.rollbacks)
        self._went_back = int(safety.rolled_back_at), int(safety.rolled_back_to)

    def dispatched(self, step: int, metrics: Mapping[str, Mean]) -> None:
        """Record a dispatched step's metrics, without waiting for it."""
        totals = {name: metrics[name].total for name in ("skipped_in_a_row", "loss", "grad_norm")}
        self._pending.append((step, totals))

    def read(self, upto: int) -> dict[int, dict[str, float]]:
        """Unread skipped updates up to this step: loss and gradient norm by step.

        Waits for the step.
        """
        ready = []
        while self._pending and self._pending[0][0] <= upto:
            ready.append(self._pending.popleft())
        counts = jax.device_get([totals.pop("skipped_in_a_row") for _, totals in ready])
        found = {}
        for (self._step, totals), count in zip(ready, counts, strict=True):
            self.in_a_row = int(count)
            if self.in_a_row:
                found[self._step] = {name: float(value) for name, value in totals.items()}
        return found

    @property
    def too_many(self) -> bool:
        """Whether the run must roll back."""
        return self.in_a_row >= self._config.skipped_in_a_row

    def targets(self, checkpoints: Iterable[int]) -> list[int]:
        """The checkpoints to roll back to, in order of preference.

        They are from before the skipped updates; if no update succeeded since the last rollback,
        also from before its checkpoint, which was no good.

        Raises:
            NotFinite: there is none, or the limit of rollbacks is reached.
        """
        start = self._step - self.in_a_row
        at, to = self._went_back
        latest = to - 1 if start <= at else start
        found = sorted((step for step in checkpoints if step <= latest), reverse=True)
        if not found:
            raise self._not_finite(start, "there is no checkpoint from before that to go back to")
        if self._rollbacks >= self._config.rollbacks:
            times = f"the run has gone back {self._rollbacks} times (MAX_ROLLBACKS)"
            raise self._not_finite(start, times)
        return found

    def _not_finite(self, start: int, why: str) -> NotFinite:
        return NotFinite(
            f"no update was made in the steps {start + 1} to {self._step}, because losses or "
            "gradients were not finite or far off (metrics.jsonl has them as 'skipped'), or "
            f"parameters are not finite; and {why}. Usually LEARNING_RATE is too high or the "
            "warm-up too short (OptimizerConfig.warmup_fraction): change them and start the same "
            "command again, which resumes from the newest checkpoint. If batches are to blame, "
            f"`plug-jax debug-nans --step {start + 1}` with the run's gin files shows what is in "
            "one and where its first number that is not finite comes from"
        )


class Safeguard:
    """Skipped updates and rollbacks during a run."""

    def __init__(
        self,
        config: SafetyConfig,
        state: TrainState,
        layout: StateLayout,
        checkpoints: Checkpoints,
        *,
        writer: MetricsWriter | None,
        say: Callable[[str], None],
    ) -> None:
        """Compiles the check of states before saving; within the mesh's context."""
        self.skips = Skips(config, int(state.step), state.safety)
        self._layout, self._checkpoints = layout, checkpoints
        self._writer, self._say, self._said = writer, say, 0
        abstract = layout.with_shardings()
        check = jax.jit(all_finite, out_shardings=layout.shardings.step)
        self._check = check.lower((abstract.params, abstract.opt_state)).compile()

    def is_finite(self, state: TrainState) -> bool:
        """Whether all parameters and slots are finite; only such a state is saved."""
        return bool(self._check((state.params, state.opt_state)))

    def note(self, upto: int) -> None:
        """Log the updates skipped up to a step, and print the first ones."""
        for step, values in self.skips.read(upto).items():
            if self._writer:
                self._writer.write(step, "skipped", values)
            self._said += 1
            if self._said > _LINES:
                continue
            shown = f"loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}"
            more = "; the next ones are in metrics.jsonl alone" if self._said == _LINES else ""
            self._say(f"STEP {step} WAS SKIPPED, its update was not applied: {shown}{more}")

    def heal(self, state: TrainState, step: int, *, upto: int, check: bool = False) -> TrainState:
        """The state to continue with after `step`: this one, or an earlier checkpoint's.

        Rolls back if too many updates in a row were skipped up to the step `upto`, and with `check`
        if parameters or slots are not finite.

        Raises:
            NotFinite: it cannot roll back.
        """
        self.note(upto)
        if self.skips.too_many:
            self.note(step)  # a good update may have followed
        if not self.skips.too_many and not (check and not self.is_finite(state)):
            return state
        safety = jax.device_get(state.safety)
        targets = self.skips.targets(self._checkpoints.regular_steps())
        for leaf in jax.tree.leaves((state.params, state.opt_state)):
            leaf.delete()  # else both would be in memory
        before = current()
        for target in targets:
            doing(f"restoring step {target}", watched=False)
            found = self._checkpoints.restore_state(self._layout, target)
            if self.is_finite(found):
                break
            self._say(f"the checkpoint of step {target} is not finite")
        else:
            raise NotFinite("none of the checkpoints is finite; start anew in another MODEL_DIR")
        state = _gone_back(found, safety, self._layout, step=step, to=target)
        doing(before.name, watched=before.watched)
        self.skips.goes_on(step, state.safety)
        self._say(
            f"BACK TO THE CHECKPOINT OF STEP {target}: the run continues after step {step} with "
            f"its parameters, and with new batches (rollback number {int(state.safety.rollbacks)})"
        )
        if self._writer:
            self._writer.write(step, "rollback", {"to": target})
        return state


def _gone_back(
    state: TrainState, safety: SafetyState, layout: StateLayout, *, step: int, to: int
) -> TrainState:
    """`state` of checkpoint `to` as the run's state after `step`, where its safety was `safety`.

    Running statistics of losses and gradients roll back with the parameters.
    """

    def merge(then: SafetyState, now: SafetyState) -> tuple[jax.Array, SafetyState]:
        return jnp.int32(step), dataclasses.replace(
            then,
            skipped=now.skipped,
            in_a_row=jnp.zeros((), jnp.int32),
            rollbacks=now.rollbacks + 1,
            rolled_back_at=jnp.int32(step),
            rolled_back_to=jnp.int32(to),
        )

    shardings = (layout.shardings.step, layout.shardings.safety)
    at, merged = jax.jit(merge, out_shardings=shardings)(state.safety, safety)
    return TrainState(at, state.params, state.opt_state, merged)
