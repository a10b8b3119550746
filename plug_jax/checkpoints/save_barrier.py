"""A barrier for the processes that write a checkpoint; it breaks when one of them fails."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
from typing import Any

import orbax.checkpoint as ocp

from plug_jax.hosts.peers import peers

_SECONDS_BETWEEN_LOOKS = 1.0


class AnotherFailed(Exception):
    """Another process could not write its part, so the whole save is lost."""

    def __init__(self) -> None:
        super().__init__("another process could not write its part")


class SaveBarrier:
    """Each process of a run waits here until all have written their parts.

    If a process fails, orbax's own barrier waits until its timeout.
    """

    def __init__(self, name: str) -> None:
        """`name`: identifies the series of saves that ends with the first failure."""
        self.name = name
        self._board = f"failed_saves/{name}"
        self._peers = peers()
        self.error: Exception | None = None  # why this process could not write its part

    def failed(self, error: Exception) -> None:
        """Tell the others that this process could not write its part."""
        self.error = self.error or error
        if self._peers is not None:
            self._peers.post(self._board)

    def watched(self, written: Any) -> WatchedFuture:
        """The same future, but the others are told if it fails."""
        return WatchedFuture(written, self)

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Called by orbax, in its own thread, on every process.

        At the end of a save orbax comes here from a `finally`: if an error is on its way, nobody is
        waited for. It may be of the commit, which the first process does while the others wait.

        Raises:
            AnotherFailed: another process failed before or during the wait.
        """
        if isinstance(error := sys.exception(), Exception):
            if not isinstance(error, AnotherFailed):
                self.failed(error)
            return
        met: concurrent.futures.Future[None] = concurrent.futures.Future()
        wait = ocp.multihost.get_barrier_sync_fn()

        def meet() -> None:
            try:
                met.set_result(wait(key=key, timeout_ms=timeout_ms))
            except Exception as error:
                met.set_exception(error)

        threading.Thread(target=meet, daemon=True).start()
        while not concurrent.futures.wait([met], _SECONDS_BETWEEN_LOOKS).done:
            if self._peers is not None and self._peers.posted(self._board):
                raise AnotherFailed
        met.result()


class WatchedFuture:
    """The future that orbax waits for, see `SaveBarrier.watched`."""

    def __init__(self, written: Any, barrier: SaveBarrier) -> None:
        """`written` has a method `result`, as orbax's futures."""
        self._written, self._barrier = written, barrier

    def result(self, timeout: float | None = None) -> Any:
        """The result; raises the wrapped future's error."""
        try:
            return self._written.result(timeout=timeout)
        except Exception as error:
            self._barrier.failed(error)
            raise
