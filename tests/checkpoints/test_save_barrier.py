"""The barrier of a checkpoint's writers, on one process whose peers are simulated."""

from __future__ import annotations

import threading
from collections.abc import Callable

import orbax.checkpoint as ocp
import pytest

from plug_jax.checkpoints import save_barrier
from plug_jax.checkpoints.save_barrier import AnotherFailed, SaveBarrier


class Board:
    """What the processes tell each other."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def post(self, name: str) -> None:
        self.names.add(name)

    def posted(self, name: str) -> bool:
        return name in self.names


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    """That of a run whose other process never arrives at a barrier."""
    board, arrives = Board(), threading.Event()

    def barrier() -> Callable[..., None]:
        return lambda *, key, timeout_ms: (arrives.wait(timeout_ms / 1000), None)[1]

    monkeypatch.setattr(save_barrier, "peers", lambda: board)
    monkeypatch.setattr(ocp.multihost, "get_barrier_sync_fn", barrier)
    monkeypatch.setattr(save_barrier, "_SECONDS_BETWEEN_LOOKS", 0.01)
    return board


def save(barrier: SaveBarrier, error: Exception | None) -> None:
    """The end of a save in orbax, with an error or without."""
    try:
        if error is not None:
            raise error
    finally:
        barrier(key="end", timeout_ms=2000)


def test_a_failed_commit_is_told_and_waits_for_nobody(board: Board) -> None:
    barrier = SaveBarrier("save0")
    error = OSError("no space")
    with pytest.raises(OSError, match="no space"):
        save(barrier, error)
    assert barrier.error is error and board.names == {"failed_saves/save0"}


def test_who_waits_hears_of_it(board: Board) -> None:
    barrier = SaveBarrier("save0")
    threading.Timer(0.1, board.post, ["failed_saves/save0"]).start()
    with pytest.raises(AnotherFailed):
        save(barrier, None)
    assert barrier.error is None


def test_the_failure_of_another_is_not_this_process_s_own(board: Board) -> None:
    barrier = SaveBarrier("save0")
    with pytest.raises(AnotherFailed):
        save(barrier, AnotherFailed())
    assert barrier.error is None and not board.names
