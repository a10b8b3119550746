"""Whole runs over real files: resuming, interrupting, both stages, and errors."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import threading
from concurrent.futures import Future
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from plug_jax.checkpoints.checksums import CHECKSUMS
from plug_jax.checkpoints.format import CHECKPOINTS, open_manager
from plug_jax.checkpoints.saved_model import (
    load_for_inference,
    open_checkpoint,
    vocabulary_fingerprint,
)
from plug_jax.compilation import Compilation, CompiledProgram
from plug_jax.data.pipeline import pipeline
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.data.vocabularies.vocabulary import load_vocabulary
from plug_jax.errors import PlugError
from plug_jax.objectives.classification import Classification
from plug_jax.objectives.continuation import Continuation
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.stages import STRUCTBERT
from plug_jax.partitioning import Partitioner
from plug_jax.tasks import own_files, pretrain
from plug_jax.training import evaluate, opening
from plug_jax.training.checkpointing import CheckpointConfig
from plug_jax.training.evaluate import EvaluateConfig, Evaluator, evaluate_checkpoint
from plug_jax.training.initial_checkpoint import first_state
from plug_jax.training.loop import train
from plug_jax.training.optimizer import OptimizerConfig
from plug_jax.training.program import TrainConfig, TrainProgram, train_program
from plug_jax.training.step import StepConfig
from plug_jax.training.stored_steps import stored_steps
from plug_jax.training.timing import StepTimer
from plug_jax.training.writers import ProgressReport, read_metrics
from tests import synthetic, tiny_run
from tests.training.program_runs import interrupt_at

OBJECTIVES = {1: STRUCTBERT, 2: (MaskedLM(until=0.5), Continuation())}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus and vocabulary, with the tasks `loop_stage1` and `loop_stage2` over them."""
    root = tmp_path_factory.mktemp("corpus[1]")
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("validation", 8)):
        tiny_run.write_documents(root / f"{name}.txt", tiny_run.documents(rng, count))
    tiny_run.write_vocabulary(root / "vocab.txt")
    files = {
        "train_files": str(root / "train.txt"),
        "validation_files": str(root / "validation.txt"),
        "vocabulary": str(root / "vocab.txt"),
    }
    pretrain.structbert_text(**files, max_length=24, name="loop_stage1")
    pretrain.palm_text(**files, min_length=6, max_length=24, name="loop_stage2")
    return root


def run_config(corpus: Path, model_dir: Path, *, stage: int = 2, **changes: object) -> TrainConfig:
    vocab_size = load_vocabulary(corpus / "vocab.txt").vocab_size
    lengths = {"encoder": 32} if stage == 1 else {"encoder": 32, "decoder": 32}
    data = DatasetConfig(
        f"loop_stage{stage}",
        lengths,
        "train",
        batch_size=8,
        shuffle=True,
        seed=1,
        packing_window=32,
    )
    values: dict[str, object] = {
        "model_dir": str(model_dir),
        "model": synthetic.tiny_config(
            vocab_size=vocab_size,
            num_encoder_layers=1,
            num_decoder_layers=stage - 1,
            dropout_rate=0.1,
        ),
        "train_data": data,
        "eval_data": dataclasses.replace(data, split="validation", shuffle=False, num_epochs=1),
        "partitioner": Partitioner(data=2, fsdp=2, tensor=2),
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "objectives": OBJECTIVES[stage],
        "step": StepConfig(),
        "checkpoint": CheckpointConfig(every=3, keep=2),
        "train_steps": 8,
        "eval_every": 4,
        "log_every": 1,
    }
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]


def losses(model_dir: Path) -> dict[int, dict[str, float]]:
    return {
        record["step"]: {k: v for k, v in record.items() if "second" not in k}
        for record in read_metrics(model_dir)
        if record["split"] == "train"
    }


@pytest.fixture(scope="module")
def whole_run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODEL_DIR of an uninterrupted stage-2 run of 8 steps, masked LM in the first 4."""
    # A name with characters that are special to gin, globs and others.
    model_dir = tmp_path_factory.mktemp("whole") / "lr=[1e-4] *?{天}\n100%#~"
    train(run_config(corpus, model_dir))
    return model_dir


def test_interrupted_run_goes_on_bit_for_bit(
    corpus: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in step 5 (after the phase switch), then again: every loss as if uninterrupted."""
    assert threading.current_thread() is threading.main_thread()
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(run_config(corpus, tmp_path))
    assert open_checkpoint(tmp_path).step == 5
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5]
    [counts] = (tmp_path / "checkpoints" / "5" / "data").glob("*.counts.json")
    dropped = json.loads(counts.read_text())["dropped"]
    final = train(run_config(corpus, tmp_path))
    assert losses(tmp_path) == losses(whole_run)
    logged = read_metrics(whole_run)[-1]
    assert final == {k: v for k, v in logged.items() if k not in ("step", "split")}
    # The drop counts are those of the whole run.
    [counts] = (tmp_path / "checkpoints" / "8" / "data").glob("*.counts.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["dropped"] == json.loads(counts.read_text())["dropped"]
    assert summary["dropped"].keys() == dropped.keys() != set()
    assert all(summary["dropped"][reason] >= count for reason, count in dropped.items())
    _, ours, _ = load_for_inference(tmp_path)
    _, theirs, _ = load_for_inference(whole_run)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
@pytest.mark.long
def test_an_interruption_adds_no_record_and_leaves_none_out(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in step 4, which is evaluated and not logged: the next start catches up."""

    def records(model_dir: Path) -> list[dict]:
        return [
            {k: v for k, v in record.items() if "second" not in k}
            for record in read_metrics(model_dir)
        ]

    train(run_config(corpus, tmp_path / "whole", stage=1, log_every=3))
    cut = run_config(corpus, tmp_path / "cut", stage=1, log_every=3)
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    assert open_checkpoint(tmp_path / "cut").step == 4
    assert [record["step"] for record in records(tmp_path / "cut")] == [3]
    train(cut)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert [(r["step"], r["split"]) for r in records(tmp_path / "whole")] == [
        (3, "train"), (4, "validation"), (6, "train"), (8, "train"), (8, "validation"),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
def test_steps_after_the_checkpoint_are_logged_once(
    corpus: Path, whole_run: Path, tmp_path: Path
) -> None:
    """A run killed between checkpoints repeats steps; metrics.jsonl holds each step once."""
    train(run_config(corpus, tmp_path, train_steps=8))
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "8").rename(tmp_path / "lost")  # as if killed before the last was written
    train(run_config(corpus, tmp_path))
    assert [r["step"] for r in read_metrics(tmp_path) if r["split"] == "train"] == list(range(1, 9))
    assert losses(tmp_path) == losses(whole_run)


def test_phase_switch_and_metrics_of_a_run(whole_run: Path) -> None:
    by_step = losses(whole_run)
    assert ["mlm_loss" in by_step[s] for s in range(1, 9)] == [True] * 4 + [False] * 4
    assert {"loss", "decoder_loss", "decoder_perplexity", "decoder_accuracy", "pad_fraction",
            "learning_rate", "grad_norm"} <= by_step[8].keys()  # fmt: skip
    validation = [r for r in read_metrics(whole_run) if r["split"] == "validation"]
    assert [r["step"] for r in validation] == [4, 8]
    assert all("mlm_accuracy" in r and "decoder_perplexity" in r for r in validation)
    assert by_step[8]["decoder_loss"] < by_step[1]["decoder_loss"]
    assert all(r["tokens_per_second"] > 0 for r in read_metrics(whole_run)[2:3])
    assert list((whole_run / "tensorboard").glob("events*"))
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["step"] == 8 and "decoder_loss" in summary["metrics"]
    assert sorted(p.name for p in (whole_run / "checkpoints").iterdir()) == ["6", "8"]  # keep 2


def files_of(directory: Path) -> dict[Path, tuple[bytes, int]]:
    """Each file's content and modification time."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_finished_run_is_left_as_it_is(
    corpus: Path, whole_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, logged = files_of(whole_run), read_metrics(whole_run)[-1]
    config = run_config(corpus, whole_run, config_gin="TRAIN_STEPS = 8")
    metrics = {k: v for k, v in logged.items() if k not in ("step", "split")}
    assert train(config) == metrics
    assert train(dataclasses.replace(config, train_steps=6, log_every=5)) == metrics
    assert files_of(whole_run) == before
    said = capsys.readouterr().err
    assert f"nothing to do: {whole_run} is at step 8; this run ends at step 8\n" in said
    assert f"nothing to do: {whole_run} is at step 8; this run ends at step 6\n" in said
    # Killed between the last checkpoint and the summary.
    (whole_run / "summary.json").unlink()
    assert train(config) == metrics
    after = files_of(whole_run)
    assert {path: content for path, (content, _) in after.items()} == {
        path: content for path, (content, _) in before.items()
    }


def test_other_data_are_refused_or_start_anew(
    corpus: Path,
    whole_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refused run writes nothing, and does not wait for its compilation. A wanted change keeps
    the model and what was dropped; a run that is restarted after it continues in the new data."""
    model_dir = tmp_path / "run"
    shutil.copytree(whole_run, model_dir)
    before = files_of(model_dir)
    config = run_config(corpus, model_dir, train_steps=9, eval_data=None)
    changed = dataclasses.replace(
        config, train_data=dataclasses.replace(config.train_data, packing_window=16)
    )
    with monkeypatch.context() as patched:
        patched.setattr(Compilation, "result", lambda compilation: pytest.fail("it waits"))
        with pytest.raises(
            PlugError, match=r"packing_window: 32 then, 16 now(.|\n)*RESTART_CHANGED"
        ):
            train(changed)
    assert files_of(model_dir) == before
    dropped = json.loads((model_dir / "summary.json").read_text())["dropped"]

    restart = CheckpointConfig(every=3, keep=2, restart_changed_data=True)
    train(dataclasses.replace(changed, checkpoint=restart))
    said = capsys.readouterr().err
    assert "THE DATA START FROM THEIR BEGINNING" in said
    assert "packing_window: 32 then, 16 now" in said
    summary = json.loads((model_dir / "summary.json").read_text())
    assert summary["step"] == 9 and summary["dropped"].keys() == dropped.keys()
    assert all(summary["dropped"][reason] > count for reason, count in dropped.items())
    place = model_dir / "checkpoints" / "9" / "data"
    assert json.loads((place / "settings.json").read_text())["packing_window"] == 16


def test_a_checkpoint_without_settings_of_its_data(
    corpus: Path, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From an earlier version: reported, and resumed."""
    shutil.copytree(whole_run, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "8"
    for path in [*(step / "data").glob("*.json"), step / CHECKSUMS]:
        path.unlink()
    config = run_config(corpus, tmp_path / "run", train_steps=9, eval_data=None)
    train(config)
    assert "saved neither its data settings nor" in capsys.readouterr().err
    assert sorted(losses(tmp_path / "run")) == list(range(1, 10))


def test_evaluate_needs_only_the_checkpoint(corpus: Path, whole_run: Path) -> None:
    """`evaluate` on one device gives what the run logged on its mesh."""
    config = run_config(corpus, whole_run)
    assert config.eval_data is not None
    values = evaluate_checkpoint(
        EvaluateConfig(
            checkpoint=str(whole_run / "checkpoints" / "8"),
            data=config.eval_data,
            partitioner=Partitioner(data=8),
            objectives=OBJECTIVES[2],
            step=StepConfig(),
        )
    )
    logged = read_metrics(whole_run)[-1]
    for name, value in values.items():
        assert value == pytest.approx(logged[name], rel=1e-4, abs=1e-6), name


def test_evaluate_says_what_was_dropped(
    corpus: Path, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = (corpus / "validation.txt").read_text(encoding="utf-8").splitlines()
    lines = [json.dumps({"text": text}) for text in texts] + ['{"title": "天"}', "天"]
    source = tmp_path / "validation.jsonl"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    name = pretrain.palm_text(
        train_files=str(source),
        validation_files=str(source),
        vocabulary=str(corpus / "vocab.txt"),
        file_format="jsonl",
        min_length=6,
        max_length=24,
        name="loop_of_lines",
    )
    config = run_config(corpus, whole_run)
    assert config.eval_data is not None
    evaluate_checkpoint(
        EvaluateConfig(
            checkpoint=str(whole_run),
            data=dataclasses.replace(config.eval_data, mixture_or_task_name=name),
            partitioner=config.partitioner,
            objectives=config.objectives,
            step=config.step,
        )
    )
    [line] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("dropped")]
    assert "invalid_json 1, missing_text_key 1" in line


def test_stored_steps_have_the_losses_of_the_run(whole_run: Path) -> None:
    """Both: those that training and evaluations have logged."""
    steps = stored_steps(whole_run, contents=False)
    assert int(steps[-1].name) == read_metrics(whole_run)[-1]["step"]
    logged = {record["split"]: record["loss"] for record in read_metrics(whole_run)}
    assert (steps[-1].loss, steps[-1].validation_loss) == (logged["train"], logged["validation"])


def with_two_pieces_exchanged(corpus: Path, directory: Path, name: str) -> str:
    """Registers stage 2 over a vocabulary of the same size, and returns its name."""
    pieces = (corpus / "vocab.txt").read_text(encoding="utf-8").replace("天\n地", "地\n天")
    (directory / "vocab.txt").write_text(pieces, encoding="utf-8")
    files = dict.fromkeys(("train_files", "validation_files"), str(corpus / "validation.txt"))
    vocabulary = str(directory / "vocab.txt")
    return pretrain.palm_text(
        **files, vocabulary=vocabulary, min_length=6, max_length=24, name=name
    )


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not refused fails, before it compiles."""
    for module, name in ((opening, "train_program"), (evaluate, "Evaluator")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("it was not refused"))


@pytest.mark.usefixtures("no_work")
def test_evaluation_with_another_vocabulary_is_refused(
    corpus: Path, whole_run: Path, tmp_path: Path
) -> None:
    """By `evaluate` and in a run, where the sizes are equal."""
    name = with_two_pieces_exchanged(corpus, tmp_path, "loop_exchanged")
    config = run_config(corpus, tmp_path / "run")
    assert config.eval_data is not None
    data = dataclasses.replace(config.eval_data, mixture_or_task_name=name)
    evaluation = EvaluateConfig(
        checkpoint=str(whole_run),
        data=data,
        partitioner=config.partitioner,
        objectives=config.objectives,
        step=config.step,
    )
    needed = re.escape(f"{whole_run / 'checkpoints' / '8' / 'vocabulary'}")
    with pytest.raises(PlugError, match=f"with another vocabulary than 'loop_exchanged'.*{needed}"):
        evaluate_checkpoint(evaluation)
    message = "'loop_exchanged' of the evaluation has another vocabulary than 'loop_stage2'"
    with pytest.raises(PlugError, match=message):
        train(dataclasses.replace(config, eval_data=data))


@pytest.mark.usefixtures("no_work")
def test_evaluation_with_labels_in_another_order_is_refused(corpus: Path, tmp_path: Path) -> None:
    table = tmp_path / "texts.tsv"
    table.write_text("text\tlabel\n天地\tgood\n地天\tbad\n", encoding="utf-8")
    files = dict.fromkeys(("train_file", "validation_file"), str(table))
    labels = ("bad", "good")
    for name, order in (("loop_labels", labels), ("loop_other_order", labels[::-1])):
        vocabulary = str(corpus / "vocab.txt")
        own_files.classification(
            vocabulary=vocabulary, labels=order, max_length=24, name=name, **files
        )
    of_stage = run_config(corpus, tmp_path / "run", stage=1)
    data = dataclasses.replace(
        of_stage.train_data,
        mixture_or_task_name="loop_labels",
        pack=False,
        feature_lengths={"encoder": 24},
    )
    other = dataclasses.replace(data, mixture_or_task_name="loop_other_order", split="validation")
    config = dataclasses.replace(
        of_stage, train_data=data, eval_data=other, objectives=(Classification(labels=labels),)
    )
    with pytest.raises(PlugError, match=r"the task's labels are \('good', 'bad'\), and"):
        train(config)


def assert_equal(a: dict, b: dict) -> None:
    """Equal except for a step of 1e-30, which changes only zeros."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-20), a, b)


def test_stage_2_starts_from_stage_1(corpus: Path, tmp_path: Path) -> None:
    """Encoder, embeddings and heads are loaded; the decoder is fresh; step and slots restart."""
    train(run_config(corpus, tmp_path / "1", stage=1, train_steps=3, eval_data=None))
    _, source, vocabulary = load_for_inference(tmp_path / "1")
    assert vocabulary == load_vocabulary(corpus / "vocab.txt")
    # A learning rate too small to change a float32 shows the initial parameters.
    still = OptimizerConfig(learning_rate=1e-30, weight_decay=0.0)
    config = run_config(
        corpus,
        tmp_path / "2",
        train_steps=1,
        eval_data=None,
        optimizer=still,
        initial_checkpoint=str(tmp_path / "1"),
    )
    train(config)
    _, params, _ = load_for_inference(tmp_path / "2")
    assert set(params) - set(source) == {"decoder"}
    assert_equal({k: params[k] for k in source}, source)
    with config.partitioner.context():
        fresh = dataclasses.replace(config, initial_checkpoint=None)
        state, _ = first_state(fresh, train_program(fresh), vocabulary, None)
    scratch = state.params
    assert_equal(params["decoder"], scratch["decoder"])
    kernels = [p["encoder"]["layers"]["mlp"]["wi"]["kernel"] for p in (params, scratch)]
    assert not np.array_equal(*kernels)


@pytest.mark.slow
def test_an_encoder_starts_from_a_model_with_a_decoder(
    corpus: Path, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Everything except the decoder is loaded, and a message says that it is left out."""
    config = run_config(
        corpus,
        tmp_path / "encoder",
        stage=1,
        train_steps=1,
        eval_data=None,
        optimizer=OptimizerConfig(learning_rate=1e-30, weight_decay=0.0),
        initial_checkpoint=str(whole_run),
    )
    train(config)
    _, source, _ = load_for_inference(whole_run)
    _, params, _ = load_for_inference(tmp_path / "encoder")
    assert set(source) - set(params) == {"decoder"}
    assert_equal(params, {name: source[name] for name in params})
    said = " ".join(capsys.readouterr().err.split())
    assert "decoder of the checkpoint is not used" in said


def test_the_step_compiles_while_the_data_are_read(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = threading.Event()
    checked, lower = opening.check_data, TrainProgram.lower

    def check(*args: object) -> None:
        checked(*args)  # type: ignore[arg-type]
        read.set()

    def slow(program: TrainProgram) -> jax.stages.Lowered:
        assert read.wait(60), "the data wait for the compilation"
        return lower(program)

    monkeypatch.setattr(opening, "check_data", check)
    monkeypatch.setattr(TrainProgram, "lower", slow)
    read_before: list[bool] = []
    start = Compilation.start

    def begin(compilation: Compilation) -> Future[CompiledProgram]:
        read_before.append(read.is_set())
        return start(compilation)

    monkeypatch.setattr(Compilation, "start", begin)
    train(run_config(corpus, tmp_path, eval_data=None, train_steps=2))
    assert not read_before[0]


@pytest.mark.slow
def test_only_the_evaluation_compiles_after_the_first_step(
    corpus: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, beside the first steps, through the phase switch and checkpoints.

    A restored run compiles as often.
    """
    events: list[str] = []
    order: list[str] = []

    def listen(event: str, _: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(str(details["fun_name"]))

    dispatched = StepTimer.dispatched

    def note(timer: StepTimer, tokens: object) -> None:
        events.append("step")
        order.append("step")
        dispatched(timer, tokens)  # type: ignore[arg-type]

    shown = ProgressReport.update

    def show(progress: ProgressReport, step: int, values: dict[str, float]) -> None:
        order.append(f"read {step}")
        shown(progress, step, values)

    monkeypatch.setattr(StepTimer, "dispatched", note)
    monkeypatch.setattr(ProgressReport, "update", show)
    jax.monitoring.register_event_duration_secs_listener(listen)
    train(run_config(corpus, tmp_path))  # evaluates at 4 and 8, saves at 3, 6 and 8
    first = events.copy()
    # The host never blocks the devices: a step's metrics are read once the next one runs, except
    # where the run waits anyway, to evaluate or to save.
    assert order == (
        ["step", "step", "read 1", "step", "read 2", "read 3", "step", "read 4"]
        + ["step", "step", "read 5", "read 6", "step", "step", "read 7", "read 8"]
    )
    shutil.rmtree(tmp_path / "checkpoints" / "8")
    train(run_config(corpus, tmp_path))  # from 6
    second = events[len(first) :]
    for steps, names in ((8, first), (2, second)):
        assert names.count("step") == steps
        before, after = names[: names.index("step")], names[names.index("step") :]
        assert sum("train_step" in name for name in before) == 1
        assert sum("eval_step" in name for name in names) == 1
        assert {name for name in after if "eval_step" not in name} == {"step"}


def test_an_evaluation_that_does_not_compile_ends_the_run_at_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the first evaluation, which may be hours away."""

    def fail(evaluator: Evaluator) -> None:
        raise PlugError("no memory for the evaluation")

    monkeypatch.setattr(Evaluator, "_lowered", property(fail))
    with pytest.raises(PlugError, match="no memory for the evaluation"):
        train(run_config(corpus, tmp_path, eval_every=8))
    assert 8 not in losses(tmp_path)


@pytest.mark.slow
def test_profile_of_a_run(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, tmp_path, train_steps=3, eval_data=None, profile_steps=(2, 2))
    train(config)
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))
    order, kind = (
        r"PROFILE_STEPS must be \(first, last\)",
        r"profile_steps must be \(a whole number, ",
    )
    cases = {(0, 2): order, (3, 2): order, (2, 4): order, (2,): kind, (1, 2, 3): kind}
    for wrong, message in cases.items():
        with pytest.raises(PlugError, match=message):
            dataclasses.replace(config, profile_steps=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"train_steps": 2**31}, "TRAIN_STEPS is at most 2,147,483,647, got 2,147,483,648"),
        ({"seed": 2**32}, "RANDOM_SEED must be 0 or more, below .*, got 4294967296"),
        ({"seed": -1}, "RANDOM_SEED must be 0 or more"),
    ],
)
def test_numbers_beyond_their_types(
    corpus: Path, tmp_path: Path, setting: dict[str, int], message: str
) -> None:
    config = run_config(corpus, tmp_path)
    dataclasses.replace(config, train_steps=2**31 - 1, seed=2**32 - 1)
    with pytest.raises(PlugError, match=message):
        dataclasses.replace(config, **setting)


def test_initial_checkpoint_of_another_shape_or_vocabulary(
    corpus: Path, whole_run: Path, tmp_path: Path
) -> None:
    config = run_config(corpus, tmp_path / "a", initial_checkpoint=str(whole_run))
    wider = dataclasses.replace(config.model, mlp_dim=64)
    with pytest.raises(PlugError, match=r"does not fit this model(.|\n)*mlp/wi/kernel"):
        train(dataclasses.replace(config, model=wider))
    deeper = dataclasses.replace(config.model, num_decoder_layers=2)
    with pytest.raises(PlugError, match=r"decoder/layers/mlp/wi/kernel: \(1, 16, 32\) there"):
        train(dataclasses.replace(config, model=deeper, model_dir=str(tmp_path / "b")))
    pieces = (corpus / "vocab.txt").read_text(encoding="utf-8").replace("天\n地", "地\n天")
    (tmp_path / "vocab.txt").write_text(pieces, encoding="utf-8")
    pretrain.palm_text(
        train_files=str(corpus / "train.txt"),
        validation_files=None,
        vocabulary=str(tmp_path / "vocab.txt"),
        min_length=6,
        max_length=24,
        name="loop_other_vocabulary",
    )
    other = dataclasses.replace(config.train_data, mixture_or_task_name="loop_other_vocabulary")
    with pytest.raises(PlugError, match="another vocabulary"):
        train(
            dataclasses.replace(
                config, train_data=other, eval_data=None, model_dir=str(tmp_path / "c")
            )
        )


def test_model_dir_of_another_model(corpus: Path, whole_run: Path, tmp_path: Path) -> None:
    config = run_config(corpus, whole_run)
    other = dataclasses.replace(config.model, norm_placement="post")
    with pytest.raises(PlugError, match="norm_placement is 'pre' there and 'post' here"):
        train(dataclasses.replace(config, model=other))
    # The sizes are equal, so only the pieces differ.
    vocabulary = tmp_path / "vocab.txt"
    pieces = (corpus / "vocab.txt").read_text(encoding="utf-8").replace("天\n地", "地\n天")
    vocabulary.write_text(pieces, encoding="utf-8")
    pretrain.palm_text(
        train_files=str(corpus / "train.txt"),
        validation_files=None,
        vocabulary=str(vocabulary),
        min_length=6,
        max_length=24,
        name="loop_permuted",
    )
    permuted = dataclasses.replace(config.train_data, mixture_or_task_name="loop_permuted")
    with pytest.raises(PlugError, match="of another model: the vocabulary is another one"):
        train(dataclasses.replace(config, train_data=permuted, eval_data=None))
    adafactor = OptimizerConfig(name="adafactor")
    with pytest.raises(PlugError, match="does not fit this run's parameters or optim") as caught:
        train(dataclasses.replace(config, optimizer=adafactor))
    assert str(caught.value).endswith("Arrays that differ: slots.")  # not their whole trees


def test_a_converted_checkpoint_is_no_run_to_go_on_with(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, tmp_path)
    vocabulary = load_vocabulary(corpus / "vocab.txt")
    metadata = {
        "plug_config": config.model.to_dict(),
        "vocabulary_fingerprint": vocabulary_fingerprint(vocabulary),
    }
    with open_manager(tmp_path / CHECKPOINTS, create=True) as manager:
        args = ocp.args.Composite(
            metadata=ocp.args.JsonSave(metadata),
            params=ocp.args.StandardSave({"w": np.zeros(1)}),
        )
        manager.save(0, args=args)
    with pytest.raises(PlugError, match="no data position to resume.* INITIAL_CHECKPOINT of a new"):
        train(config)


def test_bad_configurations_fail_before_training(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, tmp_path)
    with pytest.raises(PlugError, match=r"has 38 pieces, but PlugConfig.vocab_size is 99"):
        train(dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=99)))
    short = dataclasses.replace(config.model, max_positions=8)
    with pytest.raises(PlugError, match=r"have up to .* position table has 8 rows; shorten"):
        train(dataclasses.replace(config, model=short))
    with pytest.raises(PlugError, match="does not match the 8 devices here"):
        train(dataclasses.replace(config, partitioner=Partitioner(data=3)))
    with pytest.raises(PlugError, match="no checkpoint in"):
        train(
            dataclasses.replace(
                config, initial_checkpoint="/nowhere", model_dir=str(tmp_path / "new")
            )
        )
    odd = dataclasses.replace(config.model, num_heads=3, head_dim=4)
    with pytest.raises(PlugError, match=r"qkv/kernel .* 'heads' of 3 over tensor = 2"):
        train(dataclasses.replace(config, model=odd))
    missing = dataclasses.replace(config.train_data, mixture_or_task_name="loop_stage3")
    with pytest.raises(PlugError, match="loop_stage2"):
        train(dataclasses.replace(config, train_data=missing))
    with pytest.raises(PlugError, match="no_such_module"):
        pipeline.vocabulary_of("loop_stage1", module="no_such_module")
