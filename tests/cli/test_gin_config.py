"""The shipped gin files, and messages for misspelt or missing settings."""

from __future__ import annotations

import argparse
from pathlib import Path

import gin
import pytest

from plug_jax.cli import gin_config, plan
from plug_jax.cli.cache import CacheConfig
from plug_jax.cli.generate import GenerateConfig
from plug_jax.cli.gin_statements import read_files
from plug_jax.cli.train import configure
from plug_jax.errors import PlugError
from plug_jax.objectives.stages import PALM, STRUCTBERT
from plug_jax.training.evaluate import EvaluateConfig
from tests.downstream.tiny_encoder import write_encoder

TEXT = "天地人。你我他。\n" * 3


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    """The bindings that a run over text files needs."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "。", *"天地人你我他"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    text = str(tmp_path / "text.txt")
    return [
        f"MODEL_DIR = {str(tmp_path / 'run')!r}",
        f"TRAIN_FILES = {text!r}",
        f"VALIDATION_FILES = {text!r}",
        f"VOCABULARY = {str(tmp_path / 'vocab.txt')!r}",
        "TRAIN_STEPS = 7",
    ]


GIN = Path(gin_config.__file__).parents[2] / "gin_configs"
# Model sizes; decoder_alone needs a size file first, and an objective (test_language_model.py).
MODELS = sorted({path.stem for path in (GIN / "models").glob("*.gin")} - {"decoder_alone"})
MESHES = sorted({path.stem for path in (GIN / "mesh").glob("*.gin")} - {"common"})

STAGE1 = ["runs/structbert_pretrain.gin", "models/tiny.gin", "mesh/cpu1.gin"]
STAGE2 = ["runs/palm_pretrain.gin", "models/tiny.gin", "mesh/cpu8.gin"]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_file_gives_both_stages(model: str, run: list[str]) -> None:
    files = [f"models/{model}.gin" if "models/" in f else f for f in STAGE1]
    stage1 = configure(files, run)
    assert stage1.model.num_decoder_layers == 0
    assert stage1.objectives == STRUCTBERT
    assert stage1.train_data.split == "train" and stage1.train_data.num_epochs is None
    assert stage1.eval_data is not None and stage1.eval_data.num_epochs == 1
    files = [f"models/{model}.gin" if "models/" in f else f for f in STAGE2]
    stage2 = configure(files, [*run, "INITIAL_CHECKPOINT = 'run1'"])
    assert stage2.model.num_decoder_layers > 0
    assert stage2.objectives == PALM
    assert stage2.initial_checkpoint == "run1"
    assert (stage2.partitioner.data, stage2.partitioner.tensor) == (2, 2)
    assert stage2.model.hidden_size == stage1.model.hidden_size


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_file_goes_with_every_run(mesh: str, run: list[str]) -> None:
    stage1 = configure([*STAGE1[:2], f"mesh/{mesh}.gin"], run)
    stage2 = configure([*STAGE2[:2], f"mesh/{mesh}.gin"], [*run, "INITIAL_CHECKPOINT = None"])
    assert stage1.partitioner == stage2.partitioner
    assert stage1.train_data.batch_size == stage2.train_data.batch_size
    assert stage1.step.micro_batches == stage2.step.micro_batches
    # Rows divide over the micro-batches and all devices, over which they are sharded.
    devices = stage1.partitioner.data * stage1.partitioner.fsdp
    if devices > 0:
        assert stage1.train_data.batch_size % (devices * stage1.step.micro_batches) == 0
    if stage1.model.attention == "splash":
        assert stage2.model.attention_dropout_rate == 0.0
        assert stage2.model.dropout_rate == 0.1


# Of each mesh file: batch size, micro-batches, attention and its dropout, what the backward pass
# recomputes, if not what the model's file says.
TUNED = {
    "cpu1": (256, 1, "auto", 0.1, None),
    "cpu8": (256, 1, "auto", 0.1, None),
    "h100_1": (256, 4, "auto", 0.0, "names=qkv,context,out"),
    "h100_8": (512, 32, "auto", 0.0, "full"),
    "v4_128": (2048, 8, "splash", 0.0, "names=out,wi"),
    "v5e_16": (1024, 2, "splash", 0.0, "names=qkv,out"),
    "v5e_256": (2048, 4, "splash", 0.0, "names=qkv,wi"),
    "v5p_128": (2048, 4, "splash", 0.0, "names=qkv,out,wi"),
    "v5p_256_x2": (2048, 1, "splash", 0.0, "names=qkv,out,wi"),
    "v5p_512": (2048, 1, "splash", 0.0, "names=qkv,out,wi"),
    "v6e_256": (2048, 2, "splash", 0.0, "names=qkv,out,wi"),
    "v7x_64": (2048, 2, "splash", 0.0, "names=qkv,out,wi"),
}


def tuning(files: list[str], bindings: list[str]) -> tuple[int, int, str, float, str]:
    config = plan.configure(files, bindings)
    model = config.model
    of_model = (model.attention, model.attention_dropout_rate, model.remat)
    return config.train_data.batch_size, config.step.micro_batches, *of_model


@pytest.mark.parametrize("mesh", MESHES)
def test_pre_training_takes_what_a_mesh_file_is_tuned_with(mesh: str) -> None:
    *tuned, remat = TUNED[mesh]
    for stage in ("structbert", "palm"):
        for model, of_model in (("base", "none"), ("plug_27b", "full")):
            files = [f"runs/{stage}_pretrain.gin", f"models/{model}.gin", f"mesh/{mesh}.gin"]
            assert tuning(files, []) == (*tuned, remat or of_model)
    own = [
        "BATCH_SIZE = 4096",
        "MICRO_BATCHES = 16",
        "config.PlugConfig.attention = 'dot'",
        "config.PlugConfig.attention_dropout_rate = 0.2",
        "config.PlugConfig.remat_policy = 'dots'",
    ]
    assert tuning(files, own) == (4096, 16, "dot", 0.2, "dots")


# The files of fine-tuning runs, with the batch sizes that they were published with.
FINE_TUNING = {
    ("runs/finetune.gin", "clue/tnews.gin"): 16,
    ("runs/finetune.gin", "clue/csl.gin"): 4,
    ("runs/finetune.gin", "clue/cmrc2018.gin"): 32,
    ("runs/finetune.gin", "clue/c3.gin"): 24,
    ("runs/finetune.gin", "clue/chid.gin"): 24,
    ("runs/finetune.gin", "clue/cluener.gin"): 24,
    ("runs/finetune.gin", "finetuning/classification.gin"): 32,
    ("runs/finetune.gin", "finetuning/regression.gin"): 32,
    ("runs/finetune_generation.gin", "models/base.gin", "generation/dureader_qg.gin"): 32,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_encoder(tmp_path_factory.mktemp("runs") / "encoder"))


@pytest.mark.parametrize("mesh", MESHES)
def test_fine_tuning_takes_from_a_mesh_file_only_what_saves_memory(mesh: str, encoder: str) -> None:
    """Batch size and dropout are the task's, and the kernel is one that takes its rows."""
    remat = TUNED[mesh][-1] or "none"
    for files, batch in FINE_TUNING.items():
        given = []
        if files[0] == "runs/finetune.gin":
            given += [f"ARCHITECTURE_OF = {encoder!r}", "MAX_LENGTH = 80"]
        if "finetuning/classification.gin" in files:
            given += ["LABELS = ('bad', 'good')", "TRAIN_FILE = 'train.tsv'"]
        run = [*files, f"mesh/{mesh}.gin"]
        assert tuning(run, given) == (batch, 1, "auto", 0.1, remat), files
        own = ["BATCH_SIZE = 64", "MICRO_BATCHES = 2", "ATTENTION = 'dot'", "REMAT_POLICY = 'dots'"]
        own += ["ATTENTION_DROPOUT_RATE = 0.0"]
        assert tuning(run, [*given, *own]) == (64, 2, "dot", 0.0, "dots")


@pytest.mark.parametrize("task", ["cmrc2018", "drcd"])
def test_short_questions_leave_room_in_short_rows(task: str, encoder: str) -> None:
    files = ["runs/finetune.gin", f"clue/{task}.gin", "mesh/cpu1.gin"]
    short = [f"ARCHITECTURE_OF = {encoder!r}", "MAX_LENGTH = 48"]
    config = plan.configure(files, [*short, "MAX_QUESTION = 24"])
    assert config.train_data.feature_lengths == {"encoder": 48}
    with pytest.raises(PlugError, match="max_length must be 72 or more, got 48"):
        plan.configure(files, short)


def test_mesh_files_of_training_go_with_evaluation(run: list[str]) -> None:
    bindings = ["CHECKPOINT = 'run'", "MIXTURE_OR_TASK_NAME = 'task'", "BATCH_SIZE = 64"]
    bindings += ["TASK_FEATURE_LENGTHS = {'encoder': 512}"]
    files = ["runs/evaluate.gin", "objectives/structbert.gin", "mesh/v5p_128.gin"]
    config = gin_config.configured(EvaluateConfig, files=files, bindings=bindings)
    assert config.partitioner.fsdp == 16
    assert config.step.loss_chunk == 128


@pytest.mark.parametrize("name", ["palm_pretrain", "cache", "evaluate", "score", "infer"])
def test_text_is_cleaned_wherever_it_is_read(name: str) -> None:
    """A file of cleaning/ has an effect on every command over text files, not only on training."""
    pieces = read_files([f"runs/{name}.gin"], gin_config.search_paths())
    statements = [statement for piece in pieces for statement in piece.statements]
    macros = [one.value for one in statements if one.setting == "CLEANING"]
    assert macros == [()]  # none by default
    read = {one.selector for one in statements if one.parameter == "text_key"}
    assert read
    assert read == {one.selector for one in statements if one.parameter == "cleaning"}


def test_plug_27b_is_the_released_shape(run: list[str]) -> None:
    files = ["models/plug_27b.gin" if "models/" in f else f for f in STAGE2]
    model = configure(files, [*run, "INITIAL_CHECKPOINT = None"]).model
    assert model.padded_vocab_size == 21504
    assert (model.num_encoder_layers, model.num_decoder_layers) == (24, 6)
    assert (model.num_heads, model.head_dim, model.mlp_dim) == (128, 64, 32768)


def test_what_was_read_is_kept_and_can_be_read_again(run: list[str], tmp_path: Path) -> None:
    config = configure(STAGE1, run)
    kept = tmp_path / "config.gin"
    assert config.config_gin is not None
    kept.write_text(config.config_gin)
    again = gin_config.configured(type(config), files=[str(kept)], bindings=[])
    assert again == config


@pytest.mark.parametrize(
    ("files", "change", "message"),
    [
        (STAGE1, ["TRAN_STEPS = 3"], r"--gin.TRAN_STEPS=3: nothing .* mean TRAIN_STEPS\?$"),
        (
            STAGE1,
            ["program.TrainConfig.trian_steps = 3"],
            "nothing .* did you mean program.TrainConfig.train_steps",
        ),
        (
            STAGE1,
            ["lop.TrainConfig.train_steps = 3"],
            "there is no lop.TrainConfig; did you mean program.TrainConfig.train_steps",
        ),
        (STAGE1, ["config.PlugConfig.hidden_size = 0"], "hidden_size must be at least 1, got 0$"),
        (STAGE1, ["TRAIN_FILES = None"], "TRAIN_FILES is not set: pass --gin.TRAIN_FILES"),
        (STAGE1, ["VOCABULARY = '/nowhere'"], "/nowhere"),
        (
            [STAGE1[0], STAGE1[2]],
            [],
            r"not set: PlugConfig\(vocab_size, .*max_positions\) \(by a models/ file: --gin_f",
        ),
        (STAGE1[:2], [], r"required, but not set: PARTITIONER \(by a mesh/ file"),
        (STAGE2, [], r"required, but not set: INITIAL_CHECKPOINT \(--gin.INITIAL_CHECKPOINT=...\)"),
        (["runs/structbert_pretain.gin"], [], "did you mean runs/structbert_pretrain.gin"),
    ],
)
def test_messages(files: list[str], change: list[str], message: str, run: list[str]) -> None:
    changed = {binding.partition(" = ")[0] for binding in change}
    kept = [binding for binding in run if binding.partition(" = ")[0] not in changed]
    with pytest.raises(PlugError, match=message):
        configure(files, [*kept, *change])


def test_a_file_may_be_in_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    parser = argparse.ArgumentParser()
    gin_config.add_arguments(parser)
    args = parser.parse_args(["--gin_file=runs/generate.gin", "--gin_file=~/my.gin"])
    assert args.gin_file == ["runs/generate.gin", "/home/me/my.gin"]


def test_missing_macros_are_all_named() -> None:
    with pytest.raises(PlugError, match=r"not set: MODEL_DIR .*, TRAIN_STEPS "):
        configure(STAGE1, [])


def test_strings_are_not_searched_for_macros() -> None:
    files, bindings = ["runs/generate.gin"], ["CHECKPOINT = 'x'", "PROMPT = '涨了100%GDP'"]
    request = gin_config.configured(GenerateConfig, files=files, bindings=bindings)
    assert request.prompt == "涨了100%GDP"
    options = request.options
    assert (options.temperature, options.top_k, options.top_p) == (0.9, 20, 1.0)
    assert (options.max_new_tokens, options.num_samples, options.seed) == (128, 1, 0)


def test_overrides() -> None:
    assert gin_config.overrides(["--gin.A_B=3", "--gin.x.Y.z='a=b'"]) == [
        "A_B = 3",
        "x.Y.z = 'a=b'",
    ]
    with pytest.raises(PlugError, match=r"unknown argument '--steps=3'"):
        gin_config.overrides(["--steps=3"])


def test_the_command_line_names_what_files_import(run: list[str]) -> None:
    task = [binding for binding in run if binding.startswith(("TRAIN_FILES", "VOCABULARY"))]
    bindings = [
        *task,
        "CLEANING = (@cleaning.HalfWidth(), @cleaning.MinLength())",
        "cleaning.MinLength.characters = 7",
    ]
    gin_config.configured(CacheConfig, files=["runs/cache.gin"], bindings=bindings)
    assert gin.query_parameter("cleaning.MinLength.characters") == 7
    misspelt = [*task, "CLEANING = (@cleaning.Halfwidth(),)"]
    message = "preprocessors.cleaning has no Halfwidth; did you mean HalfWidth"
    with pytest.raises(PlugError, match=message):
        gin_config.configured(CacheConfig, files=["runs/cache.gin"], bindings=misspelt)
