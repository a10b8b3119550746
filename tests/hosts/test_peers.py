"""Communication between processes, with a dictionary as the coordinator."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from plug_jax.hosts import peers as peers_module
from plug_jax.hosts.activity import doing
from plug_jax.hosts.peers import Note, Peers, among, peers

# Instead of ending the process, a thread ends itself.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Store:
    """The coordinator's keys, values and barriers, with the interface of JAX's client."""

    def __init__(self, count: int) -> None:
        self.values: dict[str, str] = {}
        self.count, self.gone = count, False
        self._barriers: dict[str, threading.Barrier] = {}
        self._waits: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self._check()
        self.values[key] = value

    def key_value_dir_get(self, directory: str) -> list[tuple[str, str]]:
        self._check()
        return [(k, v) for k, v in list(self.values.items()) if k.startswith(directory)]

    def wait_at_barrier(self, name: str, timeout_ms: int, among: list[int] | None = None) -> None:
        with self._lock:
            count = self.count if among is None else len(among)
            barrier = self._barriers.setdefault(name, threading.Barrier(count))
            self._waits[name] += 1
            if self._waits[name] > count:
                raise RuntimeError("FAILED_PRECONDITION: it has been passed")
        try:
            barrier.wait(min(timeout_ms / 1000, 4.0))
        except threading.BrokenBarrierError as error:
            raise RuntimeError("DEADLINE_EXCEEDED") from error

    def _check(self) -> None:
        if self.gone:
            raise RuntimeError("UNAVAILABLE: Socket closed\nmore")


class Exits:
    """The exit statuses of processes; a thread that exits stops there."""

    def __init__(self) -> None:
        self.statuses: list[int] = []

    def __call__(self, status: int) -> None:
        self.statuses.append(status)
        raise SystemExit  # of the thread

    def wait(self, count: int) -> list[int]:
        end = time.monotonic() + 10
        while len(self.statuses) < count and time.monotonic() < end:
            time.sleep(0.01)
        return self.statuses


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Exits:
    made = Exits()
    monkeypatch.setattr(peers_module, "_exit", made)
    monkeypatch.setattr(peers_module, "_SECONDS_BETWEEN_LOOKS", 0.02)
    return made


@contextlib.contextmanager
def run_of(count: int, *, started: list[int] | None = None) -> Iterator[tuple[Store, list[Peers]]]:
    """The processes of a run, of which `started` send heartbeats; one is lost after 0.8 s."""
    store = Store(count)
    made = [Peers(store, process, count, None) for process in range(count)]
    doing("step 7")
    running = [made[i] for i in (range(count) if started is None else started)]
    for one in running:
        one.lost_after = 0.8
        one.start()
    try:
        yield store, made
    finally:
        for one in running:
            one.leave()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_process_without_signs_of_life_is_named_and_ends_all(
    lost: int, exits: Exits, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next in the ring notices; the others are told, and none waits for the lost one."""
    began = time.monotonic()
    with run_of(3, started=[i for i in range(3) if i != lost]):
        assert exits.wait(2) == [75, 75]
        assert time.monotonic() - began < 3.5  # the barrier gives up after 4 s
    said = capsys.readouterr().err
    assert said.count(f"process {lost} (?) is lost: no sign of life for 1 s") == 2, said


def test_what_a_lost_process_did_last(exits: Exits, capsys: pytest.CaptureFixture[str]) -> None:
    with run_of(2) as (_, made):
        time.sleep(0.1)
        made[1]._left.set()  # it is silent, and has not left
        assert exits.wait(1) == [75]
    assert "killed, stopped or cut off, last in: step 7" in capsys.readouterr().err


def test_one_that_has_left_is_not_missed(exits: Exits) -> None:
    with run_of(2) as (_, made):
        made[1].leave()
        time.sleep(1.2)
    assert exits.statuses == []


def test_an_error_ends_all_with_its_status(
    exits: Exits, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_of(3) as (_, made):
        with pytest.raises(SystemExit):
            made[1].end(Note("process 1 ended the run: no such file", 2))
        assert exits.wait(3) == [2, 2, 2]
    # It reported so itself.
    assert capsys.readouterr().err.count("plug-jax: process 1 ended the run: no such file\n") == 2


def test_the_others_are_told_before_an_error_is_shown(exits: Exits) -> None:
    """It may be a log that takes no more."""
    told = []
    with run_of(2) as (store, made), pytest.raises(SystemExit):
        made[1].end(
            Note("process 1 ended the run: no such file", 2),
            report=lambda: told.append("plug_jax/notes/end/1" in store.values),
        )
    assert told == [True]


@pytest.mark.parametrize("status", [75, None])
def test_a_hang_shows_the_stacks_of_all(
    status: int | None, exits: Exits, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[int] = []
    with run_of(2) as (_, made):
        for one in made:
            one.show_stacks_by(lambda text, process=one.process: shown.append(process))
        time.sleep(0.1)
        made[1].stalled(seconds=30, status=status)
        if status is not None:
            assert exits.wait(2) == [75, 75]
        time.sleep(0.2)
    assert sorted(shown) == [0, 1]
    assert exits.statuses == ([] if status is None else [75, 75])
    assert "no progress for 30 s: process 0 (" in capsys.readouterr().err


def test_a_coordinator_that_is_gone_ends_the_run(
    exits: Exits, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_of(2) as (store, _):
        store.gone = True
        assert exits.wait(2) == [75, 75]
    line = "the coordinator of the run, on the host of process 0, is gone (UNAVAILABLE: Socket"
    assert capsys.readouterr().err.count(line) == 2


def test_a_coordinator_that_is_silent_ends_the_run(
    exits: Exits, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_of(2) as (store, _):
        answers = threading.Event()
        monkeypatch.setattr(store, "_check", lambda: answers.wait(10))
        assert exits.wait(2) == [75, 75]
        answers.set()
    assert "has not answered for 1 s; this process was in: step 7" in capsys.readouterr().err


def test_all_stop_after_the_same_step(exits: Exits, capsys: pytest.CaptureFixture[str]) -> None:
    """Three processes at different steps; two get a signal at once, as on GKE."""
    with run_of(3) as (_, made):
        stopped: dict[int, int] = {}

        def train(peer: Peers, seconds: float) -> None:
            for step in range(1, 1000):
                time.sleep(seconds)
                if (note := peer.stop_after(step)) is not None:
                    assert (note.text, note.status) == ("SIGTERM", 143)
                    stopped[peer.process] = step
                    return

        threads = [
            threading.Thread(target=train, args=(peer, seconds))
            for peer, seconds in zip(made, (0.003, 0.004, 0.005), strict=True)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        for peer in made[1:]:
            peer.stop("SIGTERM", 143)
        for thread in threads:
            thread.join(10)
    assert len(stopped) == 3 and len(set(stopped.values())) == 1, stopped
    assert stopped[0] > 10
    assert exits.statuses == []
    assert capsys.readouterr().err == ""


def test_peers_are_known_within(exits: Exits) -> None:
    assert peers() is None
    made = Peers(Store(1), 0, 1, None)
    with among(made):
        assert peers() is made
    assert peers() is None
