"""`plug-jax bench train` on a minimal model."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from typing import Any

import numpy as np
import pytest

from plug_jax.benchmarks import train
from plug_jax.cli.main import main
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.planning.flops import model_flops
from tests.training.program_runs import run_config

SMALL = [
    "--gin.VOCAB_SIZE=200",
    "--gin.MAX_LENGTH=48",
    "--gin.config.PlugConfig.hidden_size=16",
    "--gin.config.PlugConfig.num_encoder_layers=1",
    "--gin.config.PlugConfig.max_positions=48",
    "--steps=2",
    "--rounds=2",
    "--json",
]


def test_rates_are_of_the_median_round() -> None:
    config = run_config()
    batches = []
    for real in (10, 30):
        segments = np.zeros((8, 24), np.int32)
        segments.flat[:real] = 1
        batches.append({"encoder_segment_ids": segments, "encoder_input_tokens": segments})
    found = train.TrainSpeed(config, batches, (9.0, 4.0, 1.0)).to_json()
    flops = model_flops(config.model, config.objectives, {"encoder": 24}, 8).train_step
    assert found == {
        "step_seconds": [1.25, 2.0, 3.25],
        "steps_per_second": 0.5,
        "tokens_per_second": 96.0,
        "real_tokens_per_second": 10.0,
        "model_flops_per_second": flops / 2,
    }


def test_padded_rows_hold_as_many_tokens_a_step() -> None:
    config = run_config()
    data = DatasetConfig("none", {"encoder": 48}, "train", 3, shuffle=True, seed=0)
    model = dataclasses.replace(config.model, max_positions=16)
    padded = train._padded(dataclasses.replace(config, model=model, train_data=data)).train_data
    assert (padded.pack, padded.feature_lengths, padded.batch_size) == (False, {"encoder": 16}, 9)


def bench(
    capsys: pytest.CaptureFixture[str], *options: str, row: str = "{'encoder': 64}"
) -> dict[str, Any]:
    row = f"--gin.TASK_FEATURE_LENGTHS={row}"
    assert main(["bench", "train", *SMALL, row, *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_without_data_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(capsys, "--gin.BATCH_SIZE=16")
    assert (found["batch_size"], found["row_lengths"]) == (16, {"encoder": 64})
    assert found["model"]["hidden_size"] == 16
    (ours,) = found["ways"].values()
    assert ours["tokens_per_second"] == pytest.approx(16 * 64 * ours["steps_per_second"])
    assert 0.5 * ours["tokens_per_second"] < ours["real_tokens_per_second"]
    parameters = 4 * 3 * 16 * 200  # bytes of the word table and its two moments
    assert ours["device_bytes"] > parameters and ours["compile_seconds"] > 0
    assert ours["mfu"] is None  # there is no published peak for a CPU


def test_mfu_is_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config()
    monkeypatch.setattr(train, "peak_flops", lambda kind: {"cpu": 4e12}[kind])
    devices = config.partitioner.mesh.devices.size
    assert train._mfu({"model_flops_per_second": 1e12}, config) == pytest.approx(0.25 / devices)


def test_a_missing_pytorch_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    assert main(["bench", "train", *SMALL, "--against", "torch"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == (
        "plug-jax: error: training in PyTorch needs PyTorch: pip install 'plug-jax[convert]'"
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("MICRO_BATCHES=2", "one micro-batch"),
        ("optimizer.OptimizerConfig.moment_dtype='bfloat16'", "float32 moments"),
        ("optimizer.OptimizerConfig.name='adafactor'", "AdamW with a linear schedule"),
    ],
)
def test_a_run_that_is_not_in_pytorch_is_refused(
    setting: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert main(["bench", "train", *SMALL, f"--gin.{setting}", "--against", "torch"]) == 2
    assert capsys.readouterr().err.endswith(f"is not a run with: {said}\n")


def test_other_measurements_take_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "soak", "--gin.TRAIN_STEPS=3"]) == 2
    assert "bench soak takes options, not gin settings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "soak", "stray"])


@pytest.mark.parity
@pytest.mark.parametrize(("stage", "dtype"), [("stage1", "bfloat16"), ("stage2", "float32")])
def test_both_are_timed(stage: str, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, row = ["--against", "torch", "--gin.BATCH_SIZE=16"], "{'encoder': 96}"
    options.append(f"--gin.config.PlugConfig.dtype={dtype!r}")
    if stage == "stage2":
        files = ("runs/palm_pretrain.gin", "models/tiny.gin", "mesh/cpu1.gin")
        options += [f"--gin_file={file}" for file in files]
        row = "{'encoder': 96, 'decoder': 96}"
        options += ["--gin.MIN_LENGTH=6", "--gin.DECODER_LAYERS=1"]
    ways = bench(capsys, *options, row=row)["ways"]
    assert list(ways) == ["plug_jax", "torch", "torch_padded"]
    for name, rate in (("torch", "tokens"), ("torch_padded", "real_tokens")):
        low, times, high = ways[name]["times_quartiles"]
        assert low <= times == ways[name]["times"] <= high
        # Of two rounds: the ratio of medians is near the median of ratios.
        found = ways["plug_jax"][f"{rate}_per_second"] / ways[name][f"{rate}_per_second"]
        assert times == pytest.approx(found, rel=0.5)
    share = {
        name: way["real_tokens_per_second"] / way["tokens_per_second"] for name, way in ways.items()
    }
    assert share["torch"] == pytest.approx(share["plug_jax"])
    assert share["torch_padded"] < share["torch"]
