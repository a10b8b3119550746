"""The best checkpoint by a metric, early stopping, and run lengths in epochs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest

from plug_jax.checkpoints.best import Best, BestSoFar, sign_of
from plug_jax.checkpoints.format import open_manager
from plug_jax.checkpoints.saved_model import open_checkpoint
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.errors import PlugError
from plug_jax.objectives.composition import features_of
from plug_jax.objectives.stages import STRUCTBERT
from plug_jax.training import opening
from plug_jax.training.checkpointing import CheckpointConfig
from plug_jax.training.epochs import rows_of_an_epoch, steps_of
from plug_jax.training.loop import train
from plug_jax.training.program import TrainConfig
from plug_jax.training.writers import read_metrics
from tests import synthetic
from tests.training.program_runs import interrupt_at, run_config, write_task


def followed(config: Best, values: list[float]) -> tuple[list[bool], list[bool], BestSoFar]:
    """For each value, whether it is the best so far and whether the run would stop; the state."""
    so_far = BestSoFar(config, [])
    better, exhausted = [], []
    for step, value in enumerate(values, 1):
        better.append(so_far.add(step, {"accuracy": value, "loss": 1.0}))
        exhausted.append(so_far.exhausted)
    return better, exhausted, so_far


@pytest.mark.parametrize("mode", ["max", "min"])
def test_patience_counts_evaluations_without_a_gain(mode: str) -> None:
    values = [0.5, 0.7, 0.7, 0.6, 0.8, 0.1, 0.2, 0.3]
    values = values if mode == "max" else [-value for value in values]
    config = Best("accuracy", mode, patience=3)  # type: ignore[arg-type]
    better, exhausted, so_far = followed(config, values)
    assert better == [True, True, False, False, True, False, False, False]
    assert exhausted == [False] * 7 + [True]
    assert so_far.step == 5 and so_far.metrics == {"accuracy": values[4], "loss": 1.0}


def test_less_is_better_of_errors() -> None:
    assert [sign_of(name) for name in ("accuracy", "em", "rmse", "classification_loss")] == [
        1, 1, -1, -1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "mode", "best"),
    [
        ("accuracy", None, 2),
        ("rmse", None, 3),
        ("decoder_loss", None, 3),
        ("decoder_perplexity", None, 3),
        ("loss", "max", 2),
        ("accuracy", "min", 3),
    ],
)
def test_the_metric_says_which_is_better(tmp_path: Path, metric: str, mode: Any, best: int) -> None:
    """Unless the settings do; and that one is kept."""
    config, values = Best(metric, mode), {1: 0.5, 2: 0.7, 3: 0.3, 4: 0.6}
    so_far = BestSoFar(config, [])
    with open_manager(tmp_path, max_to_keep=1, best=config, create=True) as manager:
        for step, value in values.items():
            metrics = {metric: value} if so_far.add(step, {metric: value}) else {}
            manager.save(step, args=ocp.args.Composite(it=ocp.args.JsonSave({})), metrics=metrics)
        manager.wait_until_finished()
        assert so_far.step == best
        assert sorted(manager.all_steps()) == [best, 4]


def test_a_gain_is_of_more_than_min_delta() -> None:
    """0.55 and 0.6 are new bests but within min_delta of 0.5; NaN and infinity are neither."""
    config = Best("accuracy", patience=4, min_delta=0.1)
    better, exhausted, _ = followed(config, [0.5, 0.55, 0.6, float("nan"), 0.59])
    assert better == [True, True, True, False, False]
    assert exhausted == [False] * 4 + [True]
    assert followed(config, [0.5, 0.55, 0.6, 0.61, 0.7])[1] == [False] * 5
    assert followed(config, [float("nan"), float("inf")])[2].step is None
    assert followed(Best("accuracy"), [0.5] + [0.4] * 100)[1][-1] is False


def test_a_metric_that_there_is_not() -> None:
    """Reported at the first evaluation, and on resuming: metrics.jsonl has the names."""
    with pytest.raises(PlugError, match="evaluation has no 'acuracy'; it has accuracy, loss"):
        followed(Best("acuracy"), [0.5])
    records = [
        {"step": 2, "split": "train", "loss": 1.0},
        {"step": 2, "split": "validation", "accuracy": 0.5},
    ]
    assert BestSoFar(Best("accuracy"), records).step == 2
    with pytest.raises(PlugError, match="has no 'acuracy'; it has accuracy"):
        BestSoFar(Best("acuracy"), records)


def test_settings_that_make_no_sense() -> None:
    for wrong, message in (
        ({"mode": "most"}, "mode must be one of"),
        ({"patience": 0}, "patience must be 1 or more"),
        ({"min_delta": -1.0}, "min_delta must be 0 or more"),
    ):
        with pytest.raises(PlugError, match=message):
            Best("accuracy", **wrong)  # type: ignore[arg-type]
    with pytest.raises(PlugError, match="best checkpoint by 'accuracy' needs evaluations"):
        run_config(best=Best("accuracy"))
    for steps in ({"train_steps": None}, {"train_steps": 3, "epochs": 1.0}):
        with pytest.raises(PlugError, match="give TRAIN_STEPS or EPOCHS, and set the other"):
            run_config(**steps)
    with pytest.raises(PlugError, match="EPOCHS must be positive"):
        run_config(train_steps=None, epochs=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    return write_task(tmp_path_factory.mktemp("best"), "best_stage1")


def test_an_epoch_is_all_rows(data: DatasetConfig) -> None:
    assert [steps_of(3, rows, 4) for rows in (8, 9, 10, 12, 13)] == [6, 9, 9, 9, 12]
    assert steps_of(0.5, 10, 4) == 2
    rows = rows_of_an_epoch(data, features_of(STRUCTBERT))
    other = dataclasses.replace(data, batch_size=rows - 1)
    # The second batch is padded with rows of weight 0.
    assert rows_of_an_epoch(other, features_of(STRUCTBERT)) == rows > 40
    config = run_config(train_data=data, train_steps=None, epochs=2.0, profile_steps=(2, 3))
    in_steps = config.in_steps()
    assert in_steps.steps == 2 * -(-rows // 8) and in_steps.epochs is None
    assert in_steps.in_steps() is in_steps


SCORES = [0.5, 0.7, 0.6, 0.65, 0.9]  # evaluations at every second step


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Evaluations that return SCORES in turn, whatever the model."""
    left = list(SCORES)

    def evaluator(*_: Any, **__: Any) -> Any:
        class Evaluator:
            def read_ahead(self) -> None:
                pass

            def metric_names(self) -> set[str]:
                return {"accuracy", "loss"}

            def compile_ahead(self) -> None:
                pass

            def newly_compiled(self) -> None:
                pass

            def scored(self, params: Any) -> tuple[dict[str, float], dict[str, Any]]:
                return {"accuracy": left.pop(0), "loss": 1.0}, {}

        return Evaluator()

    monkeypatch.setattr(opening, "Evaluator", evaluator)
    yield left


def loop_config(data: DatasetConfig, model_dir: Path, **changes: Any) -> TrainConfig:
    return run_config(
        model_dir=str(model_dir),
        model=synthetic.tiny_config(vocab_size=38, num_encoder_layers=1, num_decoder_layers=0),
        train_data=data,
        eval_data=dataclasses.replace(data, split="validation", shuffle=False, num_epochs=1),
        checkpoint=CheckpointConfig(every=3, keep=1),
        best=Best("accuracy", patience=2),
        train_steps=10,
        eval_every=2,
        log_every=1,
        **changes,
    )


def kept(model_dir: Path) -> list[str]:
    return sorted(path.name for path in (model_dir / "checkpoints").iterdir())


def check_stopped(model_dir: Path) -> None:
    """At step 8, two evaluations after the best, which is kept along with the newest."""
    assert kept(model_dir) == ["4", "8"]
    assert open_checkpoint(model_dir).step == 4
    summary = json.loads((model_dir / "summary.json").read_text())
    assert summary["best"] == {"step": 4, "metrics": {"accuracy": 0.7, "loss": 1.0}}
    assert (summary["step"], summary["metrics"]["accuracy"]) == (8, 0.65)
    steps = [r["step"] for r in read_metrics(model_dir) if r["split"] == "train"]
    assert steps == list(range(1, 9))


@pytest.mark.slow
def test_early_stopping_keeps_the_best_and_a_kill_changes_nothing(
    data: DatasetConfig,
    tmp_path: Path,
    scripted: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    whole = tmp_path / "whole"
    assert train(loop_config(data, whole))["accuracy"] == 0.65
    check_stopped(whole)
    assert "2 evaluations without a better accuracy" in " ".join(capsys.readouterr().err.split())
    # The run stays finished; with more patience it would continue.
    assert train(loop_config(data, whole))["accuracy"] == 0.65
    assert "nothing to do" in capsys.readouterr().err

    scripted[:] = SCORES
    interrupt_at(6, monkeypatch)  # a step with an evaluation
    with pytest.raises(KeyboardInterrupt):
        train(loop_config(data, tmp_path / "killed"))
    train(loop_config(data, tmp_path / "killed"))
    check_stopped(tmp_path / "killed")
    records = [
        [{k: v for k, v in r.items() if "second" not in k} for r in read_metrics(tmp_path / name)]
        for name in ("whole", "killed")
    ]
    assert records[0] == records[1]
