"""`plug-jax ensemble`: which runs it takes, and the report's file. No model runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from plug_jax.cli import finetuned_runs
from plug_jax.cli.main import main
from plug_jax.clue.records import TextRecord
from plug_jax.downstream.text_format import TextFormat
from plug_jax.finetuning.runs import FineTunedRun
from tests.finetuning.test_ensembles import Records, of_labels, run
from tests.small_disk import largest_file


@pytest.fixture(autouse=True)
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~/x/t0 and ~/x/t1, in a home directory of their own."""
    texts = [TextRecord(number, ("x",), "a") for number in range(2)]
    records = Records(TextFormat(max_length=16, labels=("a", "b")), texts)

    def load_run(args: argparse.Namespace, path: str) -> FineTunedRun:
        return run(path, records, of_labels([0.9, 0.1], [0.9, 0.1]))

    monkeypatch.setattr(finetuned_runs, "load_run", load_run)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("t0", "t1"):
        (tmp_path / "x" / name / "checkpoints" / "1").mkdir(parents=True)
        (tmp_path / "x" / name / "config.gin").touch()


@pytest.mark.parametrize("paths", [["~/x/t?"], ["~/x/t0", "~/x/t1"]])
def test_runs_and_the_report_may_be_in_the_home_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], paths: list[str]
) -> None:
    assert main(["ensemble", "--runs", *paths, "--output=~/new/report.json", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["runs"]) == [str(tmp_path / "x" / name) for name in ("t0", "t1")]
    assert json.loads((tmp_path / "new" / "report.json").read_text("utf-8")) == printed


def test_a_full_disk_is_one_line_after_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    report.write_text("of another day")
    with largest_file(100):
        status = main(["ensemble", "--runs", "~/x/*", "--output", str(report), "--json"])
    out, err = capsys.readouterr()
    assert (status, err) == (2, f"plug-jax: error: File too large: {report}\n")
    assert json.loads(out)["best_single"] == 100
    assert report.read_text() == "of another day"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "x"]
