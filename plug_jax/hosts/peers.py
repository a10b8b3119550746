"""The processes of a run: heartbeats, and announcing why the run ends.

They communicate through the key-value store of JAX's coordinator. Every second each writes a
heartbeat, checks that of the previous process (the first checks the last), and reads notes. All
follow a note at once, whatever their main threads and devices wait for.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from plug_jax.hosts.activity import current
from plug_jax.hosts.coordinator import Coordinator
from plug_jax.hosts.errors import HostError
from plug_jax.standard_error import flush_output, say

LOST_AFTER = 60.0  # seconds; the default

_ROOT = "plug_jax"
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_HEAR = 10.0  # at most, for the other processes to learn why the run ends
_SECONDS_TO_AGREE = 600.0  # at most, for all to say which step they are at
_NEVER = sys.maxsize


@dataclasses.dataclass(frozen=True)
class Note:
    """An instruction to all processes."""

    text: str  # the line that the others print
    status: int | None = None  # end with it
    stacks: bool = False  # first show what each thread is doing
    lost: Sequence[int] = ()  # the processes that will not read it
    stop: bool = False  # after the same step on each; `status` and `text` give the reason


class Peers:
    """This process's view of its run's processes."""

    def __init__(
        self, client: Any, process: int, count: int, coordinator: Coordinator | None
    ) -> None:
        """`client` of JAX's coordinator, which process 0 started."""
        self.process = process
        self._client, self._count = client, count
        self._coordinator = coordinator
        self._host = socket.gethostname()
        self._show_stacks: Callable[[str], None] = lambda text: None
        self._left, self._wake = threading.Event(), threading.Event()
        self._ending = threading.Lock()
        self._looks = 0
        self._heard: set[str] = set()
        self._neighbour = (process - 1) % count
        self._last_sign: dict[str, Any] = {}
        self._looks_without_sign = 0
        self._stopping = threading.Lock()  # held while all report their step
        self._stop: Note | None = None
        self._agreeing = False
        self._step, self._last_step = 0, _NEVER
        self._threads = [
            threading.Thread(target=one, daemon=True) for one in (self._meet, self._watch)
        ]
        self.lost_after = LOST_AFTER

    @property
    def lost_after(self) -> float:
        """Seconds without a heartbeat after which a process is lost."""
        return self._lost_after

    @lost_after.setter
    def lost_after(self, seconds: float) -> None:
        self._lost_after = seconds
        if self._coordinator is not None:  # outlives this process until the others have noticed
            self._coordinator.outlive(seconds + 5.0)

    def start(self) -> None:
        """Start sending and checking heartbeats."""
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """The run is over for this process; it must not count as lost."""
        self._left.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(RuntimeError):
            self._show_life(left=True)
        if self._coordinator is not None:
            self._coordinator.outlive(2.0)

    def show_stacks_by(self, show: Callable[[str], None]) -> None:
        """Call `show` with the reason when a note asks for stacks."""
        self._show_stacks = show

    def end(self, note: Note, *, report: Callable[[], object] = lambda: None) -> NoReturn:
        """End all processes; `report` says why on this one, once the others are told."""
        self._ending.acquire()  # from now on this process follows no other notes
        self._write(f"notes/end/{self.process}", dataclasses.asdict(note), must=False)
        report()
        self._end(note)

    def stalled(self, *, seconds: float, status: int | None) -> None:
        """This process hangs: all dump their stacks, and end if there is a status.

        Raises:
            RuntimeError: the coordinator does not answer.
        """
        doing = collections.defaultdict(list)
        for process, sign in sorted(self._signs().items()):
            doing[sign["doing"]].append(f"{process} ({sign['host']})")
        who = "; ".join(f"process {', '.join(names)} in: {what}" for what, names in doing.items())
        note = Note(f"no progress for {seconds:,.0f} s: {who}", status, stacks=True)
        self._write(f"notes/stall/{self.process}/{self._looks}", dataclasses.asdict(note))
        self._wake.set()

    def stop(self, text: str, status: int) -> None:
        """Stop all processes after a step; returns at once. Safe in a signal handler."""
        self._stop = Note(text, status, stop=True)
        self._wake.set()

    def post(self, board: str) -> None:
        """Post to a board, a path such as "a/b", which is only read on request."""
        self._write(f"boards/{board}/{self.process}", True, must=False)

    def posted(self, board: str) -> bool:
        """Whether any process has posted there.

        Raises:
            RuntimeError: the coordinator does not answer.
        """
        return bool(self._read(f"boards/{board}"))

    def stop_after(self, step: int) -> Note | None:
        """Why the run is to stop after this step, the same one on every process; else None.

        Call it after each step in turn.
        """
        with self._stopping:
            self._step = step
            return self._stop if step >= self._last_step else None

    def _meet(self) -> None:
        """Exchange heartbeats and notes, once a second."""
        try:
            while not self._left.is_set():
                self._show_life()
                if self._stop is not None and not self._agreeing:
                    self._write(f"notes/stop/{self.process}", dataclasses.asdict(self._stop))
                for key, note in sorted(self._read("notes").items()):
                    if key not in self._heard:
                        self._heard.add(key)
                        self._follow(Note(**note))
                self._look_at_neighbour()
                self._looks += 1
                self._wake.wait(_SECONDS_BETWEEN_LOOKS)
                self._wake.clear()
        except RuntimeError as error:
            if not self._left.is_set():
                self._end_alone(f"is gone ({str(error).splitlines()[0]})")

    def _show_life(self, *, left: bool = False) -> None:
        sign = {"look": self._looks, "host": self._host, "doing": current().name, "left": left}
        self._write(f"signs/{self.process}/now", sign)

    def _signs(self) -> dict[int, dict[str, Any]]:
        return {int(key.split("/")[-2]): sign for key, sign in self._read("signs").items()}

    def _look_at_neighbour(self) -> None:
        for sign in self._read(f"signs/{self._neighbour}").values():
            if sign["left"] or sign["look"] != self._last_sign.get("look"):
                self._last_sign, self._looks_without_sign = sign, 0
                return
        # Counted, not timed: a process that was itself stopped has not checked for a while.
        self._looks_without_sign += 1
        if self._looks_without_sign * _SECONDS_BETWEEN_LOOKS < self._lost_after:
            return
        host, what = self._last_sign.get("host", "?"), self._last_sign.get("doing", "starting")
        note = Note(
            f"process {self._neighbour} ({host}) is lost: no sign of life for "
            f"{self._lost_after:.0f} s, so it was killed, stopped or cut off, last in: {what}",
            HostError.status,
            lost=[self._neighbour],
        )
        self.end(note, report=lambda: say(f"plug-jax: error: {note.text}"))

    def _follow(self, note: Note) -> None:
        """Follow a note, once."""
        if note.stop:
            if not self._agreeing:  # every process may have received the signal
                self._agreeing, self._stop = True, note
                threading.Thread(target=self._agree, daemon=True).start()
            return
        if note.status is not None and not self._ending.acquire(blocking=False):
            return
        say(f"plug-jax: {note.text}")
        if note.stacks:
            self._show_stacks(note.text)
        if note.status is not None:
            self._end(note)

    def _agree(self) -> None:
        """Agree on the step to stop after: one beyond the furthest dispatched."""
        with self._stopping:
            try:
                self._write(f"steps/{self.process}", self._step)
                self._client.wait_at_barrier(f"{_ROOT}/stop", int(_SECONDS_TO_AGREE * 1000))
                self._last_step = max(self._read("steps").values()) + 1
            except RuntimeError as error:
                say(f"plug-jax: no common step to stop at: {error}")

    def _watch(self) -> None:
        """End this process when the coordinator no longer answers."""
        looks, silent = -1, 0.0
        while not self._left.wait(_SECONDS_BETWEEN_LOOKS):
            silent = 0.0 if looks != self._looks else silent + _SECONDS_BETWEEN_LOOKS
            looks = self._looks
            if silent >= self._lost_after:
                self._end_alone(f"has not answered for {silent:.0f} s")

    def _end_alone(self, what: str) -> NoReturn:
        self._ending.acquire(timeout=_SECONDS_TO_HEAR)  # its holder may wait for the coordinator
        say(
            f"plug-jax: error: the coordinator of the run, on the host of process 0, {what}; this "
            f"process was in: {current().name}"
        )
        _exit(HostError.status)

    def _end(self, note: Note) -> NoReturn:
        """Exit when all reachable processes have read it."""
        assert note.status is not None
        alive = [process for process in range(self._count) if process not in note.lost]
        with contextlib.suppress(RuntimeError):
            wait_ms = int(_SECONDS_TO_HEAR * 1000)
            self._client.wait_at_barrier(f"{_ROOT}/end", wait_ms, alive)
        if self._coordinator is not None:
            self._coordinator.outlive(2.0)
        _exit(note.status)

    def _write(self, key: str, value: Any, *, must: bool = True) -> None:
        with contextlib.nullcontext() if must else contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"{_ROOT}/{key}", json.dumps(value), allow_overwrite=True)

    def _read(self, directory: str) -> dict[str, Any]:
        found = self._client.key_value_dir_get(f"{_ROOT}/{directory}/")
        return {key: json.loads(value) for key, value in found}


def _exit(status: int) -> NoReturn:
    flush_output()
    os._exit(status)


_peers: Peers | None = None


def peers() -> Peers | None:
    """The peers of this process's run, if any."""
    return _peers


@contextlib.contextmanager
def among(others: Peers) -> Iterator[None]:
    """Set `peers()` within the context."""
    global _peers
    others.start()
    _peers = others
    try:
        yield
    finally:
        _peers = None
        others.leave()
