"""`plug-jax infer`, `score` and `classify`, as commands."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from plug_jax.checkpoints.saved_model import SavedModel
from plug_jax.cli import evaluate
from plug_jax.cli.main import main
from plug_jax.inference.model import InferenceModel
from tests.stored_model import CHARACTERS, write_stored_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stored_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process: JAX has started already and cannot look for other processes."""
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def infer_command(model_dir: Path, source: str, output: Path, **macros: object) -> list[str]:
    """Arguments of `plug-jax infer`."""
    values = {
        "CHECKPOINT": str(model_dir),
        "INPUT": source,
        "OUTPUT": str(output),
        "MAX_NEW_TOKENS": 8,
        "BATCH_SIZE": 4,
        **macros,
    }
    return [
        "infer",
        "--gin_file=runs/infer.gin",
        "--gin_file=mesh/cpu1.gin",
        *(f"--gin.{name}={value!r}" for name, value in values.items()),
    ]


def test_infer_writes_a_text_for_every_row(model_dir, tmp_path, capsys):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"q": "\xe5\xa4\xa9", "id": 1}\n'))
    write_rows(tmp_path / "b.jsonl", [{"q": "风花雪", "id": 2}, {"id": 3}])
    output = tmp_path / "new" / "texts.jsonl"
    command = infer_command(model_dir, str(tmp_path / "*.jsonl*"), output, PROMPT_FIELD="q")
    assert main(command) == 3  # one row has an error
    rows = read_rows(output)
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert [len(row.get("generated", ())) for row in rows] == [1, 1, 0]
    error = "no field 'q'; the row has id"
    assert rows[2]["error"] == error
    said = capsys.readouterr().err
    assert "3 rows in 0:0" in said and "rows/s" in said and "tokens/s" in said
    assert f"{output} has 3 rows, 1 with an error\nthe first error: {error}" in said

    content = output.read_bytes()
    assert main(command) == 3  # nothing left to do
    assert output.read_bytes() == content
    assert main([*command, "--gin.RANDOM_SEED=1"]) == 2
    assert "options.seed was 0 and is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--gin.INPUT=None"], "name what to read"),
        (["--gin.INPUT='nothing.jsonl'"], "No file of rows matches nothing.jsonl"),
        (["--gin.CHECKPOINT='nothing'"], "no checkpoint in nothing"),
        (["--gin.MAX_NEW_TOKENS=49"], "max_new_tokens is 49; it must be between 1 and 48"),
        (["--gin.TEMPERATUR=1.0"], "did you mean TEMPERATURE?"),
        (["--gin.TEMPERATURE=-1.0"], "temperature is -1.0"),
    ],
)
def test_a_mistake_is_named_and_leaves_no_rows(model_dir, tmp_path, capsys, changes, message):
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "天"}])
    output = tmp_path / "out.jsonl"
    changed = tuple(change.partition("=")[0] for change in changes)
    command = [
        a
        for a in infer_command(model_dir, str(source), output)
        if a.partition("=")[0] not in changed
    ]
    assert main([*command, *changes]) == 2
    assert message in capsys.readouterr().err
    # And does not break the command without it.
    assert main(infer_command(model_dir, str(source), output)) == 0


def test_score_of_a_pair_and_of_a_file(model_dir, tmp_path, capsys):
    options = ["--checkpoint", str(model_dir)]
    assert main(["score", *options, "--prompt", "天地", "--target", "风花", "--json"]) == 0
    pair = json.loads(capsys.readouterr().out)
    assert pair["total"]["tokens"] == 3 and pair["total"]["targets"] == 1
    [row] = pair["rows"]
    assert row["log_likelihood"] == pytest.approx(pair["total"]["log_likelihood"])
    assert (row["prompt"], row["target"]) == ("天地", "风花")

    assert main(["score", *options, "--prompt", "天地", "--target", "风花"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"log P {row['log_likelihood']:.4f}  per token")
    assert "rows 1  errors 0  targets 1" in shown[1]

    rows = [{"id": 1, "prompt": "天地", "target": "风花"}, {"id": 2}]
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    command = ["score", *options, "--input", str(source), "--no_sep"]
    assert main([*command, "--output", str(tmp_path / "out.jsonl"), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["total"].items() >= {"rows": 2, "errors": 1}.items()
    first, second = read_rows(tmp_path / "out.jsonl")
    assert first["tokens"] == 2 and first["log_likelihood"] > row["log_likelihood"]
    assert second.keys() == {"id", "error"}


def test_classify_texts(model_dir, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("w\t风雪\ns\t土\n", encoding="utf-8")
    rows = [{"text": text, "label": "w"} for text in ("天地人", "风花雪", "红")]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    command = ["classify", "--checkpoint", str(model_dir), "--template", "大{label}小"]
    labels = ["--labels", str(tmp_path / "labels.txt")]
    output = ["--output", str(tmp_path / "out.jsonl")]
    assert main([*command, *labels, "--input", str(source), *output, "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["total"]
    predictions = [row["prediction"] for row in read_rows(tmp_path / "out.jsonl")]
    assert total["predictions"] == {name: predictions.count(name) for name in "ws"}
    assert total["accuracy"] == predictions.count("w") / 3

    assert main([*command, "--labels", "风雪,土", "--text", "天地人"]) == 0
    first = capsys.readouterr().out.splitlines()[0].split()
    assert {first[0], first[2]} == {"风雪", "土"}
    assert float(first[1]) + float(first[3]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("command", ["infer", "score", "classify"])
def test_a_model_without_numbers_ends_it_with_one_error(
    model_dir, tmp_path, monkeypatch, capsys, command
):
    model = InferenceModel.load(model_dir)
    model.params = jax.tree.map(lambda leaf: leaf * jnp.nan, model.params)
    monkeypatch.setattr(InferenceModel, "load", lambda *args, **kwargs: model)
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "天"}])
    commands = {
        "infer": infer_command(model_dir, str(source), tmp_path / "out.jsonl"),
        "score": ["score", "--prompt", "天", "--target", "地", "--json"],
        "classify": ["classify", "--text", "天", "--labels", "天，地", "--json"],
    }
    checkpoint = [] if command == "infer" else ["--checkpoint", str(model_dir)]
    assert main([*commands[command], *checkpoint]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "plug-jax: error: the model gives no numbers" in err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("command", ["generate", "infer", "score", "classify"])
def test_an_encoder_alone_is_told_what_it_is_good_for_before_its_weights_are_read(
    encoder_dir, tmp_path, monkeypatch, capsys, command
):
    monkeypatch.setattr(SavedModel, "params", lambda *args: pytest.fail("weights are read"))
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "天"}])
    commands = {
        "generate": ["generate", "--prompt", "天"],
        "infer": infer_command(encoder_dir, str(source), tmp_path / "out.jsonl"),
        "score": ["score", "--prompt", "天", "--target", "地"],
        "classify": ["classify", "--text", "天", "--labels", "天,地"],
    }
    checkpoint = [] if command == "infer" else ["--checkpoint", str(encoder_dir)]
    assert main([*commands[command], *checkpoint]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("plug-jax: error: this checkpoint has no decoder: it is an encoder")
    for use in (
        "INITIAL_CHECKPOINT",
        "plug-jax embed",
        "plug-jax evaluate",
        "plug-jax convert export-hf",
    ):
        assert use in error
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stored_model(tmp_path_factory.mktemp("encoder"), decoder=False)


def test_json_for_a_terminal_without_chinese_is_json(model_dir, monkeypatch, capsys):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    prompt = "天地\N{GRINNING FACE}"
    command = ["score", "--checkpoint", str(model_dir), "--prompt", prompt, "--target", "风花"]
    assert main([*command, "--json"]) == 0
    out.flush()
    assert json.loads(out.buffer.getvalue())["rows"][0]["prompt"] == prompt


def test_evaluate_prints_json_and_fails_without_numbers(monkeypatch, capsys):
    metrics = {"decoder_loss": math.nan, "mlm_loss": 2.5}
    monkeypatch.setattr(evaluate, "evaluate", lambda files, bindings: metrics)
    assert main(["evaluate", "--gin_file=runs/evaluate.gin"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"decoder_loss": None, "mlm_loss": 2.5}
    assert "the model gives no numbers" in err


@pytest.mark.parametrize("size", [0, 65537, 2**63])
def test_batches_of_no_or_too_many_texts_are_refused(model_dir, tmp_path, capsys, size):
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "天"}])
    command = infer_command(model_dir, str(source), tmp_path / "out.jsonl", BATCH_SIZE=size)
    assert main(command) == 2
    assert f"BATCH_SIZE must be between 1 and 65536, not {size}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["score", "--prompt", "a"], "--prompt and --target go together"),
        (["score", "--prompt", "a", "--target", "b", "--input", "c"], "give either --input or"),
        (["score"], "name what to read"),
        (["classify", "--text", "a"], "required, but not set: LABELS"),
        (["classify", "--text", "a", "--labels", "a,b", "--normalize", "x"], "normalize must be"),
        (
            ["classify", "--text", "a", "--text_pair", "b", "--labels", "a,b"],
            "text_pair is read only where a template has {text_pair}",
        ),
    ],
)
def test_options_that_do_not_go_together(model_dir, capsys, command, message):
    assert main([*command, "--checkpoint", str(model_dir)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_killed_again_and_again_it_ends_with_the_same_file(model_dir, tmp_path):
    """SIGKILL at random moments, one Ctrl-C, then an uninterrupted run."""
    draw = random.Random(0)
    prompts = ["".join(draw.choices(CHARACTERS, k=draw.randint(1, 40))) for _ in range(1200)]
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": prompt} for prompt in prompts])
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert main(infer_command(model_dir, str(source), whole, BATCH_SIZE=2)) == 0

    def start() -> subprocess.Popen[str]:
        command = infer_command(model_dir, str(source), killed, BATCH_SIZE=2)
        return subprocess.Popen(
            [sys.executable, "-m", "plug_jax", *command],
            cwd=ROOT,
            env=os.environ,
            stderr=subprocess.PIPE,
            text=True,
        )

    def parts() -> int:
        return len(list(Path(f"{killed}.parts").glob("*.jsonl")))

    for attempt in range(4):
        before, process = parts(), start()
        while parts() < before + 3 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random() / 4)
        process.send_signal(signal.SIGINT if attempt == 0 else signal.SIGKILL)
        said = process.communicate()[1]
        if attempt == 0:
            assert process.returncode == 130 and "plug-jax: interrupted" in said, said
        assert not killed.exists()  # a part takes about 0.1 s, and there are 38 parts
    last = start()
    said = last.communicate()[1]
    assert last.returncode == 0, said
    assert "resuming after" in said
    assert killed.read_bytes() == whole.read_bytes()
