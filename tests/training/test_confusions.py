"""The picture of a classifier's confusions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plug_jax.checkpoints.format import PlainPath
from plug_jax.clue.records import TextRecord
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.downstream.text_format import TextFormat
from plug_jax.training import confusions
from plug_jax.training.confusions import draw_confusion


@pytest.mark.parametrize("refused", [False, True])
def test_a_picture_that_cannot_be_written_does_not_end_the_run(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = SimpleNamespace(
        records=lambda split: [TextRecord(0, ("一",), "a")],
        answers=lambda split, outputs: [{"prediction": "b"}],
    )
    format_ = TextFormat(max_length=8, labels=("a", "b"))
    task = SimpleNamespace(format=format_, splits_of_records=records)
    monkeypatch.setattr(confusions, "record_tasks", lambda name: [task])
    if refused:
        (tmp_path / "confusion.png").mkdir()
    images: list[bytes] = []
    writer: Any = SimpleNamespace(write_image=lambda step, name, png: images.append(png))
    data = DatasetConfig("none", {"encoder": 24}, "validation", 8, shuffle=False, seed=0)
    said: list[str] = []
    draw_confusion(data, {}, PlainPath.of(tmp_path), writer, 3, say=said.append)
    assert len(images) == 1
    if refused:
        [line] = said
        assert line.startswith("confusion.png could not be written: ") and "irectory" in line
    else:
        assert not said and (tmp_path / "confusion.png").read_bytes() == images[0]
