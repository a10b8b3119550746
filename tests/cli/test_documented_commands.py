"""Every documented command is accepted by the program, and runs on small data."""

from __future__ import annotations

import importlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plug_jax.cli import gin_config, plan
from plug_jax.cli.main import main
from plug_jax.cli.serve import ServeConfig
from tests.documented_commands import Command, documented, give_models, prepare, settings_of
from tests.downstream.tiny_encoder import write_encoder
from tests.stored_model import write_stored_model

COMMANDS = documented()

# Where each command has read its options, settings and files, and starts its work.
BEGINNINGS = {
    "train": ["plug_jax.training.loop.train"],
    "debug-nans": ["plug_jax.training.replay.replay"],
    "evaluate": ["plug_jax.training.evaluate.evaluate_checkpoint"],
    "plan": [
        "plug_jax.planning.plan.make_plan",
        "plug_jax.planning.sweep.sweep",
        "plug_jax.planning.calibration.published",
    ],
    "generate": ["plug_jax.inference.model.InferenceModel.load"],
    "serve": ["plug_jax.cli.serve.serve"],
    "infer": ["plug_jax.inference.jobs.run"],
    "score": ["plug_jax.inference.jobs.run"],
    "score-generation": ["plug_jax.generation_tasks.conventions.score"],
    "classify": ["plug_jax.inference.jobs.run"],
    "embed": ["plug_jax.inference.jobs.run"],
    "fill-mask": ["plug_jax.inference.jobs.run"],
    "zero-shot": ["plug_jax.inference.jobs.run"],
    "inspect": ["plug_jax.cli.inspect._inspect", "plug_jax.task_reports.inspection.registered"],
    "sweep": ["plug_jax.finetuning.sweeps.Sweep"],
    "ensemble": ["plug_jax.cli.finetuned_runs.load_runs"],
    "clue": [
        "plug_jax.cli.finetuned_runs.load_runs",
        "plug_jax.clue.inspection.inspect_splits",
        "plug_jax.clue.scoring.score_files",
        "plug_jax.clue.submission.validate_submission",
    ],
    "vocab": ["plug_jax.cli.vocab._make"],
    "cache": ["plug_jax.data.caching.run.cache_task"],
    "checkpoint": [
        "plug_jax.training.stored_steps.stored_steps",
        "plug_jax.training.stored_steps.remove_steps",
    ],
    "demo": ["plug_jax.demo.pretraining.run_demo"],
    "doctor": ["plug_jax.cli.doctor.examine"],
    "demo-finetune": ["plug_jax.demo.pretraining.trained_stage1"],
    "bench": [
        "plug_jax.cli.bench._run_data",
        "plug_jax.cli.bench_convert.run",
        "plug_jax.cli.bench_decode.run",
        "plug_jax.cli.bench_int8.run",
        "plug_jax.cli.bench_scale.run",
        "plug_jax.cli.bench_soak.run",
        "plug_jax.benchmarks.train.measure",
    ],
    "convert": [
        f"plug_jax.cli.convert.{name}"
        for name in (
            *("_import_plug", "_import_hf", "_import_t5x"),
            *("_verify", "_export_plug", "_export_hf"),
        )
    ],
}


class Begun(Exception):
    """Raised when the command has accepted its arguments."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prepared")
    prepare(directory)
    encoder = write_encoder(tmp_path_factory.mktemp("encoder") / "model", max_positions=512)
    give_models(directory, encoder, write_stored_model(tmp_path_factory.mktemp("model")))
    shutil.copytree(directory / "vocabulary", directory / "run1" / "vocabulary")
    shutil.copytree(directory / "vocabulary", directory / "stage1" / "vocabulary")
    return directory


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Change to a directory, whose modules can then be imported, as in a new process."""

    def go(directory: Path) -> None:
        monkeypatch.chdir(directory)
        monkeypatch.syspath_prepend(directory)
        monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
        for name in ("my_package", "my_package.my_tasks"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        demo = importlib.import_module("plug_jax.tasks.demo")
        demo.structbert("demo_output")  # as importing it does, where it exists
        demo.palm("demo_output")

    yield go


def test_all_places_were_looked_at() -> None:
    places = {command.where for command in COMMANDS}
    assert {
        "README.md",
        "pretraining.md",
        "plans.md",
        "tpu.md",
        "evaluate.gin",
        "infer.gin",
        "cache --help",
    } <= places
    assert {command.name for command in COMMANDS} == set(BEGINNINGS)
    assert len(COMMANDS) > 70


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_the_command_is_taken(
    command: Command, prepared: Path, here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*arguments: Any, **options: Any) -> None:
        raise Begun

    here(prepared)
    for beginning in BEGINNINGS[command.name]:
        monkeypatch.setattr(beginning, begin)
    if command.stdin is not None:
        assert (prepared / command.stdin).is_file()
    if list(command.arguments[:2]) == ["clue", "submit"]:  # its output is there, to be validated
        monkeypatch.setattr("plug_jax.clue.submission.check_new", lambda path: None)
    with pytest.raises(Begun):
        main(list(command.arguments))


def _plan(binding: str) -> None:
    files = ["runs/palm_pretrain.gin", "models/plug_27b.gin", "mesh/v5p_128.gin"]
    plan.configure(files, [binding])


def _serve(binding: str) -> None:
    gin_config.configured(
        ServeConfig, files=["runs/serve.gin"], bindings=["CHECKPOINT = 'run2'", binding]
    )


SETTINGS = [
    (build, setting)
    for page, build in {
        "docs/pretraining.md": _plan,
        "docs/about/plans.md": _plan,
        "docs/tpu.md": _plan,
        "docs/inference.md": _serve,
        "docs/serving.md": _serve,
    }.items()
    for setting in settings_of(page)
    if not setting.startswith("NAME")
]


@pytest.mark.parametrize(("build", "setting"), SETTINGS, ids=[s for _, s in SETTINGS])
def test_a_setting_that_is_named_is_one(build: Callable[[str], None], setting: str) -> None:
    assert len(SETTINGS) > 8
    build(setting)


# Only parsed here, not run: for TPUs, buckets and clusters (plan, stage2.gin, Dataflow: their tests
# are in tests/planning and tests/data/caching), servers (tests/serving), with PyTorch
# (tests/convert), and long benchmarks and training (bench, demo, demo-finetune, sweep:
# tests/benchmarks, tests/demo/test_report.py, tests/cli/test_demo_finetune.py).
_ONLY_TAKEN = ("plan", "serve", "bench", "demo", "demo-finetune", "sweep", "ensemble")
_ONLY_TAKEN_WITH = (
    *("stage2.gin", "Dataflow", "import-plug", "import-t5x", "export-plug", "verify", "text/train"),
    *("tnews_sweep", "runs/*"),  # many runs: see tests/finetuning
    ".damaged",  # checkpoint rm: tests/checkpoints/test_integrity.py
)


def _running() -> list[Command]:
    """One command of each group that differs only in values, such as files and prompts."""
    found: dict[tuple[str, ...], Command] = {}
    for command in COMMANDS:
        words = (word for word in _ONLY_TAKEN_WITH if any(word in a for a in command.arguments))
        if command.name not in _ONLY_TAKEN and not any(words):
            found.setdefault(command.options, command)
    return list(found.values())


RUNNING = _running()
STAGES = [
    command
    for command in RUNNING
    if command.name == "train" and command.where == "pretraining.md" and "cpu1" in str(command)
]


def small(command: Command) -> list[str]:
    """The arguments with a small model, few steps, short rows, and a batch for all devices."""
    if command.name not in ("train", "evaluate", "debug-nans"):
        return list(command.arguments)
    if "evaluate_finetuned" in str(command):
        return command.with_settings(BATCH_SIZE="8")
    short = {"BATCH_SIZE": "8", "TRAIN_STEPS": "2", "EPOCHS": "None"}
    if "demo/finetune.gin" in str(command):
        return command.with_settings(**short)
    if any(file in str(command) for file in ("runs/finetune.gin", "reviews.gin", "finetuning/")):
        return command.with_settings(**short, MAX_LENGTH="32")
    rows = {"encoder": 64} if "structbert" in str(command) or "stage1.gin" in str(command) else None
    settings = {
        "TASK_FEATURE_LENGTHS": repr(rows or {"encoder": 64, "decoder": 64}),
        "BATCH_SIZE": "8",
    }
    if command.name == "train":
        settings |= {"VOCAB_SIZE": "8000", **short}
    if "--gin.DECODER_LAYERS=18" in command.arguments:
        settings["DECODER_LAYERS"] = "2"
    return [
        argument.replace("models/base.gin", "models/tiny.gin")
        for argument in command.with_settings(**settings)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory as the two stages of docs/pretraining.md leave it."""
    directory = tmp_path_factory.mktemp("trained")
    prepare(directory)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(directory)
        monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
        for command in STAGES:
            assert main(small(command)) == 0
        cache = next(c for c in RUNNING if c.name == "cache" and c.where == "data.md")
        assert main(list(cache.arguments)) == 0
        for name in ("chinese-roberta-wwm-ext", "chinese-roberta-wwm-ext-large"):
            assert main(["convert", "export-hf", "--checkpoint", "run2", "--output", name]) == 0
    give_models(directory, directory / "run1", directory / "run2")
    shutil.copytree(directory / "run2", directory / "roberta")
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in RUNNING if c not in STAGES], ids=str)
def test_the_command_runs(
    command: Command, trained: Path, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "here"
    shutil.copytree(trained, directory)
    here(directory)
    arguments = small(command)
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = argument.partition("=")
        if command.name != "debug-nans" and name in (
            "--output",
            "--output_cache_dir",
            "--gin.MODEL_DIR",
            "--gin.OUTPUT",
        ):
            path = Path((value or following).strip("'"))  # what other commands wrote
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
    prompts = Path(command.stdin).read_text(encoding="utf-8") if command.stdin else "天\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompts.encode())))
    assert main(arguments) == 0
