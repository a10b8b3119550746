"""Failing saves, and retention."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from plug_jax.checkpoints.best import Best
from plug_jax.checkpoints.format import CHECKPOINTS
from plug_jax.checkpoints.saving import CannotSave, SaveHangs, reason_of
from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES, WordPieceVocabulary
from plug_jax.errors import PlugError
from plug_jax.training.checkpointing import CheckpointConfig, Checkpoints
from plug_jax.training.state import TrainState
from tests import synthetic
from tests.small_disk import fill, remount, small_disk

KILOBYTES = 256  # size of a state that does not compress
PIECES = (*SPECIAL_PIECES, "天")


@dataclasses.dataclass
class Place:
    """A data position whose writing may fail or block."""

    error: OSError | None = None
    wait: threading.Event | None = None

    def save(self, directory: str | os.PathLike[str]) -> None:
        if self.error:
            raise self.error
        if self.wait:
            self.wait.wait(20)
        Path(directory, "place").write_text("here")

    def restore(
        self, directory: str | os.PathLike[str], *, restart_changed: bool = False
    ) -> str | None:
        return None


def open_checkpoints(directory: Path, said: list[str], **settings: object) -> Checkpoints:
    vocabulary = directory / "vocab.txt"
    if not vocabulary.exists():
        vocabulary.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    best = settings.pop("best", None)
    return Checkpoints(
        directory,
        CheckpointConfig(**({"every": 1, "keep": 2} | settings)),  # type: ignore[arg-type]
        model=synthetic.tiny_config(vocab_size=len(PIECES)),
        vocabulary=WordPieceVocabulary(vocabulary),
        best=best,  # type: ignore[arg-type]
        say=said.append,
    )


def state(step: int) -> TrainState:
    values = np.random.default_rng(step).bytes(KILOBYTES << 10)
    return TrainState(jnp.int32(step), {"w": jnp.asarray(np.frombuffer(values, np.uint8))}, ())


def stored(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / CHECKPOINTS).iterdir())


def save(checkpoints: Checkpoints, *steps: int, place: Place | None = None) -> None:
    for step in steps:
        checkpoints.save(state(step), place or Place())


def test_a_full_disk_is_said_and_tried_again(tmp_path: Path) -> None:
    """Older checkpoints stay, the failed one leaves nothing, and with space the run continues."""
    said: list[str] = []
    with small_disk(tmp_path, 8 * KILOBYTES) as disk:
        checkpoints = open_checkpoints(disk, said)
        save(checkpoints, 1, 2)
        checkpoints.finish()
        before = os.statvfs(disk).f_bfree
        filler = fill(disk)
        filled = filler.stat().st_size
        os.truncate(filler, filled - (KILOBYTES << 9))  # half of a checkpoint's size
        save(checkpoints, 3)
        assert said == []
        save(checkpoints, 4)
        with pytest.raises(CannotSave, match="step 4 could not be saved: No space left") as error:
            checkpoints.finish()
        assert error.value.status == 74
        assert "the newest is that of step 2" in str(error.value)
        [line] = said
        assert line.startswith("the checkpoint of step 3 could not be saved: No space left on dev")
        assert line.count("\n") == 0 and len(line) < 300
        assert stored(disk) == ["1", "2"]
        filler.unlink()
        assert os.statvfs(disk).f_bfree == before
        save(checkpoints, 5, 6)
        checkpoints.finish()
        checkpoints.close()
        assert stored(disk) == ["5", "6"] and len(said) == 1


def test_a_disk_without_a_byte_left(tmp_path: Path) -> None:
    """Reported before anything of the checkpoint is written."""
    said: list[str] = []
    with small_disk(tmp_path, 2 * KILOBYTES) as disk:
        checkpoints = open_checkpoints(disk, said)
        save(checkpoints, 1)
        checkpoints.finish()
        fill(disk)
        save(checkpoints, 2)
        assert len(said) == 1 and "No space left on device" in said[0]
        checkpoints.close()
        assert stored(disk) == ["1"]


def test_a_file_system_gone_read_only(tmp_path: Path) -> None:
    said: list[str] = []
    with small_disk(tmp_path, 8 * KILOBYTES) as disk:
        checkpoints = open_checkpoints(disk, said, most_failures=2)
        save(checkpoints, 1)
        checkpoints.finish()
        remount(disk, "ro")
        save(checkpoints, 2)
        assert len(said) == 1 and "Read-only file system" in said[0]
        with pytest.raises(CannotSave, match=r"number 2 of consecutive saves .*SAVE_FAILURES = 2"):
            save(checkpoints, 3)
        remount(disk, "rw")
        save(checkpoints, 4)
        checkpoints.finish()
        checkpoints.close()
        assert stored(disk) == ["1", "4"]


def test_a_directory_that_vanishes_is_not_made_anew(tmp_path: Path) -> None:
    """It may be a lost mount; once it is back, the run continues there."""
    said: list[str] = []
    checkpoints = open_checkpoints(tmp_path, said)
    save(checkpoints, 1)
    checkpoints.finish()
    (tmp_path / CHECKPOINTS).rename(tmp_path / "gone")
    save(checkpoints, 2)
    assert len(said) == 1 and "No such file or directory" in said[0]
    assert not (tmp_path / CHECKPOINTS).exists()
    (tmp_path / "gone").rename(tmp_path / CHECKPOINTS)
    save(checkpoints, 3)
    checkpoints.finish()
    checkpoints.close()
    assert stored(tmp_path) == ["1", "3"]


def test_a_quota_met_by_the_place_in_the_data(tmp_path: Path) -> None:
    said: list[str] = []
    checkpoints = open_checkpoints(tmp_path, said)
    save(checkpoints, 1)
    over = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "place")
    save(checkpoints, 2, place=Place(error=over))
    with pytest.raises(CannotSave, match=r"step 2 could not be saved: Disk quota exceeded: place"):
        checkpoints.finish()
    checkpoints.close()
    assert stored(tmp_path) == ["1"] and said == []


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    said: list[str] = []
    left = tmp_path / CHECKPOINTS / "7.orbax-checkpoint-tmp" / "params"
    left.mkdir(parents=True)
    (left / "d").write_bytes(bytes(99))
    checkpoints = open_checkpoints(tmp_path, said)
    assert left.exists()  # could be another run's, before the first save
    save(checkpoints, 8)
    checkpoints.close()
    assert stored(tmp_path) == ["8"]


def test_a_save_that_hangs_ends_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    checkpoints = open_checkpoints(tmp_path, said, timeout=1)
    answer = threading.Event()
    started = time.monotonic()
    with pytest.raises(SaveHangs, match=r"step 1 was not written within 1 s \(SAVE_TIMEOUT\)"):
        save(checkpoints, 1, place=Place(wait=answer))
    checkpoints.close()
    assert time.monotonic() - started < 10
    answer.set()


def test_retention(tmp_path: Path) -> None:
    """Keeps the newest two, every fourth permanently, and the best; also after a failed save."""
    said: list[str] = []
    best = Best("accuracy")
    checkpoints = open_checkpoints(tmp_path, said, keep_every=4, best=best)
    for step in range(1, 12):
        metrics = {"accuracy": 0.9} if step == 3 else None
        error = OSError(errno.ENOSPC, "No space left on device") if step == 9 else None
        checkpoints.save(state(step), Place(error), best_metrics=metrics)
    checkpoints.finish()
    checkpoints.close()
    assert stored(tmp_path) == ["10", "11", "3", "4", "8"]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 10, "keep_every": 25}, r"KEEP_EVERY must be a multiple of .* \(10\), got 25"),
        ({"keep_every": 0}, "KEEP_EVERY must be a multiple"),
        ({"most_failures": 0}, "SAVE_FAILURES must be 1 or more"),
        ({"timeout": 0.5}, "SAVE_TIMEOUT must be 1 s or more"),
    ],
)
def test_settings(settings: dict, message: str) -> None:
    with pytest.raises(PlugError, match=message):
        CheckpointConfig(**({"every": 1} | settings))


def errors() -> Iterator[tuple[Exception, str]]:
    yield OSError(errno.EACCES, "Permission denied", "a/b"), "Permission denied: a/b"
    yield (
        ValueError(
            'RESOURCE_EXHAUSTED: Error writing "w/0" in OCDBT database at "x": Failed to '
            "write 184555 bytes to file 13: No space left on device [os_error_code='28']"
        ),
        "No space left on device",
    )
    message = "{{function_node __wrapped__SaveV2_device_/job:a}} a/b; File too large [Op:SaveV2]"
    yield tf.errors.OutOfRangeError(None, None, message), "a/b; File too large"
    yield RuntimeError("first\nsecond"), "first"
    yield KeyError(), "KeyError"


@pytest.mark.parametrize(("error", "reason"), errors())
def test_reasons_are_one_line(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
