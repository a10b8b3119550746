"""Outputs that are kept in MODEL_DIR: they save time, and never stand in the way. No model runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from etils import epath

from plug_jax.clue.records import TextRecord
from plug_jax.clue.tasks import Split
from plug_jax.downstream.record_task import SplitRecords
from plug_jax.downstream.text_format import TextFormat
from plug_jax.finetuning.runs import FineTunedRun

OUTPUTS = {"classification_logits": np.arange(6, dtype=np.float32).reshape(3, 2)}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that a model was run on."""
    splits: list[str] = []
    monkeypatch.setattr(
        FineTunedRun, "_compute", lambda self, split: splits.append(split) or dict(OUTPUTS)
    )
    return splits


def run_in(model_dir: Path) -> FineTunedRun:
    step = epath.Path(model_dir) / "checkpoints" / "1"
    step.mkdir(parents=True, exist_ok=True)
    saved: Any = SimpleNamespace(step=1, path=step, task={"name": "t"})
    split = Split([TextRecord(0, ("x",), "a")], {}, "file")
    format_ = TextFormat(max_length=16, labels=("a", "b"))
    vocabulary: Any = None
    records = SplitRecords(format_, vocabulary, lambda _: split, ("validation",))
    config: Any = None
    return FineTunedRun(str(model_dir), "t", saved, config, records)


def outputs_are_whole(one: FineTunedRun) -> bool:
    found = one.outputs("validation")
    return found.keys() == OUTPUTS.keys() and all(
        np.array_equal(found[name], OUTPUTS[name]) for name in OUTPUTS
    )


def test_damaged_outputs_are_computed_again(
    tmp_path: Path, computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    one = run_in(tmp_path)
    assert outputs_are_whole(one)
    path = tmp_path / "outputs" / "t-validation.npz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    half = len(whole) // 2
    damaged = [b"", b"text", b"PK", whole[:half], whole[:-1], whole[half:], bytes(flipped)]
    np.save(tmp_path / "an_array.npy", np.zeros(2))
    damaged.append((tmp_path / "an_array.npy").read_bytes())
    np.savez(tmp_path / "others.npz", other=np.zeros(2))
    damaged.append((tmp_path / "others.npz").read_bytes())
    for content in damaged:
        path.write_bytes(content)
        computed.clear()
        capsys.readouterr()
        assert outputs_are_whole(one) and computed == ["validation"]
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"{path} is computed again: it is unreadable (")
        assert outputs_are_whole(one) and computed == ["validation"]  # the cache is mended
    assert capsys.readouterr().err == ""


def test_outputs_that_cannot_be_kept_are_returned(
    tmp_path: Path, computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outputs").write_text("a file")
    assert outputs_are_whole(run_in(tmp_path))
    (said,) = capsys.readouterr().err.splitlines()
    path = tmp_path / "outputs"
    assert said == f"{path}/t-validation.npz is not kept for the next time: File exists: {path}"
