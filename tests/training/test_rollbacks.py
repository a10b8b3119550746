"""Runs that skip too many consecutive updates, and return to an earlier checkpoint."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from plug_jax.checkpoints.format import CHECKPOINTS, FilesSave, LatestRegular, open_manager
from plug_jax.cli.debug_nans import show_rows
from plug_jax.data.pipeline.pipeline import DatasetConfig, vocabulary_of
from plug_jax.data.vocabularies.vocabulary import default_vocabulary
from plug_jax.errors import PlugError
from plug_jax.hosts.activity import Activity, current, doing
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.tasks import pretrain
from plug_jax.training import feed
from plug_jax.training.checkpointing import CheckpointConfig, Checkpoints
from plug_jax.training.loop import train
from plug_jax.training.optimizer import OptimizerConfig
from plug_jax.training.program import TrainConfig
from plug_jax.training.replay import replay
from plug_jax.training.safeguard import NotFinite, Safeguard
from plug_jax.training.safety import SafetyConfig
from plug_jax.training.state import StateLayout, TrainState
from plug_jax.training.writers import read_metrics
from tests import synthetic
from tests.training.program_runs import program_of, run_config, start
from tests.training.test_safety import Poisoned

GOOD = "天地人你我他来去上下"
BAD = "毒"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents in reading order; numbers 12 to 23, and 36, are poisoned."""
    root = tmp_path_factory.mktemp("poison")
    rng = np.random.default_rng(0)
    documents = []
    for number in range(48):
        text = ["".join(rng.choice(list(GOOD), 6)) + "。" for _ in range(6)]
        if 12 <= number < 24 or number == 36:
            text = [sentence.replace("。", f"{BAD}。") for sentence in text]
        documents.append("".join(text))
    (root / "text.txt").write_text("\n".join(documents), encoding="utf-8")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "。", *GOOD, BAD]
    (root / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    pretrain.structbert_text(
        train_files=str(root / "text.txt"),
        validation_files=str(root / "text.txt"),
        vocabulary=str(root / "vocab.txt"),
        max_length=24,
        name="poisoned",
    )
    return root


def poisoned_run(corpus: Path, model_dir: Path, **changes: Any) -> TrainConfig:
    pieces = len((corpus / "vocab.txt").read_text(encoding="utf-8").split())
    values: dict[str, Any] = {
        "model_dir": str(model_dir),
        "model": synthetic.tiny_config(
            num_encoder_layers=1, num_decoder_layers=0, vocab_size=pieces, dropout_rate=0.1
        ),
        "objectives": (Poisoned(token=pieces - 1),),
        "train_data": DatasetConfig(
            "poisoned", {"encoder": 24}, "train", 8, shuffle=False, seed=1, pack=False
        ),
        "checkpoint": CheckpointConfig(every=3, keep=None),
        "train_steps": 20,
        "log_every": 2,
        "safety": SafetyConfig(skipped_in_a_row=3),
    }
    return run_config(**(values | changes))


@pytest.fixture(scope="module")
def whole_run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, which skips single updates and too many consecutive ones."""
    model_dir = tmp_path_factory.mktemp("whole") / "run"
    train(poisoned_run(corpus, model_dir))
    return model_dir


def records(model_dir: Path, split: str) -> dict[int, dict[str, Any]]:
    return {
        r["step"]: {k: v for k, v in r.items() if "second" not in k}
        for r in read_metrics(model_dir)
        if r["split"] == split
    }


def arrays(model_dir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a checkpoint (the newest) by name: parameters, slots, step and counts."""
    with open_manager(model_dir / CHECKPOINTS) as manager:
        items = dict.fromkeys(("params", "optimizer"), ocp.args.StandardRestore())
        found = manager.restore(step or manager.latest_step(), args=ocp.args.Composite(**items))
        leaves = jax.tree_util.tree_leaves_with_path({name: found[name] for name in items})
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_too_many_in_a_row_take_the_run_back(whole_run: Path) -> None:
    """To the newest checkpoint before them; steps, and with them the data, go on."""
    train_records, skipped = records(whole_run, "train"), records(whole_run, "skipped")
    back = {step: record["to"] for step, record in records(whole_run, "rollback").items()}
    # 10 to 12 are noticed before the checkpoint of 12; 15 to 17 before that of 15, which is late.
    assert {10, 11, 12, 15, 16, 17} <= skipped.keys() and {9, 13, 14}.isdisjoint(skipped)
    assert back == {12: 9, 17: 12}
    assert all(np.isnan(r["loss"]) and np.isnan(r["grad_norm"]) for r in skipped.values())
    assert len(skipped) == train_records[20]["skipped"]
    assert list(train_records) == list(range(2, 21, 2))
    steps = sorted(int(path.name) for path in (whole_run / CHECKPOINTS).iterdir())
    assert steps == [5, 7, 9, 12, 17, 19, 20]  # not at 3, 6, 15 and 18, which were skipped
    before, after = (arrays(whole_run, step) for step in (9, 12))
    for name, value in after.items():
        if "'safety'" not in name and "'step'" not in name:
            np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert after["['optimizer']['step']"] == 12
    counts = {
        n: int(after[f"['optimizer']['safety']['{n}']"])
        for n in ("skipped", "in_a_row", "rollbacks", "rolled_back_at", "rolled_back_to")
    }
    assert counts == {
        "skipped": 8,
        "in_a_row": 0,
        "rollbacks": 1,
        "rolled_back_at": 12,
        "rolled_back_to": 9,
    }
    assert all(np.isfinite(v).all() for n, v in arrays(whole_run).items() if "losses" not in n)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a real SIGINT while `step` is being prepared."""
    checked, calls = feed.check_positions, []

    def check(*args: Any) -> None:
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)
        checked(*args)

    monkeypatch.setattr(feed, "check_positions", check)


def assert_same_run(model_dir: Path, whole_run: Path) -> None:
    """The same records (times aside), checkpoints, and contents of the newest one."""
    for split in ("train", "skipped", "rollback"):
        found, expected = records(model_dir, split), records(whole_run, split)
        np.testing.assert_equal({step: found[step] for step in expected}, expected)
        assert split == "train" or found.keys() == expected.keys()
    names = [sorted(p.name for p in (d / CHECKPOINTS).iterdir()) for d in (model_dir, whole_run)]
    assert names[0] == names[1]
    np.testing.assert_equal(arrays(model_dir), arrays(whole_run))


def interrupted_run(config: TrainConfig, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run, interrupted while each of these steps is prepared, and started again."""
    before = 0
    for step in steps:
        with monkeypatch.context() as patch:
            interrupt_at(step - before, patch)
            with pytest.raises(KeyboardInterrupt):
                train(config)
        before = step
    train(config)


def test_an_interrupted_run_skips_and_goes_back_alike(
    corpus: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted among the skipped updates."""
    interrupted_run(poisoned_run(corpus, tmp_path), [11], monkeypatch)
    assert_same_run(tmp_path, whole_run)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("start", [2, 3])
def test_an_often_interrupted_run_skips_and_goes_back_alike(
    corpus: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    """At every third step, so that interruptions make more checkpoints than are kept."""
    interrupted_run(poisoned_run(corpus, tmp_path), [*range(start, 20, 3)], monkeypatch)
    assert_same_run(tmp_path, whole_run)


@pytest.mark.slow
def test_a_killed_run_skips_and_goes_back_alike(
    corpus: Path, whole_run: Path, tmp_path: Path
) -> None:
    """As if killed before the rollback was saved: it is repeated, and recorded once."""
    shutil.copytree(whole_run, tmp_path / "run")
    for step in (12, 17, 19, 20):
        shutil.rmtree(tmp_path / "run" / CHECKPOINTS / str(step))
    train(poisoned_run(corpus, tmp_path / "run"))
    assert_same_run(tmp_path / "run", whole_run)


@pytest.mark.slow
def test_a_learning_rate_far_too_high_ends_the_run(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every checkpoint finite, and once the rate is lowered the same command continues."""
    good = poisoned_run(corpus, tmp_path, objectives=(MaskedLM(),), train_steps=6)
    train(good)
    high = dataclasses.replace(
        good,
        train_steps=60,
        optimizer=OptimizerConfig(learning_rate=1e30, schedule="constant", warmup_fraction=0.0),
        safety=SafetyConfig(skipped_in_a_row=2, rollbacks=2),
    )
    with pytest.raises(NotFinite, match=r"gone back 2 times.* LEARNING_RATE is too high") as error:
        train(high)
    assert error.value.status == 65
    assert len(records(tmp_path, "rollback")) == 2
    assert all(np.isfinite(v).all() for n, v in arrays(tmp_path).items() if "losses" not in n)
    # Later checkpoints may include one that a bad update damaged and that is still finite.
    for path in (tmp_path / CHECKPOINTS).iterdir():
        if int(path.name) > 6:
            shutil.rmtree(path)
    train(dataclasses.replace(good, train_steps=8))
    assert np.isfinite(records(tmp_path, "train")[8]["loss"])
    assert "BACK TO THE CHECKPOINT OF STEP 6" in capsys.readouterr().err


def test_going_back_may_take_its_time() -> None:
    """Restoring is not watched; the step that goes on afterwards is."""
    config, restoring = run_config(), list[Activity]()

    class Stored:
        def regular_steps(self) -> list[int]:
            return [3]

        def restore_state(self, layout: StateLayout, step: int) -> TrainState:
            restoring.append(current())
            return start(config, program)

    with program_of(config) as program:
        state = start(config, program)
        state = dataclasses.replace(
            state,
            step=jax.numpy.int32(6),
            safety=dataclasses.replace(state.safety, in_a_row=jax.numpy.int32(3)),
        )
        guard = Safeguard(
            SafetyConfig(skipped_in_a_row=3),
            state,
            program.layout,
            Stored(),  # type: ignore[arg-type]
            writer=None,
            say=lambda line: None,
        )
        doing("step 7")
        guard.heal(state, 6, upto=6)
    [of_restoring] = restoring
    assert (of_restoring.name, of_restoring.watched) == ("restoring step 3", False)
    assert (current().name, current().watched) == ("step 7", True)


def test_there_may_be_nothing_to_go_back_to(corpus: Path, tmp_path: Path) -> None:
    config = poisoned_run(
        corpus,
        tmp_path,
        objectives=(MaskedLM(),),
        optimizer=OptimizerConfig(learning_rate=1e30, warmup_fraction=0.0),
        checkpoint=CheckpointConfig(every=10),
    )
    with pytest.raises(NotFinite, match="no update was made in the steps 2 to .* no checkpoint"):
        train(config)
    assert not [*(tmp_path / CHECKPOINTS).iterdir()]


@pytest.mark.slow
def test_parameters_that_are_not_finite_are_not_saved(corpus: Path, tmp_path: Path) -> None:
    """An overflowing update has a finite loss and gradient; its result is not saved."""
    config = poisoned_run(
        corpus,
        tmp_path,
        objectives=(MaskedLM(),),
        optimizer=OptimizerConfig(
            learning_rate=3e38, weight_decay=1e3, schedule="constant", warmup_fraction=0.0
        ),
        train_steps=1,
    )
    with pytest.raises(NotFinite, match="parameters are not finite"):
        train(config)
    assert not [*(tmp_path / CHECKPOINTS).iterdir()]


def test_a_checkpoint_of_an_earlier_version_has_skipped_nothing(tmp_path: Path) -> None:
    """It is restored, with counts as at the start of a run."""
    config = run_config()
    with program_of(config) as program:
        layout, state = program.layout, start(config, program)
        vocabulary = default_vocabulary()
        checkpoints = Checkpoints(
            tmp_path, config.checkpoint, model=config.model, vocabulary=vocabulary
        )
        old = {"step": state.step, "slots": state.opt_state}
        with open_manager(tmp_path / CHECKPOINTS, create=True) as manager:
            items = {"params": state.params, "optimizer": old}
            args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
            for name in ("data", "vocabulary"):
                args[name] = FilesSave(lambda directory: None)
            args["metadata"] = ocp.args.JsonSave({})
            manager.save(4, args=ocp.args.Composite(**args))
        found = checkpoints.restore_state(layout, 4)
        jax.tree.map(np.testing.assert_array_equal, found, state)
        assert found.safety.losses.sharding == layout.shardings.safety.losses
        checkpoints.close()


def test_checkpoints_of_interruptions_are_kept_while_they_are_the_newest() -> None:
    def kept(steps: list[int], **changes: Any) -> list[int]:
        infos = [types.SimpleNamespace(step=step) for step in steps]
        stays = LatestRegular(**changes).should_preserve(infos, context=None)
        return [step for step, stay in zip(steps, stays, strict=True) if stay]

    assert kept([3, 6, 9, 10], n=2) == [9, 10]
    assert kept([3, 6, 9, 10], n=2, extra={10}) == [6, 9, 10]
    assert kept([6, 9, 10, 11], n=2, extra={10, 11}) == [6, 9, 11]
    assert kept([6, 9, 11, 12], n=2, extra={11}) == [9, 12]
    assert kept([6, 9, 11, 12], n=None, extra={11}) == [6, 9, 12]
    assert kept([2], n=1, extra={2}) == [2]
    assert kept([], n=1) == []


@pytest.mark.slow
def test_a_step_of_a_run_is_looked_into_again(
    corpus: Path, whole_run: Path, tmp_path: Path
) -> None:
    """From the checkpoint before it, or the initial state, with the same batch and loss."""
    shutil.copytree(whole_run, tmp_path / "run")
    config = poisoned_run(corpus, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    said: list[str] = []
    found = replay(config, 11, say=said.append)
    assert said == ["from the checkpoint of step 9 to step 11"]
    assert found.numbers.first == "the loss: loss, tokens_loss"
    poison = config.model.vocab_size - 1
    assert (found.batch["encoder_original_tokens"] == poison).any()
    again = replay(config, 14, say=said.append)
    logged = next(r for r in read_metrics(whole_run) if r["step"] == 14)
    assert again.numbers.first is None
    assert again.numbers.losses["loss"] == pytest.approx(logged["loss"], rel=1e-5)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    lines = [*show_rows(found.batch, [0], vocabulary_of("poisoned"))]
    assert lines and lines[0].startswith("row 0, example 1, encoder: ")
    elsewhere = dataclasses.replace(config, model_dir=str(tmp_path / "mistyped"))
    with pytest.raises(PlugError, match="MODEL_DIR .*mistyped has no run to look at"):
        replay(elsewhere, 11, say=said.append)
    assert not (tmp_path / "mistyped").exists()
    with pytest.raises(PlugError, match="has the steps 1 to 20, not 21"):
        replay(config, 21, say=said.append)
    for step in (12, 17, 19, 20):
        shutil.rmtree(tmp_path / "run" / CHECKPOINTS / str(step))
    with pytest.raises(PlugError, match="after step 12 the run went back"):
        replay(config, 14, say=said.append)
