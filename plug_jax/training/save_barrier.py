"""Where the processes of a run meet to write a checkpoint, unless one of them cannot."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any

import orbax.checkpoint as ocp

from plug_jax.hosts.peers import peers

_SECONDS_BETWEEN_LOOKS = 1.0


class AnotherFailed(Exception):
    """What this process wrote is for nothing: another one could not write its part."""

    def __init__(self) -> None:
        super().__init__("another process could not write its part")


class SaveBarrier:
    """Where each process of a run waits until all have written their parts.

    Orbax's own waits for one that has failed until its time is over.
    """

    def __init__(self, name: str) -> None:
        """`name`: of the saves that end with the first failure."""
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
        """The same future, whose failure the others are told of."""
        return WatchedFuture(written, self)

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """What orbax calls, in a thread of its own, on every process.

        Raises:
            AnotherFailed: before or while this process waited.
        """
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
    """What orbax waits for, see `SaveBarrier.watched`."""

    def __init__(self, written: Any, barrier: SaveBarrier) -> None:
        """`written` has a method `result`, as orbax's futures."""
        self._written, self._barrier = written, barrier

    def result(self, timeout: float | None = None) -> Any:
        """The result; raises what the other raises."""
        try:
            return self._written.result(timeout=timeout)
        except Exception as error:
            self._barrier.failed(error)
            raise
