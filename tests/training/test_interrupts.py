"""Stop requests to a run. tests/training/test_loop.py and test_multihost.py stop real ones."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from plug_jax.errors import Interrupted
from plug_jax.training import interrupts as module
from plug_jax.training.interrupts import ended_by_termination, interrupts


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_the_step(number: signal.Signals, status: int) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda *_: heard.append(1))
    try:
        with interrupts() as made:
            assert not made.after(1)
            os.kill(os.getpid(), number)
            assert made.after(2) and heard == []
            os.kill(os.getpid(), number)  # a second one has its default effect
            assert heard == [1]
            error = made.error(2, saved=True)
        assert (str(error), error.status, error.step) == (number.name, status, 2)
        assert error.came is not None and isinstance(error, KeyboardInterrupt)
        os.kill(os.getpid(), number)
        assert heard == [1, 1]
    finally:
        signal.signal(number, before)


def test_a_notice_of_maintenance_is_as_good_as_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[Callable[[str], None]] = []

    @contextlib.contextmanager
    def maintenance(notify: Callable[[str], None]) -> Iterator[None]:
        notices.append(notify)
        yield

    monkeypatch.setattr(module, "maintenance", maintenance)
    with interrupts() as made:
        notices[0]("the notice preempted = TRUE")
        os.kill(os.getpid(), signal.SIGINT)  # too late to be the reason
        assert made.after(5)
        error = made.error(5, saved=False)
    assert (str(error), error.status) == ("the notice preempted = TRUE", 143)


def test_other_threads_are_not_interrupted() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run() -> None:
        with interrupts() as made, ended_by_termination():
            seen.append((made.after(1), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_before_a_run_steps_sigterm_ends_it() -> None:
    with pytest.raises(Interrupted) as caught, ended_by_termination():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.status == 143 and caught.value.step is None
