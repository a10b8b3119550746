"""Goodput: the share of a run's time spent training, over all restarts, and where the rest went."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from plug_jax.atomic_files import write_whole
from plug_jax.checkpoints.saving import REFUSALS

GOODPUT_FILE = "goodput.json"

CAUSES = {
    "step": "training steps that count",
    "data_wait": "the devices waited for data",
    "evaluation": "evaluation",
    "save": "saves that training waited for",
    "restore": "reading the checkpoint",
    "compile": "tracing and compiling",
    "start_up": "opening data and model",
    "lost": "steps that no checkpoint kept, trained again",
    "down": "from a start's last sign of life to the next start",
}
_NOTHING = dict.fromkeys(CAUSES, 0.0)
_SECONDS_BETWEEN_WRITES = 30.0


@dataclasses.dataclass
class _Start:
    """One process of a run, from its start to its last heartbeat."""

    heard: float  # seconds since 1970
    first_step: int | None = None  # of the checkpoint from which it resumed
    last_step: int = 0
    ended: bool = False  # at the end of the run, not by a kill
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict(_NOTHING))

    def lose_after(self, step: int) -> None:
        """Count the steps after `step` as lost, since they must be repeated."""
        if self.first_step is not None and self.last_step > max(step, self.first_step):
            steps = self.last_step - self.first_step
            lost = (self.last_step - max(step, self.first_step)) / steps * self.seconds["step"]
            self.seconds["step"] -= lost
            self.seconds["lost"] += lost


class Goodput:
    """Attributes each second of this process to a cause, and adds those of earlier processes.

    MODEL_DIR/goodput.json has the sums. It is rewritten atomically every half minute and after each
    save, so a kill turns at most that much into `down`.
    """

    def __init__(self, model_dir: epath.Path, *, writes: bool) -> None:
        """Nothing is written before `resumed`, and only if `writes`."""
        self._path = model_dir / GOODPUT_FILE  # may be deleted
        self._writes = writes
        self._past, self._past_starts, self._open = _read(self._path) if writes else _nothing()
        now = time.time()
        self._start = _Start(heard=now)
        if self._open and not self._open[-1].ended:
            self._start.seconds["down"] = max(0.0, now - self._open[-1].heard)
        self._cause = "start_up"
        self._since = self._written = time.monotonic()

    def resumed(self, step: int) -> None:
        """This process resumes from the checkpoint of `step`; 0: from the beginning."""
        self._start.first_step = self._start.last_step = step
        for one in self._open:
            one.lose_after(step)
            for cause, seconds in one.seconds.items():
                self._past[cause] += seconds
        self._past_starts += len(self._open)
        self._open = []
        self.write()

    @contextlib.contextmanager
    def part(self, cause: str) -> Iterator[None]:
        """Time within counts as `cause`."""
        before = self._cause
        self._account()
        self._cause = cause
        try:
            yield
        finally:
            self._account()
            self._cause = before

    @contextlib.contextmanager
    def data_wait(self, idle: Callable[[], bool]) -> Iterator[None]:
        """Time within counts as `data_wait` if the devices are `idle` at its end.

        Then it is an upper bound on their idle time. Otherwise the step hid the wait.
        """
        self._account()
        yield
        if idle():
            before, self._cause = self._cause, "data_wait"
            self._account()
            self._cause = before

    def stepping(self) -> None:
        """From now on all time outside other parts is training."""
        self._account()
        self._cause = "step"

    def reached(self, step: int) -> None:
        """The steps to `step` are done; writes if it is time."""
        self._start.last_step = step
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self, *, ended: bool = False) -> None:
        """Write the file; after a failure the next write has everything."""
        self._account()
        self._start.heard, self._start.ended = time.time(), ended
        self._written = time.monotonic()
        if not self._writes:
            return
        kept = {
            "starts": self._past_starts,
            "seconds": self._past,
            "open": [dataclasses.asdict(one) for one in self._starts()],
        }
        with contextlib.suppress(*REFUSALS):
            write_whole(self._path, json.dumps(kept, indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """As last written: `goodput`, the share of training; `starts`; `seconds` by cause."""
        starts = self._starts()
        seconds = {
            cause: self._past[cause] + sum(one.seconds[cause] for one in starts) for cause in CAUSES
        }
        return {
            "goodput": seconds["step"] / max(sum(seconds.values()), 1e-9),
            "starts": self._past_starts + len(starts),
            "seconds": seconds,
        }

    def scalars(self) -> dict[str, float]:
        """The shares for TensorBoard, 0 to 1."""
        summary = self.summary()
        whole = max(sum(summary["seconds"].values()), 1e-9)
        shares = {f"goodput/{cause}": s / whole for cause, s in summary["seconds"].items()}
        return {"goodput/goodput": summary["goodput"], **shares}

    def table(self) -> str:
        """A table for the terminal."""
        summary = self.summary()
        whole = sum(summary["seconds"].values())
        starts = f"{summary['starts']} starts" if summary["starts"] > 1 else "1 start"
        lines = [f"goodput {summary['goodput']:.1%} of {_clock(whole)}, {starts}:"]
        for cause, seconds in sorted(summary["seconds"].items(), key=lambda item: -item[1]):
            if seconds:
                share = seconds / whole
                lines.append(f"  {cause:10} {_clock(seconds):>12} {share:6.1%}  {CAUSES[cause]}")
        return "\n".join(lines)

    def _starts(self) -> list[_Start]:
        """Starts not yet in the sums, including this one if it trains."""
        return self._open if self._start.first_step is None else [*self._open, self._start]

    def _account(self) -> None:
        now = time.monotonic()
        self._start.seconds[self._cause] += now - self._since
        self._since = now


_Past = tuple[dict[str, float], int, list[_Start]]


def _read(path: epath.Path) -> _Past:
    """The sums, their number of starts, and starts not yet in them."""
    if not path.exists():
        return _nothing()
    try:
        kept = json.loads(path.read_text())
        starts = [_Start(**one) for one in kept["open"]]
        return dict(_NOTHING) | kept["seconds"], kept["starts"], starts
    except (ValueError, TypeError, KeyError):  # after a power loss: start counting anew
        return _nothing()


def _nothing() -> _Past:
    return dict(_NOTHING), 0, []


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
