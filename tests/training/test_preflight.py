"""Errors before anything is trained or written: every message."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from plug_jax.checkpoints.best import Best
from plug_jax.checkpoints.format import PlainPath
from plug_jax.compilation import Compilation
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.errors import PlugError
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.stages import STRUCTBERT
from plug_jax.tasks import pretrain
from plug_jax.training.checkpointing import CheckpointConfig
from plug_jax.training.loop import train
from plug_jax.training.model_dir import ModelDirInUse, held
from plug_jax.training.preflight import _to_come, check_space
from plug_jax.training.program import TrainConfig, train_program
from tests import synthetic
from tests.training.program_runs import run_config, write_task

MakeConfig = Callable[..., TrainConfig]
NO_UTF_8 = b"caf\xe9\n"


@pytest.fixture
def make_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeConfig:
    """A run over files of `tmp_path` that must not get to its first step."""

    def result(compilation: Compilation) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(Compilation, "start", lambda compilation: None)
    monkeypatch.setattr(Compilation, "result", result)

    def make(
        *,
        train_files: str = "text.txt",
        validation_files: str | None = "text.txt",
        mask_rate: float = 0.15,
        **changes: Any,
    ) -> TrainConfig:
        data = write_task(tmp_path, "preflight")
        pretrain.structbert_text(
            train_files=str(tmp_path / train_files),
            validation_files=None if validation_files is None else str(tmp_path / validation_files),
            vocabulary=str(tmp_path / "vocab.txt"),
            max_length=24,
            mask_rate=mask_rate,
            name="preflight",
        )
        return run_config(
            **{
                "model_dir": str(tmp_path / "run"),
                "model": synthetic.tiny_config(num_decoder_layers=0, vocab_size=38),
                "train_data": data,
                "eval_data": scored(data),
                **changes,
            }
        )

    return make


def scored(data: DatasetConfig) -> DatasetConfig:
    return dataclasses.replace(data, split="validation", shuffle=False, num_epochs=1)


def refused(config: TrainConfig, match: str) -> None:
    with pytest.raises(PlugError, match=match) as raised:
        train(config)
    assert "\n" not in str(raised.value)
    left = {path.name for path in Path(config.model_dir).rglob("*")}
    assert left <= {"checkpoints"}


def test_a_model_dir_that_is_a_file(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(model_dir=str(tmp_path / "text.txt"))
    with pytest.raises(PlugError, match="text.txt cannot be a directory, for .*text.txt is a file"):
        train(config)


@pytest.mark.parametrize("name", ["", " "])
def test_a_model_dir_without_a_name(make_config: MakeConfig, name: str) -> None:
    with pytest.raises(PlugError, match="name the directory that the run is to write"):
        make_config(model_dir=name)


def test_a_model_dir_in_use(make_config: MakeConfig) -> None:
    config = make_config()
    with held(PlainPath.of(config.model_dir)), pytest.raises(ModelDirInUse, match="in use by"):
        train(config)


def test_pairs_for_a_model_without_a_second_token_type(make_config: MakeConfig) -> None:
    model = synthetic.tiny_config(num_decoder_layers=0, vocab_size=38, num_token_types=1)
    refused(make_config(model=model), "feature encoder_token_types has the value 1, .* are 0 to 0")


def test_a_sentence_head_of_two_classes(make_config: MakeConfig) -> None:
    """A converted BERT's: no logit is that of the third label."""
    model = synthetic.tiny_config(num_decoder_layers=0, vocab_size=38, num_sentence_classes=2)
    with pytest.raises(PlugError, match="has 3 labels, .* head 2 .* --num_sentence_classes=3"):
        make_config(model=model)


def test_a_disk_without_room(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=54321))
    refused(make_config(), r"run has room for 54.3 kB, and the 4 checkpoints to come need .* each")


@pytest.mark.parametrize(
    ("every", "keep", "best", "kept", "start", "count", "keep_every"),
    [
        (10, 3, False, 0, 0, 4, None),  # three, and one being written
        (10, 3, True, 0, 0, 5, None),
        (1000, 1, True, 0, 0, 2, None),  # the best so far, and a better one or the last
        (30, 1, True, 0, 0, 3, None),  # the newest, an older one that is the best, and one
        (30, 1, True, 1, 90, 1, None),
        (10, 3, False, 3, 30, 1, None),  # a resumed run has removed the others
        (10, 3, False, 4, 40, 1, None),  # it was killed before it deleted the oldest
        (40, 3, False, 0, 0, 3, None),  # steps 40, 80 and 100
        (40, 3, False, 2, 80, 1, None),
        (10, None, False, 5, 50, 5, None),
        (10, 3, False, 3, 100, 0, None),  # it is finished
        (10, 1, False, 0, 0, 5, 30),  # two that pass, and 30, 60, 90
        (10, 1, False, 4, 40, 3, 30),  # 30 and 40 of which 10 and 20 went; 60, 90 and one
    ],
)
def test_how_many_checkpoints_are_to_come(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    keep: int | None,
    best: bool,
    kept: int,
    start: int,
    count: int,
    keep_every: int | None,
) -> None:
    data = DatasetConfig("none", {"encoder": 24}, "train", 8, shuffle=True, seed=0)
    config = run_config(
        model_dir=str(tmp_path),
        checkpoint=CheckpointConfig(every=every, keep=keep, keep_every=keep_every),
        train_steps=100,
        eval_data=scored(data),
        best=Best("loss") if best else None,
    )
    (tmp_path / "checkpoints" / "²").mkdir(parents=True)  # not a step, nor a number
    for number in range(kept):
        (tmp_path / "checkpoints" / str(start - number * every)).mkdir(parents=True)
    with config.partitioner.context():
        state = train_program(config).layout.abstract
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    for free, fits in ((count * size, True), (count * size - 1, count == 0)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        if fits:
            check_space(config, state, start=start)
        else:
            with pytest.raises(PlugError, match=f"the {count} checkpoints to come"):
                check_space(config, state, start=start)


def stored_then(config: TrainConfig, bests: Collection[int]) -> dict[int, list[int]]:
    """The checkpoints by step, after each save of a run in which these evaluations were the best;
    one is deleted when a newer one is complete, unless it is among the newest or the best."""
    keep, stored = config.checkpoint.keep, dict[int, list[int]]()
    left: list[int] = []
    for step in range(1, config.steps + 1):
        if step % config.checkpoint.every == 0 or step == config.steps or step in bests:
            left = [*left, step]
            best = max((one for one in bests if one <= step), default=None)
            left = [one for one in left if keep is None or one in left[-keep:] or one == best]
            stored[step] = left
    return stored


@pytest.mark.parametrize("keep", [1, 2, None])
@pytest.mark.parametrize(
    ("every", "eval_every", "steps"),
    [(100, 1, 3), (3, 2, 8), (2, 3, 9), (2, 2, 6), (1, 4, 6), (4, 1, 6), (3, 4, 7)],
)
def test_an_evaluation_that_is_the_best_adds_a_checkpoint(
    tmp_path: Path, keep: int | None, every: int, eval_every: int, steps: int
) -> None:
    """Whichever evaluations are: never more than foreseen, and from the start one fewer at most."""
    data = DatasetConfig("none", {"encoder": 24}, "train", 8, shuffle=True, seed=0)
    config = run_config(
        checkpoint=CheckpointConfig(every=every, keep=keep),
        train_steps=steps,
        eval_every=eval_every,
        eval_data=scored(data),
        best=Best("accuracy"),
    )
    scored_at = [s for s in range(1, steps + 1) if s % eval_every == 0 or s == steps]
    most: dict[tuple[int, ...], int] = {}  # added, by those there at the start
    for are_best in itertools.product([False, True], repeat=len(scored_at)):
        stored = stored_then(config, [*itertools.compress(scored_at, are_best)])
        on_disk = [(0, list[int]()), *stored.items()]
        for number, (_, there) in enumerate(on_disk[:-1]):
            peak = max(len(before) + 1 for _, before in on_disk[number:-1])
            key = tuple(there)
            most[key] = max(most.get(key, 0), peak - len(there))
    for there, added in most.items():
        root = tmp_path / "-".join(map(str, there))
        for step in there:
            (root / "checkpoints" / str(step)).mkdir(parents=True)
        foreseen = _to_come(config, PlainPath.of(root), max(there, default=0))
        assert foreseen >= added, there
        assert there or foreseen <= added + 1


def test_a_validation_split_without_an_example(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes(NO_UTF_8)
    refused(
        make_config(validation_files="latin1.txt"),
        "'preflight' gives no example in split 'validation'. Dropped on the way: .*invalid_utf8 1",
    )


def test_training_data_without_an_example(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes(NO_UTF_8)
    refused(make_config(train_files="latin1.txt"), "'preflight' gives no example in split 'train'")


def test_uneven_data_streams(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(train_files="*.part")
    text = (tmp_path / "text.txt").read_text(encoding="utf-8")
    for streams, copies, note in ((2, 2, True), (2, 1, False), (1, 2, False)):
        (tmp_path / "a.part").write_text(text * copies, encoding="utf-8")
        (tmp_path / "b.part").write_text(text, encoding="utf-8")
        data = dataclasses.replace(config.train_data, streams=streams)
        with pytest.raises(AssertionError, match="it trains"):
            train(dataclasses.replace(config, train_data=data))
        size = len(text.encode())
        said = f"largest has {2 * size:,} bytes of 'preflight', the smallest {size:,}, which is"
        assert (said in capsys.readouterr().err) == note


def test_no_validation_files(make_config: MakeConfig) -> None:
    refused(make_config(validation_files=None), "has no split 'validation', only train")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_damaged_file_among_others(make_config: MakeConfig, tmp_path: Path, split: str) -> None:
    whole = gzip.compress("天地人。".encode() * 100)
    (tmp_path / "a.txt.gz").write_bytes(whole)
    (tmp_path / "b.txt.gz").write_bytes(whole[:-9])
    config = make_config(**{f"{split}_files": "?.txt.gz"})
    refused(config, f"1 of the files of the {split} split of 'preflight' .*b.txt.gz is damaged")


def test_more_is_masked_than_can_be_predicted(make_config: MakeConfig) -> None:
    """Stage 1 predicts 24% by default, 0.35 + 0.05 * 3 * (1 - 0.35)^3 = 39% at this rate."""
    config = make_config(mask_rate=0.35)
    refused(
        config,
        r"predicts 39.1% of .* room for 37.5% of a row.*masked_lm.MaskedLM.capacity = 0.49, or",
    )
    enough = (MaskedLM(word_structural=True, capacity=0.49), *STRUCTBERT[1:])
    with pytest.raises(AssertionError, match="it trains"):
        train(dataclasses.replace(config, objectives=enough))


def test_a_best_metric_that_no_evaluation_gives(make_config: MakeConfig) -> None:
    config = make_config(best=Best("mlm_acuracy"))
    refused(config, "has no 'mlm_acuracy'; it has .*, mlm_accuracy, .*word_order_loss")


def test_all_is_well(make_config: MakeConfig) -> None:
    with pytest.raises(AssertionError, match="it trains"):
        train(make_config(best=Best("mlm_accuracy")))
