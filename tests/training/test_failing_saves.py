"""Whole runs whose checkpoints temporarily cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from plug_jax.checkpoints.saved_model import load_for_inference, open_checkpoint
from plug_jax.checkpoints.saving import CannotSave
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.training.checkpointing import CheckpointConfig, Checkpoints
from plug_jax.training.loop import train
from plug_jax.training.program import TrainConfig
from plug_jax.training.state import TrainState
from plug_jax.training.writers import read_metrics
from tests import synthetic, tiny_run
from tests.small_disk import fill, small_disk
from tests.training.program_runs import run_config, write_task

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def data(root: Path) -> DatasetConfig:
    return write_task(root, "failing_saves")


def config_of(model_dir: Path, data: DatasetConfig) -> TrainConfig:
    return run_config(
        model_dir=str(model_dir),
        model=synthetic.tiny_config(vocab_size=38, num_decoder_layers=0, hidden_size=128),
        train_data=data,
        train_steps=8,
        checkpoint=CheckpointConfig(every=2, keep=2),
        log_every=1,
    )


def losses(model_dir: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_metrics(model_dir)]


def test_a_disk_that_fills_up_and_is_freed(
    data: DatasetConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run trains on, ends with a status of its own, and resumes exactly once there is space."""
    whole, model_dir = tmp_path / "whole", tmp_path / "run"
    train(config_of(whole, data))
    size = sum(path.stat().st_size for path in (whole / "checkpoints/8").rglob("*"))
    with small_disk(tmp_path, 5 * size >> 10) as disk:
        model_dir.mkdir()
        (model_dir / "checkpoints").symlink_to(disk)
        save = Checkpoints.save

        def save_on_full_disk(
            self: Checkpoints, state: TrainState, *args: Any, **kwargs: Any
        ) -> None:
            if int(state.step) == 6:
                self.regular_steps()  # waits for the previous save
                fill(disk)
            save(self, state, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", save_on_full_disk)
            with pytest.raises(CannotSave, match="step 8 could not be saved: No space") as error:
                train(config_of(model_dir, data))
        assert error.value.status == 74
        assert "the checkpoint of step 6 could not be saved: No space" in capsys.readouterr().err
        assert sorted(path.name for path in disk.iterdir()) == ["2", "4", "filler"]
        assert open_checkpoint(model_dir).step == 4
        assert not (model_dir / "summary.json").exists()

        (disk / "filler").unlink()
        train(config_of(model_dir, data))
        assert losses(model_dir) == losses(whole)
        _, ours, _ = load_for_inference(model_dir)
        _, theirs, _ = load_for_inference(whole)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        assert sorted(path.name for path in disk.iterdir()) == ["6", "8"]
        goodput = json.loads((model_dir / "summary.json").read_text())["goodput"]
        assert goodput["starts"] == 2 and goodput["seconds"]["lost"] > 0
        assert "goodput" in capsys.readouterr().err


def test_a_file_system_that_does_not_answer(root: Path, data: DatasetConfig) -> None:
    """Opening a pipe without a reader blocks forever; the process ends nevertheless."""
    checkpoints = root / "hangs" / "checkpoints"
    checkpoints.mkdir(parents=True)
    os.mkfifo(checkpoints / ".can-be-written")
    bindings = (
        f"MODEL_DIR = {str(root / 'hangs')!r}",
        f"TRAIN_FILES = {str(root / 'text.txt')!r}",
        f"VOCABULARY = {str(root / 'vocab.txt')!r}",
        "EVAL_DATA = None",
        "MAX_LENGTH = 24",
        "TASK_FEATURE_LENGTHS = {'encoder': 24}",
        "BATCH_SIZE = 8",
        "TRAIN_STEPS = 2",
        "CHECKPOINT_EVERY = 1",
        "SAVE_TIMEOUT = 2",
        *tiny_run.MODEL,
    )
    files = ("runs/structbert_pretrain.gin", "models/tiny.gin", "mesh/cpu1.gin")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "plug_jax", "train"),
            *(f"--gin_file={file}" for file in files),
            *(f"--gin.{binding.replace(' = ', '=', 1)}" for binding in bindings),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_PROCESSES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 74, ended.stderr
    assert "step 1 was not written within 2 s (SAVE_TIMEOUT)" in ended.stderr
    assert "Traceback" not in ended.stderr
