"""From CLUE's files to a submission, with the commands that a user runs."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from plug_jax.cli.main import main
from plug_jax.clue.submission import FILE_NAMES
from plug_jax.training.writers import read_metrics
from tests.clue.official import write_clue
from tests.downstream.tiny_encoder import write_encoder

# Tasks of the 1.1 leaderboard, and CLUENER, which has only a file there.
TASKS = (
    "afqmc", "iflytek", "ocnli", "cluewsc", "csl", "c3", "chid", "cluener", "cmrc2018", "tnews",
)  # fmt: skip
OTHERS = ("cmnli", "drcd", "eprstmt")
LENGTHS = {"cmrc2018": 80, "drcd": 80}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_PROCESSES", "1")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chain")
    write_clue(root / "clue")
    write_encoder(root / "encoder")
    return root


def train_arguments(root: Path, task: str, model_dir: Path, *bindings: str) -> list[str]:
    bindings = (
        f"CLUE_DIR={str(root / 'clue')!r}",
        f"INITIAL_CHECKPOINT={str(root / 'encoder')!r}",
        f"MODEL_DIR={str(model_dir)!r}",
        f"MAX_LENGTH={LENGTHS.get(task, 32)}",
        "BATCH_SIZE=8",
        "LEARNING_RATE=5e-3",
        "DROPOUT_RATE=0.0",
        "HEAD_DROPOUT_RATE=0.0",
        *bindings,
    )
    files = ("runs/finetune.gin", f"clue/{task}.gin", "mesh/cpu8.gin")
    return [
        "train",
        *(f"--gin_file={file}" for file in files),
        *(f"--gin.{binding}" for binding in bindings),
    ]


def fine_tune(root: Path, task: str, model_dir: Path, *bindings: str) -> Path:
    assert main(train_arguments(root, task, model_dir, *bindings)) == 0
    return model_dir


@pytest.fixture(scope="module")
def runs(root: Path) -> list[Path]:
    """Two TNEWS runs, by seed."""
    return [
        fine_tune(root, "tnews", root / f"tnews{seed}", "EPOCHS=50", "EVAL_EVERY=25",
                  f"RANDOM_SEED={seed}")
        for seed in (0, 1)
    ]  # fmt: skip


def printed(capsys: pytest.CaptureFixture, *arguments: str, status: int = 0) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == status
    return capsys.readouterr().out


def test_it_learns_and_keeps_the_best(runs: list[Path]) -> None:
    summary = json.loads((runs[0] / "summary.json").read_text())
    records = [r for r in read_metrics(runs[0]) if r["split"] == "validation"]
    # 12 examples in batches of 8 are 2 steps an epoch.
    assert summary["step"] == 100 and [r["step"] for r in records] == [25, 50, 75, 100]
    best = max(records, key=lambda r: r["accuracy"])
    assert summary["best"]["step"] == best["step"]
    assert best["accuracy"] > 50  # four labels
    assert best["accuracy"] == pytest.approx(100 * best["classification_accuracy"])
    losses = [r["classification_loss"] for r in read_metrics(runs[0]) if r["split"] == "train"]
    assert losses[-1] < losses[0]


def test_what_it_confuses_is_drawn_whenever_it_is_the_best_yet(runs: list[Path]) -> None:
    import tensorflow as tf

    assert (runs[0] / "confusion.png").read_bytes().startswith(b"\x89PNG")
    drawn = [
        event.step
        for path in (runs[0] / "tensorboard").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        if any(value.tag.startswith("validation/confusion") for value in event.summary.value)
    ]
    scores = [r["accuracy"] for r in read_metrics(runs[0]) if r["split"] == "validation"]
    best_yet = [25 * (n + 1) for n, one in enumerate(scores) if one > max([0, *scores[:n]])]
    assert drawn == best_yet


def test_the_ensemble_and_its_honest_score(
    root: Path, runs: list[Path], capsys: pytest.CaptureFixture
) -> None:
    paths = [str(path) for path in runs]
    report = json.loads(printed(capsys, "ensemble", "--runs", *paths, "--json"))
    assert report["metric"] == "accuracy" and list(report["runs"]) == paths
    for path, score in report["runs"].items():
        summary = json.loads((Path(path) / "summary.json").read_text())
        assert score == pytest.approx(summary["best"]["metrics"]["accuracy"])
    assert report["best_single"] == max(report["runs"].values())
    assert report["picked"] >= report["best_single"]
    assert report["members"][0] in paths
    # Computed outputs are kept, and read again.
    kept = runs[0] / "outputs" / "clue_tnews-validation.npz"
    written = kept.stat().st_mtime_ns
    printed(capsys, "ensemble", "--runs", *paths)
    assert kept.stat().st_mtime_ns == written


def test_a_submission_of_both_versions(
    root: Path, runs: list[Path], capsys: pytest.CaptureFixture
) -> None:
    data = ["--data_dir", str(root / "clue")]
    paths = [str(path) for path in runs]
    for version, name in (("1.1", "tnews11"), ("1.0", "tnews10")):
        output = str(root / f"submit_us_{version}.zip")
        printed(
            capsys, "clue", "submit", "--runs", *paths, *data, "--version", version,
            "--output", output,
        )  # fmt: skip
        assert zipfile.ZipFile(output).namelist() == [f"{name}_predict.json"]
        assert "no mistake" in printed(capsys, "clue", "validate", output, *data)


def test_the_score_of_dev_predictions_is_the_runs(
    root: Path, runs: list[Path], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    from plug_jax.clue.submission import predictions_file
    from plug_jax.clue.tasks import CLUE

    records = CLUE["tnews"].read(root / "clue", "dev").records
    report = json.loads(printed(capsys, "ensemble", "--runs", *map(str, runs), "--json"))
    from plug_jax.cli.finetuned_runs import load_run

    class Arguments:
        data_dir, gin_file = None, None

    run = load_run(Arguments(), str(runs[0]))
    answers = {
        record.id: answer["prediction"]
        for record, answer in zip(records, run.answers("validation"), strict=True)
    }
    path = tmp_path / "tnews_predictions.json"
    path.write_bytes(predictions_file(CLUE["tnews"], records, answers))
    scored = json.loads(
        printed(
            capsys, "clue", "score", "--task", "tnews", "--data", str(root / "clue"),
            "--predictions", str(path), "--json",
        )
    )  # fmt: skip
    assert scored["metrics"]["accuracy"] == pytest.approx(report["runs"][str(runs[0])], abs=1e-3)


def records_of(model_dir: Path) -> list[dict]:
    return [
        {name: value for name, value in record.items() if "second" not in name}
        for record in read_metrics(model_dir)
    ]


def test_a_run_that_is_cut_off_goes_on_as_if_it_were_not(root: Path, tmp_path: Path) -> None:
    bindings = (
        "EPOCHS=3", "EVAL_EVERY=2", "CHECKPOINT_EVERY=3", "LOG_EVERY=1",
        "checkpointing.CheckpointConfig.keep=9",
    )  # fmt: skip
    fine_tune(root, "tnews", tmp_path / "run", *bindings)
    whole = records_of(tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        if step.name != "3":
            shutil.rmtree(step)
    (tmp_path / "run" / "summary.json").unlink()
    assert (tmp_path / "run" / "checkpoints" / "3").exists()
    fine_tune(root, "tnews", tmp_path / "run", *bindings)
    assert records_of(tmp_path / "run") == whole


def test_labels_of_another_order_are_refused_or_left(
    root: Path, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A head is never used for labels other than those it was trained on."""
    again = train_arguments(root, "afqmc", runs[0], "EPOCHS=1")
    assert main(again) == 2
    assert "was fine-tuned for another task: labels is" in capsys.readouterr().err
    from_it = train_arguments(root, "afqmc", tmp_path / "afqmc", "TRAIN_STEPS=1", "EPOCHS=None")
    from_it = [a for a in from_it if "INITIAL_CHECKPOINT" not in a]
    assert main([*from_it, f"--gin.INITIAL_CHECKPOINT={str(runs[0])!r}"]) == 0
    said = capsys.readouterr().err
    assert "heads/classification of this run is newly initialised" in said
    assert "heads/classification of the checkpoint is not used" in said


@pytest.mark.slow
@pytest.mark.long
def test_tensor_and_fsdp_axes_change_nothing(root: Path, tmp_path: Path) -> None:
    bindings = ("EPOCHS=None", "TRAIN_STEPS=4", "LOG_EVERY=1", "EVAL_EVERY=4")
    for task in ("c3", "cmrc2018", "cluener"):
        found = []
        for name, mesh in (("one", (8, 1, 1)), ("mesh", (2, 2, 2))):
            axes = [
                f"partitioning.Partitioner.{axis}={size}"
                for axis, size in zip(("data", "fsdp", "tensor"), mesh, strict=True)
            ]
            run = fine_tune(root, task, tmp_path / f"{task}-{name}", *bindings, *axes)
            found.append([r["loss"] for r in read_metrics(run) if r["split"] == "train"])
        assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", OTHERS)
def test_the_other_tasks_train_and_are_scored(root: Path, task: str, tmp_path: Path) -> None:
    run = fine_tune(root, task, tmp_path / task, "EPOCHS=None", "TRAIN_STEPS=2", "EVAL_EVERY=2")
    metrics = json.loads((run / "summary.json").read_text())["best"]["metrics"]
    assert 0 <= metrics["em" if task == "drcd" else "accuracy"] <= 100


@pytest.mark.slow
@pytest.mark.long
def test_a_whole_entry_for_the_board(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runs = []
    for task in TASKS:
        for seed in (0, 1):
            run = fine_tune(
                root, task, tmp_path / f"{task}-{seed}", "EPOCHS=None", "TRAIN_STEPS=2",
                "EVAL_EVERY=2", f"RANDOM_SEED={seed}",
            )  # fmt: skip
            runs.append(str(run))
        report = json.loads(printed(capsys, "ensemble", "--runs", *runs[-2:], "--json"))
        assert 0 <= report["everyone"] <= 100
    data = ["--data_dir", str(root / "clue")]
    output = str(tmp_path / "submit_us_1.zip")
    printed(
        capsys, "clue", "submit", "--runs", *runs, *data, "--output", output, "--diagnostics"
    )  # fmt: skip
    names = {FILE_NAMES[task] for task in (*TASKS, "diagnostics")}
    assert set(zipfile.ZipFile(output).namelist()) == names
    assert "no mistake" in printed(capsys, "clue", "validate", output, *data)
