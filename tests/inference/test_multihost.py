"""Two processes as one: the rows of a batch are sharded over the devices of both."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from plug_jax.inference.batch_generation import Generation
from plug_jax.inference.jobs import Job, run
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.inference.rows import RowSource
from plug_jax.inference.scoring import Scoring
from tests.stored_model import CHARACTERS, write_stored_model
from tests.two_processes import started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stored_model(tmp_path_factory.mktemp("model"))


def write_rows(path: Path) -> Path:
    """Forty-one prompts with targets, and a bad row."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list(CHARACTERS), n)) for n in rng.integers(1, 40, 82)]
    rows = [{"prompt": p, "target": t} for p, t in zip(texts[::2], texts[1::2], strict=True)]
    lines = [json.dumps(row) for row in rows]
    lines.insert(7, "nonsense")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "in.jsonl")


def alone(model_dir: Path, source: Path, work: Generation | Scoring) -> list[dict]:
    """The rows that a single process writes."""
    return list(run(Job(checkpoint=str(model_dir), rows=RowSource(files=str(source))), work))


def bindings(model_dir: Path, source: Path, output: Path) -> list[str]:
    return [
        f"CHECKPOINT = {str(model_dir)!r}",
        f"INPUT = {str(source)!r}",
        f"OUTPUT = {str(output)!r}",
        "BATCH_SIZE = 4",
    ]


@pytest.mark.long
def test_two_processes_write_what_one_does(model_dir, source, tmp_path):
    """One of them is killed midway, which ends both; the same command resumes."""
    options = GenerationOptions(max_new_tokens=8, num_samples=2)
    expected = alone(model_dir, source, Generation(options=options))
    output = tmp_path / "out.jsonl"
    run = [*bindings(model_dir, source, output), "MAX_NEW_TOKENS = 8", "NUM_SAMPLES = 2"]
    files = ["runs/infer.gin", "mesh/cpu8.gin"]
    with started("infer", files, run, tmp_path / "first") as pair:
        first_part = Path(f"{output}.parts") / "000000.jsonl"
        while not first_part.exists() and all(p.poll() is None for p in pair.processes):
            time.sleep(0.05)
        pair.processes[0].kill()
        ended = pair.wait()
    assert first_part.exists() and not output.exists(), ended
    assert all(e.status != 0 for e in ended), ended

    with started("infer", files, run, tmp_path / "second") as pair:
        ended = pair.wait()
    assert [e.status for e in ended] == [3, 3], ended
    assert "resuming after 32 of 42 rows" in ended[0].stderr
    assert "rows" not in ended[1].stderr  # the second process prints nothing itself
    rows = read_rows(output)
    assert [row.get("error") for row in rows] == [row.get("error") for row in expected]
    for ours, theirs in zip(rows, expected, strict=True):
        texts = [[text["text"] for text in row.get("generated", ())] for row in (ours, theirs)]
        assert texts[0] == texts[1]


def test_two_processes_score_as_one(model_dir, source, tmp_path):
    expected = alone(model_dir, source, Scoring())
    output = tmp_path / "out.jsonl"
    files = ["runs/score.gin", "mesh/cpu8.gin"]
    with started("score", files, bindings(model_dir, source, output), tmp_path / "logs") as pair:
        ended = pair.wait()
    assert [e.status for e in ended] == [3, 3], ended
    assert "rows 42  errors 1" in ended[0].stdout and "errors" not in ended[1].stdout
    for ours, theirs in zip(read_rows(output), expected, strict=True):
        assert ours.pop("log_likelihood", 0) == pytest.approx(
            theirs.pop("log_likelihood", 0), abs=1e-4
        )
        assert (ours.get("target"), ours.get("tokens")) == (
            theirs.get("target"),
            theirs.get("tokens"),
        )


def test_processes_without_a_mesh_are_refused(model_dir, source, tmp_path):
    run = bindings(model_dir, source, tmp_path / "out.jsonl")
    with started("score", [], run, tmp_path / "logs") as pair:
        ended = pair.wait()
    assert [e.status for e in ended] == [2, 2], ended
    assert all("several processes work on one mesh" in e.stderr for e in ended)
