"""A real `plug-jax` command that receives a signal at a chosen moment.

    python -m tests.reliability.victim '{"phase": "save", "at": 7, "signal": "SIGKILL"}' train ...

The moments of a phase are counted as they pass: what Python does to files of MODEL_DIR, as its
audit hooks tell, imports, steps, batches of an evaluation. At number `at`, or `delay` seconds
later, the process sends itself the signal, and `again` seconds later once more. Without "phase" it
counts only, and writes the counts to the file "counts".
"""

from __future__ import annotations

import collections
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
_WRITES = os.O_WRONLY | os.O_RDWR


class Moments:
    """Counts the moments of each phase, and sends the signal at one of them."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._plan = plan

    def passes(self, phase: str) -> None:
        self.counts[phase] += 1
        plan = self._plan
        if phase != plan.get("phase") or self.counts[phase] != plan["at"]:
            return
        if delay := plan.get("delay", 0.0):
            threading.Timer(delay, self._strike).start()
        else:
            self._strike()

    def _strike(self) -> None:
        Path(self._plan["struck"]).touch()  # an import closes standard error
        strike = functools.partial(os.kill, os.getpid(), signal.Signals[self._plan["signal"]])
        if "again" in self._plan:
            threading.Timer(self._plan["again"], strike).start()
        strike()

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook for Python's events."""
        if event == "import":
            self.passes("start-up")
        changes = event in _CHANGES or (event == "open" and _is_write(arguments))
        if changes and (phase := _phase_of(str(arguments[0]))):
            self.passes(phase)


def _is_write(arguments: tuple[Any, ...]) -> bool:
    path, _, flags = arguments
    return isinstance(path, str) and bool(flags & _WRITES)


def _phase_of(path: str) -> str | None:
    """The phase to which a run's change of a file belongs."""
    if "/checkpoints/" in path:
        return "save"
    if "/run/" not in path:
        return None
    if "metrics.jsonl" in path:
        return "rewrite" if path.endswith(".tmp") else "start-up"
    return "end" if "summary.json" in path else "start-up"


def _around(owner: Any, name: str, phase: Callable[..., str], moments: Moments) -> None:
    """A moment before and after each call of a function; `phase` is computed from its arguments."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        moments.passes(phase(*arguments))
        value = function(*arguments, **options)
        moments.passes(phase(*arguments))
        return value

    setattr(owner, name, wrapped)


def main() -> int:
    plan = json.loads(sys.argv[1])
    moments = Moments(plan)
    sys.addaudithook(moments.hear)
    from plug_jax.__main__ import run
    from plug_jax.held_interrupts import hold_interrupts

    hold_interrupts()
    try:
        from plug_jax.cli.main import import_tensorflow

        import_tensorflow()
        from plug_jax.training import checkpointing, evaluate, feed, loop, writers
    except KeyboardInterrupt:
        return 130

    def of_record(writer: object, step: int, split: str, *_: object) -> str:
        if split == "validation":
            return "evaluation"
        return "switch" if step in plan["switch"] else "step"

    _around(writers.MetricsWriter, "write", of_record, moments)
    _around(evaluate.Evaluator, "scored", lambda *_: "evaluation", moments)
    _around(loop.StepTimer, "dispatched", lambda *_: "step", moments)
    _around(loop, "write_summary", lambda *_: "end", moments)
    for owner, name in (
        (feed.Feed, "__init__"),
        (feed.Feed, "read_ahead"),
        (evaluate.Evaluator, "read_ahead"),
        (checkpointing.Checkpoints, "restore"),
    ):
        _around(owner, name, lambda *_: "data", moments)
    sys.argv[1:] = sys.argv[2:]
    status = run()
    if "counts" in plan:
        Path(plan["counts"]).write_text(json.dumps(moments.counts))
    return status


if __name__ == "__main__":
    sys.exit(main())
