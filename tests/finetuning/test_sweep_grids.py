"""Sweeps whose grid changes: finished runs are kept. Nothing is trained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
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


@pytest.mark.parametrize("axis", ["X=a", "X=1,", "X=1,1", "=1", "X=b'a'", "X={1}", "X={[]: 1}"])
def test_axes_that_are_refused(axis: str) -> None:
    with pytest.raises(PlugError, match=re.escape(f"--grid {axis}: ")):
        Grid.parse([axis])


def test_points_that_would_share_a_directory_are_refused(tmp_path: Path) -> None:
    for values, both in (
        (("models/a", "models_a"), "{'X': 'models/a'} and {'X': 'models_a'}"),
        ((1, "1"), "{'X': 1} and {'X': '1'}"),
    ):
        message = f"--grid: {both} would both be the run {tmp_path / 'out'}/X="
        with pytest.raises(PlugError, match=re.escape(message)):
            Sweep(tmp_path / "out", files=[], bindings=[], grid=Grid({"X": values}))
        assert list(tmp_path.iterdir()) == []
    # Nor is a directory taken over from an earlier grid, or refused to the same point.
    for values in ((1, 2.5), (1, None, (1, [2]), 1e999)):
        Sweep(tmp_path, files=[], bindings=[], grid=Grid({"X": values}))
    with pytest.raises(PlugError, match="{'X': 1} and {'X': '1'} would both be the run"):
        Sweep(tmp_path, files=[], bindings=[], grid=Grid({"X": ("1",)}))


def test_a_run_that_fails_with_any_last_words_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = "import os; os.write(2, b'fine\\n\\xff\\xfe crashed\\n'); os._exit(7)"
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda command, **options: start([sys.executable, "-c", crash], **options),
    )
    said: list[str] = []
    of_two = sweep(tmp_path, 0.1, 0.2)
    of_two.run(jobs=1, say=said.append)
    assert [run.status for run in of_two.runs] == ["failed", "failed"]
    assert said[1::2] == [
        f"{run.name}: failed with status 7: \ufffd\ufffd crashed" for run in of_two.runs
    ]


def test_the_command_writes_a_table_and_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = {}
    monkeypatch.setenv("HOME", str(tmp_path))

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
    quietly = []
    monkeypatch.setattr("plug_jax.cli.main.import_tensorflow", lambda: quietly.append(True))
    command = ["sweep", "--gin_file=a.gin", "--output=~/out", "--metric=accuracy"]
    command += ["--grid", "LEARNING_RATE=0.01,0.02", "--grid", "RANDOM_SEED=0,2", "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    best, other = printed["settings"]
    assert (best["settings"], best["scores"]) == ({"LEARNING_RATE": 0.02}, [20, 22])
    assert (other["mean"], other["runs"]) == (11, 2)
    kept = tmp_path / "out" / "sweep.json"
    assert json.loads(kept.read_text(encoding="utf-8"))["table"] == printed
    table = (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")
    assert "| LEARNING_RATE 0.02 | 21.000 | 1.414 | 2 of 2 |" in table
    assert quietly == [True]
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {
        name: [[record["accuracy"] for record in run] for run in runs]
        for name, runs in drawn.items()
    } == {"LEARNING_RATE 0.02": [[20], [22]], "LEARNING_RATE 0.01": [[10], [12]]}
