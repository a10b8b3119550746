"""An objective in its own file, named in one line of gin, works with everything."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from plug_jax.checkpoints.parameters import init_params
from plug_jax.checkpoints.saved_model import load_for_inference, open_checkpoint
from plug_jax.cli.main import main
from plug_jax.cli.train import configure
from plug_jax.convert.name_map import BERT, leaves_of
from plug_jax.errors import PlugError
from plug_jax.models.flops import RowShape
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import evaluation_metrics
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.stages import STRUCTBERT
from plug_jax.planning.flops import model_flops
from plug_jax.training.writers import read_metrics
from tests import synthetic
from tests.objectives.sentence_length import LONGEST, SentenceLength, add_task

CHARACTERS = "天地人你我他来去上下大小好多年月日时分水火木金土山石田力口手心门"
SMALL = [
    "config.PlugConfig.hidden_size = 16",
    "config.PlugConfig.num_encoder_layers = 1",
    "config.PlugConfig.num_heads = 4",
    "config.PlugConfig.head_dim = 4",
    "config.PlugConfig.mlp_dim = 32",
    "config.PlugConfig.max_positions = 32",
    "config.PlugConfig.vocab_multiple = 16",
    "config.PlugConfig.init_std = 0.1",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lengths")
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list(CHARACTERS), rng.integers(1, 26))) for _ in range(400)]
    (root / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    (root / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (root / "lengths.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from tests.objectives import sentence_length\n\n"
        "OBJECTIVES = (@sentence_length.SentenceLength(),)\n"
        "MIXTURE_OR_TASK_NAME = @sentence_length.add_task()\n"
        f"sentence_length.add_task.files = {str(root / 'text.txt')!r}\n"
        f"sentence_length.add_task.vocabulary = {str(root / 'vocab.txt')!r}\n",
        encoding="utf-8",
    )
    return root


def arguments(command: str, files: list[str], bindings: list[str]) -> list[str]:
    options = [f"--gin.{binding.replace(' = ', '=', 1)}" for binding in bindings]
    return [command, *(f"--gin_file={file}" for file in files), *options]


def run_train(corpus: Path, model_dir: Path, *bindings: str) -> int:
    """The user's command; returns its status."""
    files = ["runs/structbert_pretrain.gin", "models/tiny.gin", "mesh/cpu8.gin"]
    common = [
        f"MODEL_DIR = {str(model_dir)!r}",
        "TASK_FEATURE_LENGTHS = {'encoder': 32}",
        "BATCH_SIZE = 16",
        "LEARNING_RATE = 1e-2",
        "LOG_EVERY = 1",
        "EVAL_EVERY = 40",
        "DROPOUT_RATE = 0.0",
        "VOCAB_SIZE = 37",
    ]
    mine = str(corpus / "lengths.gin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_PROCESSES", "1")
        return main(arguments("train", [*files, mine], [*SMALL, *common, *bindings]))


def train(corpus: Path, model_dir: Path, *bindings: str) -> dict[int, dict[str, float]]:
    """A successful run; the training records by step, without times."""
    assert run_train(corpus, model_dir, *bindings) == 0
    records = (r for r in read_metrics(model_dir) if r["split"] == "train")
    return {r["step"]: {k: v for k, v in r.items() if "second" not in k} for r in records}


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_dir = tmp_path_factory.mktemp("trained")
    train(corpus, model_dir, "TRAIN_STEPS = 40", "CHECKPOINT_EVERY = 25")
    return model_dir


def test_it_learns_and_is_scored(trained: Path) -> None:
    train, validation = ([r for r in read_metrics(trained) if r["split"] == split] for split in
                         ("train", "validation"))  # fmt: skip
    assert train[0]["sentence_length_rmse"] > 0.3
    assert validation[-1]["sentence_length_rmse"] < 0.15
    assert train[-1]["loss"] == pytest.approx(train[-1]["sentence_length_loss"])
    assert not any("mlm" in name or "tokens_loss" in name for name in train[-1])


def test_a_checkpoint_has_its_head_and_goes_on(corpus: Path, trained: Path, tmp_path: Path) -> None:
    head = open_checkpoint(trained).param_shapes()["heads"]["sentence_length"]
    assert jax.tree.map(lambda leaf: leaf.shape, head) == {"kernel": (16, 1), "bias": (1,)}
    first = train(corpus, tmp_path, "TRAIN_STEPS = 40", "CHECKPOINT_EVERY = 25")
    shutil.rmtree(tmp_path / "checkpoints" / "40")
    again = train(corpus, tmp_path, "TRAIN_STEPS = 40", "CHECKPOINT_EVERY = 25")
    assert again == first


def test_evaluate_gives_the_figures_of_the_run(
    corpus: Path,
    trained: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    capsys.readouterr()
    files = ["runs/evaluate.gin", "mesh/cpu1.gin", str(corpus / "lengths.gin")]
    bindings = [
        f"CHECKPOINT = {str(trained)!r}",
        "TASK_FEATURE_LENGTHS = {'encoder': 32}",
        "BATCH_SIZE = 8",
    ]
    assert main(arguments("evaluate", files, bindings)) == 0
    found = json.loads(capsys.readouterr().out)
    validation = [r for r in read_metrics(trained) if r["split"] == "validation"][-1]
    for name in ("sentence_length_loss", "sentence_length_rmse"):
        assert found[name] == pytest.approx(validation[name], rel=1e-5)


def test_who_does_not_know_the_head_reads_the_rest(trained: Path) -> None:
    config, params, _ = load_for_inference(trained)
    assert config.num_decoder_layers == 0 and "heads" not in params


@pytest.mark.slow
def test_its_head_starts_anew_on_another_checkpoint(
    corpus: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An encoder from a run without the objective, as in fine-tuning; and the reverse."""
    words = [
        "OBJECTIVES = (@masked_lm.MaskedLM(),)",
        "MIXTURE_OR_TASK_NAME = @pretrain.structbert_text()",
        f"TRAIN_FILES = {str(corpus / 'text.txt')!r}",
        f"VOCABULARY = {str(corpus / 'vocab.txt')!r}",
        "EVAL_DATA = None",
        "TRAIN_STEPS = 1",
        "MAX_LENGTH = 24",
        "PACKING_WINDOW = 32",
    ]
    capsys.readouterr()
    train(corpus, tmp_path / "words", *words, f"INITIAL_CHECKPOINT = {str(trained)!r}")
    said = "heads/sentence_length of the checkpoint is not used"
    assert said in " ".join(capsys.readouterr().err.split())
    assert "heads" not in open_checkpoint(tmp_path / "words").param_shapes()
    capsys.readouterr()
    assert run_train(corpus, tmp_path / "words", "TRAIN_STEPS = 2", "EVAL_DATA = None") == 2
    said = (
        "has heads of the objectives none, and OBJECTIVES of this run bring those of sentence_len"
    )
    assert said in capsys.readouterr().err
    records = train(
        corpus,
        tmp_path / "lengths",
        f"INITIAL_CHECKPOINT = {str(tmp_path / 'words')!r}",
        "TRAIN_STEPS = 1",
        "EVAL_DATA = None",
    )
    assert records[1]["sentence_length_loss"] > 0
    said = "heads/sentence_length of this run is newly initialised"
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_documented_code_is_the_tested_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    module: dict[str, Any] = {"__name__": "my_length"}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], module)
    shown, tested = module["SentenceLength"](), SentenceLength()
    assert shown.name == tested.name and shown.features == tested.features
    config = synthetic.tiny_config(num_decoder_layers=0)
    assert shown.flops(config, RowShape(8, 32)) == tested.flops(config, RowShape(8, 32))
    batch = synthetic.batch(rows=2)
    batch["sentence_length"] = np.full(batch["sentence_labels"].shape, 0.5, np.float32)
    batch["sentence_length_weights"] = batch["sentence_weights"]
    assert shown.predictions(batch) == tested.predictions(batch) > 0
    model = PlugModel(config)
    params = init_params(model, jax.random.key(0), (shown,))
    losses = [
        evaluation_metrics((one,), model, params, batch)["sentence_length_loss"]
        for one in (shown, tested)
    ]
    assert float(losses[0].total) == float(losses[1].total) > 0
    assert float(losses[0].weight) == float(losses[1].weight) > 0


def test_it_is_planned(corpus: Path) -> None:
    config = synthetic.tiny_config(num_decoder_layers=0)
    flops = model_flops(config, (*STRUCTBERT, SentenceLength()), {"encoder": 32}, 8)
    assert flops.parts["length_head"] == 2 * 8 * 32 * 16
    assert SentenceLength().flops(config, RowShape(8, 32)) == {"length_head": 2 * 8 * 32 * 16}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: extra `tpu`"
)
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_the_compiler_plans_it(corpus: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    files = ["runs/structbert_pretrain.gin", "models/tiny.gin", "mesh/cpu1.gin"]
    bindings = [
        "VOCAB_SIZE = 37",
        "config.PlugConfig.scan_layers = True",
        "BATCH_SIZE = 8",
        "TASK_FEATURE_LENGTHS = {'encoder': 128}",
    ]
    options = ["--topology=v5e:2x2", "--json"]
    files.append(str(corpus / "lengths.gin"))
    assert main([*arguments("plan", files, bindings), *options]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["stage"] is None and plan["objectives"] == ["sentence_length"]
    assert plan["speed"]["days"] is None and plan["speed"]["mfu_bound"] > 0


def test_it_is_inspected(corpus: Path, capsys: pytest.CaptureFixture) -> None:
    name = add_task(files=str(corpus / "text.txt"), vocabulary=str(corpus / "vocab.txt"))
    task = ["inspect", "--task", name]
    mine = ["--objective", "tests.objectives.sentence_length.SentenceLength"]
    assert main([*task, *mine, "--num_examples", "1"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    size = int(next(line for line in lines if line.startswith("lengths")).split()[-1])
    assert f"length {size / LONGEST:.3f} of {LONGEST}" in lines
    assert "wrong lengths 0 of 400 examples 0 ✓ within" in lines
    assert any(line.startswith("encoder padding") for line in lines)
    assert (
        main([*task, "--num_examples", "1"]) == 0
    )  # without knowing the objective: feature by feature
    assert "sentence_length_weights" in capsys.readouterr().out
    assert main([*task, "--objective", "plug_jax.objectives.masked_lm.MaskedLM"]) == 2
    assert "lacks encoder_loss_weights, encoder_original_tokens" in capsys.readouterr().err
    for wrong in (
        "nowhere.Objective",
        "tests.objectives.sentence_length.Nothing",
        "json.dumps",
        "x",
    ):
        assert main([*task, "--objective", wrong]) == 2
        assert f"--objective {wrong}" in capsys.readouterr().err


def test_the_name_map_asks_it() -> None:
    config = synthetic.tiny_config(num_decoder_layers=0, norm_placement="post", use_pooler=True)
    without = leaves_of(config, BERT)
    added = leaves_of(config, BERT, (SentenceLength(),))[len(without) :]
    assert {(leaf.path, leaf.names(0), leaf.torch_shape(ranks=1, rows=96)) for leaf in added} == {
        ("heads/sentence_length/kernel", ("length_head.weight",), (1, 16)),
        ("heads/sentence_length/bias", ("length_head.bias",), (1,)),
    }


def test_its_head_is_exported_where_it_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    export = ["convert", "export-hf", "--checkpoint", str(trained), "--output"]
    assert main([*export, str(tmp_path / "without")]) == 0
    assert "left out: the heads of sentence_length; --objective" in capsys.readouterr().err
    mine = ["--objective", "tests.objectives.sentence_length.SentenceLength"]
    assert main([*export, str(tmp_path / "with"), *mine]) == 0
    assert "left out" not in capsys.readouterr().err
    tensors = load_file(tmp_path / "with" / "model.safetensors")
    restored = open_checkpoint(trained)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = restored.params(jax.tree.map(lambda _: device, restored.param_shapes()))
    kernel = np.asarray(params["heads"]["sentence_length"]["kernel"])
    np.testing.assert_array_equal(tensors["length_head.weight"], kernel.T)
    assert "length_head.weight" not in load_file(tmp_path / "without" / "model.safetensors")


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ("()", "OBJECTIVES is empty"),
        ("(@masked_lm.MaskedLM(), @masked_lm.MaskedLM())", "two of OBJECTIVES are called 'tokens'"),
        ("(@continuation.Continuation(),)", "needs a decoder, and this model has none"),
        ("(@masked_lm.MaskedLM,)", "objectives must be a list, each item an Objective"),
        ("('masked_lm',)", "objectives must be a list, each item an Objective"),
    ],
)
def test_what_cannot_be_composed_is_told(
    corpus: Path, tmp_path: Path, objectives: str, message: str
) -> None:
    mine = tmp_path / "mine.gin"
    mine.write_text(
        "from __gin__ import dynamic_registration\n"
        "from plug_jax.objectives import continuation\n"
        "from plug_jax.objectives import masked_lm\n"
        f"OBJECTIVES = {objectives}\n"
    )
    files = ["runs/structbert_pretrain.gin", "models/tiny.gin", "mesh/cpu1.gin", str(mine)]
    bindings = [f"MODEL_DIR = {str(tmp_path / 'run')!r}", "TRAIN_STEPS = 1"]
    with pytest.raises(PlugError, match=message):
        configure(files, [*bindings, "MIXTURE_OR_TASK_NAME = 'any'"])


def test_a_weight_multiplies_the_loss() -> None:
    for weight in (0, -1, float("inf"), float("nan"), "1"):
        with pytest.raises(PlugError, match="weight"):
            MaskedLM(weight=weight)
