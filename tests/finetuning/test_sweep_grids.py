"""Sweeps whose grid changes: finished runs are kept. Nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plug_jax import plots
from plug_jax.cli.main import main
from plug_jax.errors import PlugError
from plug_jax.finetuning.sweeps import Grid, Sweep, SweptRun


def sweep(directory: Path, *rates: float, seeds: tuple[int, ...] = (0,)) -> Sweep:
    grid = Grid({"LEARNING_RATE": rates, "RANDOM_SEED": seeds})
    return Sweep(directory, files=["a.gin"], bindings=["EPOCHS = 1"], grid=grid)


def test_runs_of_an_earlier_grid_are_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(self: Sweep, run: SweptRun, say: object) -> None:
        trained.append(run.name)
        run.metrics = {"accuracy": 100 * run.settings["LEARNING_RATE"]}
        self._set(run, "done")

    monkeypatch.setattr(Sweep, "_train", train)
    sweep(tmp_path, 0.1, 0.2).run(jobs=1, say=print)
    sweep(tmp_path, 0.2, seeds=(0, 1)).run(jobs=1, say=print)
    again = sweep(tmp_path, 0.1, 0.2)
    again.run(jobs=1, say=print)
    assert trained == [
        "LEARNING_RATE=0.1,RANDOM_SEED=0",
        "LEARNING_RATE=0.2,RANDOM_SEED=0",
        "LEARNING_RATE=0.2,RANDOM_SEED=1",
    ]
    assert [run.metrics for run in again.runs] == [{"accuracy": 10.0}, {"accuracy": 20.0}]
    with pytest.raises(PlugError, match="a sweep of other settings"):
        Sweep(tmp_path, files=["b.gin"], bindings=[], grid=Grid({"LEARNING_RATE": (0.1,)}))


def test_the_command_writes_a_table_and_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = {}

    def train(self: Sweep, run: SweptRun, say: object) -> None:
        score = 1000 * run.settings["LEARNING_RATE"] + run.settings["RANDOM_SEED"]
        record = {"step": 5, "split": "validation", "accuracy": score}
        (self.directory / run.name).mkdir()
        (self.directory / run.name / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        run.metrics = {"accuracy": score}
        self._set(run, "done")

    monkeypatch.setattr(Sweep, "_train", train)
    plot = plots.plot_curves
    monkeypatch.setattr(
        plots, "plot_curves", lambda groups, *rest: (drawn.update(groups), plot(groups, *rest))
    )
    command = ["sweep", "--gin_file=a.gin", f"--output={tmp_path / 'out'}", "--metric=accuracy"]
    command += ["--grid", "LEARNING_RATE=0.01,0.02", "--grid", "RANDOM_SEED=0,2", "--json"]
    assert main(command) == 0
    best, other = json.loads(capsys.readouterr().out)["settings"]
    assert (best["settings"], best["scores"]) == ({"LEARNING_RATE": 0.02}, [20, 22])
    assert (other["mean"], other["runs"]) == (11, 2)
    table = (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")
    assert "| LEARNING_RATE 0.02 | 21.000 | 1.414 | 2 of 2 |" in table
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {
        name: [[record["accuracy"] for record in run] for run in runs]
        for name, runs in drawn.items()
    } == {"LEARNING_RATE 0.02": [[20], [22]], "LEARNING_RATE 0.01": [[10], [12]]}
