"""Host-side step timing, and tokens per second."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator

import jax

from plug_jax.metrics import Mean


class StepTimer:
    """Host-side step timing; the host prepares step n+1 while devices run n.

    `read` returns seconds, averaged over the steps finished since the last call:

    - `data_wait_seconds`: until the host has its rows of the next batch and has started to copy
      them to its devices, in `part("data_wait")`;
    - `dispatch_seconds`: in the call of the compiled step, which returns before the devices finish
      it (a CPU may wait here for the previous step), in `part("dispatch")`;
    - `device_wait_seconds`: after that, until the devices have finished the *previous* step;
    - `step_seconds`: from the end of one step to the end of the next. The rest is host work, mostly
      logging.

    So `device_wait_seconds` near `step_seconds` means that the devices are never idle, and
    `data_wait_seconds` near it that they starve. The first step, a warm-up, only starts the clock;
    time in `paused` (evaluation, checkpoints) is not counted.
    """

    def __init__(self) -> None:
        self._parts: dict[str, float] = collections.defaultdict(float)
        self._finished: list[Mean] = []  # real tokens of each step
        self._under_way: Mean | None = None
        self._since: float | None = None

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within as `name`."""
        started = time.monotonic()
        yield
        self._parts[name] += time.monotonic() - started

    def dispatched(self, tokens: Mean) -> None:
        """A step was dispatched; `tokens` is its metric. Waits for the previous step."""
        self.finish()
        self._under_way = tokens

    def finish(self) -> None:
        """Wait for the current step, if any."""
        if self._under_way is None:
            return
        with self.part("device_wait"):
            jax.block_until_ready(self._under_way)
        if self._since is None:
            self._restart()
        else:
            self._finished.append(self._under_way)
        self._under_way = None

    def idle(self) -> bool:
        """Whether the devices are idle: they have finished the current step."""
        return all(leaf.is_ready() for leaf in jax.tree.leaves(self._under_way))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Wait for the current step; time within does not count."""
        self.finish()
        started = time.monotonic()
        yield
        if self._since is not None:
            self._since += time.monotonic() - started

    def read(self) -> dict[str, float]:
        """The four times and `tokens_per_second`, since the last call.

        Before a second step is finished, `tokens_per_second` is 0 and times are omitted.
        """
        steps = len(self._finished)
        if self._since is None or not steps:
            return {"tokens_per_second": 0.0}
        tokens = sum(float(t.total) for t in jax.device_get(self._finished))
        elapsed = max(time.monotonic() - self._since, 1e-9)
        parts = {
            f"{name}_seconds": self._parts[name] / steps
            for name in ("data_wait", "dispatch", "device_wait")
        }
        self._restart()
        return {
            "tokens_per_second": tokens / elapsed,
            "step_seconds": elapsed / steps,
            **parts,
        }

    def _restart(self) -> None:
        self._parts.clear()
        self._finished = []
        self._since = time.monotonic()
