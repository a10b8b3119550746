"""The files that a run writes about itself."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plug_jax.errors import PlugError
from plug_jax.training import writers
from plug_jax.training.writers import (
    METRICS_FILE,
    MetricsWriter,
    read_metrics,
    read_summary,
    write_summary,
)
from tests.small_disk import largest_file

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x03\0\0\0\x02"  # how one of 3 x 2 begins


def test_metrics_that_are_no_numbers_are_null(tmp_path: Path) -> None:
    """Including those that an older version wrote as NaN."""
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "split": "train", "loss": NaN}\n')
    writer = MetricsWriter(tmp_path, start_step=1)
    writer.write(2, "train", {"loss": math.inf, "grad_norm": 1.5})
    writer.close()
    assert (tmp_path / METRICS_FILE).read_text().splitlines() == [
        '{"step": 1, "split": "train", "loss": null}',
        '{"step": 2, "split": "train", "loss": null, "grad_norm": 1.5}',
    ]
    assert all(math.isnan(record["loss"]) for record in read_metrics(tmp_path))


def write(model_dir: Path, steps: range, *, start_step: int, loss: float = 0.0) -> None:
    writer = MetricsWriter(model_dir, start_step=start_step)
    for step in steps:
        writer.write(step, "train", {"loss": loss or step})
    writer.close()


def steps_of(model_dir: Path) -> list[int]:
    return [record["step"] for record in read_metrics(model_dir)]


def scalars(model_dir: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    """As TensorBoard shows them."""
    shown = EventAccumulator(str(model_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(one.step, one.value) for one in shown.Scalars(tag)]


def test_each_step_stands_once_in_the_file_and_in_tensorboard(tmp_path: Path) -> None:
    """A run killed after step 5 with its newest checkpoint at step 3; and again immediately."""
    write(tmp_path, range(1, 6), start_step=0)
    write(tmp_path, range(4, 5), start_step=3, loss=7)
    write(tmp_path, range(4, 7), start_step=3, loss=9)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert scalars(tmp_path) == [(1, 1), (2, 2), (3, 3), (4, 9), (5, 9), (6, 9)]


def test_a_run_goes_back_to_a_checkpoint(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, start_step=0)
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": step})
    writer.go_on_from(1)
    writer.write(2, "train", {"loss": 5})
    writer.close()
    assert steps_of(tmp_path) == [1, 2] and scalars(tmp_path) == [(1, 1), (2, 5)]


def test_a_file_with_nothing_to_cut_is_appended_to(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), start_step=0)
    before = (tmp_path / METRICS_FILE).stat()
    write(tmp_path, range(4, 5), start_step=3)
    after = (tmp_path / METRICS_FILE).stat()
    assert (before.st_ino, before.st_size < after.st_size) == (after.st_ino, True)


def test_a_kill_while_records_are_cut_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(part: str, name: str) -> None:
        raise KeyboardInterrupt

    write(tmp_path, range(1, 6), start_step=0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        MetricsWriter(tmp_path, start_step=3)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]
    write(tmp_path, range(4, 5), start_step=3)
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    assert {path.name for path in tmp_path.iterdir()} == {METRICS_FILE, "tensorboard"}


def test_a_store_is_written_to_by_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on gs://, to which TensorFlow writes as to a local file."""
    monkeypatch.setattr(writers, "is_remote", lambda path: True)
    write(tmp_path, range(1, 6), start_step=0)
    writer = MetricsWriter(tmp_path, start_step=3)
    writer.write(4, "train", {"loss": 9})
    assert steps_of(tmp_path) == [1, 2, 3, 4]  # each record immediately
    writer.sync()
    writer.close()


def test_half_a_line_and_half_an_event_of_a_killed_run(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), start_step=0)
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write('{"step": 4, "split": "tr失'.encode()[:-1])
    [events] = (tmp_path / "tensorboard").iterdir()
    with events.open("ab") as file:
        file.write(events.read_bytes()[:50])
    assert steps_of(tmp_path) == [1, 2, 3]
    write(tmp_path, range(4, 6), start_step=3)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]
    assert [step for step, _ in scalars(tmp_path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\0",
        b"3",
        b"null",
        b"[]",
        b'"step"',
        b"{}",
        b'{"step": 2}',
        b'{"split": "train"}',
        b'{"step": "2", "split": "train"}',
        b'{"step": 2, "split": "train", "loss": "low"}',
        b"[" * 100_000,
    ],
    ids=lambda line: line[:20].decode(errors="replace"),
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / METRICS_FILE).write_bytes(b'{"step": 1, "split": "train"}\n' + line + b"\n")
    with pytest.raises(PlugError, match=r"metrics.jsonl, line 2, is not a record of a step"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "{}", '{"step": 3}', '{"step": 3, "metrics": 1}', "\0"]
)
def test_a_summary_that_is_none_is_as_if_it_were_not_there(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content, encoding="utf-8")
    assert read_summary(epath.Path(tmp_path)) is None
    write_summary(epath.Path(tmp_path), {"step": 3, "metrics": {"loss": 1.0}})
    assert read_summary(epath.Path(tmp_path)) == {"step": 3, "metrics": {"loss": 1.0}}


def test_what_a_full_disk_refuses_is_written_when_it_has_space(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = MetricsWriter(tmp_path, start_step=0)
    writer.write(1, "train", {"loss": 1})
    writer.sync()
    size = (tmp_path / METRICS_FILE).stat().st_size
    with largest_file(size + 20), caplog.at_level(logging.WARNING):
        for step in (2, 3):
            writer.write(step, "train", {"loss": step})
        with pytest.raises(OSError, match=METRICS_FILE):
            writer.sync()
        assert steps_of(tmp_path) == [1]
        assert (tmp_path / METRICS_FILE).stat().st_size == size  # not half a line
    assert len(caplog.messages) == 2 and "wait until they can be written" in caplog.text
    writer.write(4, "train", {"loss": 4})
    writer.sync()
    writer.close()
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    assert scalars(tmp_path) == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_picture(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, start_step=0)
    writer.write_image(4, "validation/confusion", PNG)
    writer.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    [image] = shown.Images("validation/confusion/image/0")
    assert (image.step, image.width, image.height) == (4, 3, 2)
    assert image.encoded_image_string == PNG
