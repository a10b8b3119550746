"""import-hf and export-hf on safetensors: no PyTorch needed."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from plug_jax.checkpoints.format import CHECKPOINTS, open_manager
from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.checkpoints.saved_model import load_for_inference, open_checkpoint
from plug_jax.cli import main
from plug_jax.convert import checkpoint_writer, stored_arrays
from plug_jax.convert.from_torch import ImportOptions, import_weights
from plug_jax.convert.model_sizes import ModelOptions
from plug_jax.convert.sources import open_hf
from plug_jax.convert.stored_arrays import StoredTree
from plug_jax.convert.tensor_names import by_layout
from plug_jax.convert.to_torch import export_hf, export_plug
from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES, WordPieceVocabulary
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner
from plug_jax.training.initial_checkpoint import initialize_from
from plug_jax.training.state import TrainState, state_layout
from tests import golden_weights
from tests.convert import weights

ROWS = 90
CONFIG = {
    "model_type": "bert",
    "vocab_size": ROWS,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
}
HEADS = ("cls.predictions", "cls.seq", "bert.pooler")


@pytest.fixture(scope="module")
def tensors():
    return weights.state_dict(weights.bert_config(), "bert", rows=ROWS)


def write(directory, tensors, *, config=CONFIG, pieces=0):
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    if pieces:
        words = [*SPECIAL_PIECES, *(chr(0x4E00 + i) for i in range(pieces - 5))]
        (directory / "vocab.txt").write_text("\n".join(words))
    return directory


def bring_in(directory, output, **options):
    import_weights(open_hf(directory), output, ImportOptions(**options))
    return open_checkpoint(output)


def params_of(saved, dtype=None):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return saved.params(jax.tree.map(lambda _: device, saved.param_shapes()), dtype)


def test_imported_structbert_is_what_an_independent_reader_reads(golden_dir, tmp_path):
    _, expected = golden_weights.load_structbert(golden_dir / "structbert_hf")
    saved = bring_in(golden_dir / "structbert_hf", tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params_of(saved), expected)
    export_hf(tmp_path / "out", tmp_path / "back")
    weights.same(
        load_file(tmp_path / "back" / "model.safetensors"),
        load_file(golden_dir / "structbert_hf" / "model.safetensors"),
    )


def test_mixed_dtypes_and_rows_come_back_bit_for_bit(tensors, tmp_path):
    mixed = weights.half_with_some_norms_in_full(tensors)
    saved = bring_in(write(tmp_path / "in", mixed), tmp_path / "out")
    assert saved.config == weights.bert_config(
        init_std=0.02, dropout_rate=0.1, attention_dropout_rate=0.1, attention="dot"
    )
    assert (
        saved.param_shapes()["encoder"]["layers"]["attention"]["out"]["kernel"].dtype == "float16"
    )
    assert saved.param_shapes()["encoder"]["layers"]["mlp_norm"]["scale"].dtype == "float32"
    export_hf(tmp_path / "out", tmp_path / "back", shard_bytes=5000)
    again = {}
    for path in (tmp_path / "back").glob("model-*-of-*.safetensors"):
        again |= load_file(path)
    weights.same(again, mixed)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["vocab_size"] == ROWS
    # A sharded export can be imported again.
    second = bring_in(tmp_path / "back", tmp_path / "second")
    jax.tree.map(np.testing.assert_array_equal, params_of(second), params_of(saved))
    # Another dtype for all tensors.
    export_hf(tmp_path / "out", tmp_path / "bfloat16", dtype="bfloat16")
    halves = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert {array.dtype for array in halves.values()} == {weights.BFLOAT16}


def test_a_whole_plug_goes_through_safetensors(tmp_path):
    tensors = weights.half_with_some_norms_in_full(
        weights.state_dict(weights.plug_config(), "plug", rows=96)
    )
    config = {"model_type": "plug", "num_attention_heads": 4, "vocab_size": 90}
    saved = bring_in(write(tmp_path / "in", tensors, config=config), tmp_path / "out")
    assert (saved.config.vocab_size, saved.config.padded_vocab_size) == (90, 128)
    assert saved.config.encoder_final_norm_repeats == 2
    assert saved.config.dropout_rate == 0.1
    assert (saved.path / "unused").exists()  # the pooler
    export_hf(tmp_path / "out", tmp_path / "back")
    weights.same(load_file(tmp_path / "back" / "model.safetensors"), tensors)


RELEASED = {
    "model_type": "plug",
    "vocab_size": 96,
    "original_vocab_size": 90,
    "num_hidden_layers": 2,
    "dec_hidden_layers": 2,
    "num_attention_heads": 4,
    "type_vocab_size": 3,
    "attention_probs_dropout_prob": 0.2,
    "attn_separate": False,
    "fp32_layernorm": True,
}


def test_settings_of_released_plug(tmp_path, capsys):
    """Its vocab_size includes padding, and the number of decoder layers has another name."""
    tensors = weights.state_dict(weights.plug_config(), "plug", rows=96)
    saved = bring_in(write(tmp_path / "in", tensors, config=RELEASED), tmp_path / "out")
    assert (saved.config.vocab_size, saved.config.num_decoder_layers) == (90, 2)
    assert saved.config.attention_dropout_rate == 0.2
    assert "nothing here reads" not in capsys.readouterr().err
    for change, message in (
        ({"dec_hidden_layers": 1}, "not in the model: decoder.decoder.layer.1"),
        ({"dec_hidden_layers": 3}, "missing: decoder.decoder.layer.2"),
        ({"attn_separate": True}, "attn_separate = true"),
        ({"hidden_act": "relu"}, 'hidden_act = "relu"'),
    ):
        (tmp_path / "in" / "config.json").write_text(json.dumps(RELEASED | change))
        with pytest.raises(PlugError, match=message):
            bring_in(tmp_path / "in", tmp_path / "other")


@pytest.mark.parametrize("use_pooler", [False, True])
def test_a_post_norm_model_with_a_decoder_too(tmp_path, use_pooler):
    """Under PLUG's names; config.json says that it is not one."""
    config = weights.bert_config(num_decoder_layers=1, use_pooler=use_pooler, dropout_rate=0.1)
    tensors = weights.state_dict(config, "plug", rows=128)
    described = {
        "model_type": "plug",
        "num_attention_heads": 4,
        "vocab_size": 90,
        "pre_ln": False,
        "use_pooler": use_pooler,
    }
    first = bring_in(write(tmp_path / "in", tensors, config=described), tmp_path / "out")
    assert (first.config.norm_placement, first.config.use_pooler) == ("post", use_pooler)
    export_hf(tmp_path / "out", tmp_path / "back")
    weights.same(load_file(tmp_path / "back" / "model.safetensors"), tensors)
    assert bring_in(tmp_path / "back", tmp_path / "again").config == first.config


def rename(tensors, *, prefix, gamma=False):
    """Rename tensors as other programs do."""
    renamed = {}
    for name, array in tensors.items():
        if gamma:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        inner = name.removeprefix("bert.")
        outer = prefix.removesuffix("bert.")
        renamed[prefix + inner if inner != name else outer + name] = array
    return renamed


@pytest.mark.parametrize(
    ("prefix", "gamma"), [("", False), ("bert.", True), ("module.bert.", False)]
)
def test_other_names_of_the_same(tensors, tmp_path, prefix, gamma):
    others = rename(tensors, prefix=prefix, gamma=gamma)
    outer = prefix.removesuffix("bert.")
    others |= {
        f"{prefix}embeddings.position_ids": np.arange(32)[None],
        f"{outer}cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        f"{outer}cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }
    source = by_layout(open_hf(write(tmp_path / "in", others)))
    assert source.ranks[0].keys() == tensors.keys()
    name = "bert.encoder.layer.1.output.LayerNorm.bias"
    np.testing.assert_array_equal(source.ranks[0][name].read(), tensors[name])


def test_absent_heads_are_asked_for(tensors, tmp_path, capsys):
    bare = {n: a for n, a in tensors.items() if not n.startswith(HEADS)}
    directory = write(tmp_path / "in", bare)
    with pytest.raises(PlugError, match="missing: bert.pooler.dense.bias .*--fresh pooler"):
        bring_in(directory, tmp_path / "out")
    saved = bring_in(
        directory,
        tmp_path / "out",
        fresh=("mlm_head", "sentence_head", "pooler"),
        model=ModelOptions(num_sentence_classes=3),
    )
    assert "freshly initialised, as requested: mlm_head/dense/kernel, " in capsys.readouterr().err
    params = params_of(saved)
    assert params["sentence_head"]["kernel"].shape == (16, 3)
    assert 0.01 < np.std(params["pooler"]["kernel"]) < 0.03
    np.testing.assert_array_equal(params["mlm_head"]["layer_norm"]["scale"], 1.0)


BROKEN = {
    "missing": (
        lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"),
        "missing: bert.enc.*1.output.dense.bias",
    ),
    "unlisted": (
        lambda t: t.update({"classifier.weight": np.zeros(2)}),
        "not in the model: classifier.weight .*--drop",
    ),
    "misshapen": (
        lambda t: t.update({"bert.pooler.dense.bias": np.zeros(3, np.float32)}),
        r"pooler.dense.bias: \(3,\), should be \(16,\)",
    ),
    "integers": (
        lambda t: t.update({"bert.pooler.dense.bias": np.zeros(16, np.int64)}),
        "bert.pooler.dense.bias: int64; only float32",
    ),
    "tied": (
        lambda t: t.update({"cls.predictions.decoder.weight": np.zeros((ROWS, 16), np.float32)}),
        "cls.predictions.decoder.weight differs from bert.embeddings.*--drop 'cls.predictions.dec",
    ),
    "positions": (
        lambda t: t.update({"bert.embeddings.position_ids": np.ones((1, 32), np.int64)}),
        "position_ids holds other values",
    ),
    "gamma": (
        lambda t: t.update({"bert.embeddings.LayerNorm.gamma": np.zeros(16, np.float32)}),
        "LayerNorm.gamma differs from bert.embeddings.LayerNorm.weight",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_every_tensor_is_accounted_for(tensors, tmp_path, broken):
    tensors = dict(tensors)
    change, message = BROKEN[broken]
    change(tensors)
    with pytest.raises(PlugError, match=message):
        bring_in(write(tmp_path / "in", tensors), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_tensor_is_left_out_only_by_name(tensors, tmp_path, capsys):
    extra = tensors | {"classifier.weight": np.zeros((2, 16), np.float32)}
    directory = write(tmp_path / "in", extra)
    bring_in(directory, tmp_path / "out", drop=("classifier.*",))
    assert "left out, as requested: classifier.weight" in capsys.readouterr().err
    with pytest.raises(PlugError, match="--drop typo: .* has no such tensor"):
        bring_in(directory, tmp_path / "other", drop=("typo",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "of type 'roberta'"),
        ({"model_type": None, "architectures": ["RobertaModel"]}, "the architecture RobertaModel"),
        ({"architectures": ["NezhaForMaskedLM"]}, "the architecture NezhaForMaskedLM"),
        ({"hidden_act": "relu"}, 'hidden_act = "relu"; this model computes "gelu" only'),
        ({"hidden_act": "gelu_new"}, 'hidden_act = "gelu_new"'),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = "),
        ({"use_relative_position": True}, "use_relative_position = true"),
        ({"is_decoder": True}, "is_decoder = true"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder = true"),
        ({"add_cross_attention": True}, "add_cross_attention = true"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads = "),
        ({"pad_token_id": 1}, "pad_token_id = 1"),
        ({"pre_ln": True}, "pre_ln = true"),
        ({"pre_ln": 0}, "pre_ln = 0, which is neither true nor false"),
        ({"use_pooler": "no"}, 'use_pooler = "no", which is neither true nor false'),
        ({"quantization_config": {"bits": 4}}, "quantization_config: the weights are quantised"),
        ({"auto_map": {"AutoModel": "x.Bert"}}, "auto_map: the model needs custom code"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = false"),
        ({"num_attention_heads": 3}, "give --num_heads"),
        ({"num_attention_heads": 0}, "give --num_heads"),
        ({"num_attention_heads": "4"}, 'num_attention_heads = "4", which is not a number'),
        ({"layer_norm_eps": 0}, "layer_norm_epsilon must be positive, got 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps = NaN, which is not a number"),
        ({"hidden_dropout_prob": 1.5}, "dropout_rate must be in"),
        ({"vocab_size": 200}, "too few for 200 pieces"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"hidden_size": 32}, "hidden_size = 32, and the weights have 16"),
        ({"intermediate_size": 64}, "intermediate_size = 64, and the weights have 32"),
        ({"max_position_embeddings": 512}, "max_position_embeddings = 512, and .* have 32"),
        ({"type_vocab_size": 3}, "type_vocab_size = 3, and the weights have 2"),
        ({"num_hidden_layers": 3}, "missing: bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "not in the model: bert.encoder.layer.1"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers.* = 1.5"),
    ],
)
def test_a_config_that_does_not_fit(tensors, tmp_path, change, message):
    with pytest.raises(PlugError, match=message):
        bring_in(write(tmp_path / "in", tensors, config=CONFIG | change), tmp_path / "out")


def test_what_a_config_says_is_kept_and_comes_back(tensors, tmp_path, capsys):
    """A value of 0 is kept, unlike none; unused settings are named."""
    said = {
        "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0.25,
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.5,
        "position_embedding_type": None,
        "type_vocab_size": 2,
        "architectures": ["StructBertForMaskedLM"],
        "gradient_checkpointing": False,
        "my_setting": 1,
    }
    saved = bring_in(write(tmp_path / "in", tensors, config=CONFIG | said), tmp_path / "out")
    assert "config.json: nothing here reads my_setting\n" in capsys.readouterr().err
    config = saved.config
    assert (config.dropout_rate, config.attention_dropout_rate) == (0, 0.25)
    assert (config.layer_norm_epsilon, config.init_std) == (1e-6, 0.5)
    export_hf(tmp_path / "out", tmp_path / "back")
    assert bring_in(tmp_path / "back", tmp_path / "again").config == config
    assert "nothing here reads" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "give --num_heads"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon must be positive, got 0"),
        ({"layer_norm_epsilon": float("nan")}, "nan: it must be a small number"),
        ({"num_sentence_classes": 0}, "--num_sentence_classes is for a fresh head"),
    ],
)
def test_an_option_of_nothing_is_not_none(tensors, tmp_path, options, message):
    directory = write(tmp_path / "in", tensors)
    with pytest.raises(PlugError, match=message):
        bring_in(directory, tmp_path / "out", model=ModelOptions(**options))


def test_without_config_heads_of_64_or_as_asked(tensors, tmp_path):
    directory = write(tmp_path / "in", tensors, config=None)
    with pytest.raises(PlugError, match="hidden size is 16.*give --num_heads"):
        bring_in(directory, tmp_path / "out")
    saved = bring_in(directory, tmp_path / "out", model=ModelOptions(num_heads=2))
    assert (saved.config.num_heads, saved.config.head_dim) == (2, 8)


def test_an_interrupted_import_leaves_nothing(tensors, tmp_path, monkeypatch):
    directory = write(tmp_path / "in", tensors)
    leftover = tmp_path / "out.partial"
    leftover.mkdir()
    (leftover / "of a run that was killed").touch()

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "write_arrays", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bring_in(directory, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    leftover.mkdir()
    bring_in(directory, tmp_path / "out")
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    with pytest.raises(PlugError, match="out exists; remove it"):
        bring_in(directory, tmp_path / "out")


def test_restoring_into_any_mesh_and_dtype(tensors, tmp_path):
    saved = bring_in(
        write(tmp_path / "in", tensors, pieces=ROWS), tmp_path / "out", dtype="float16"
    )
    partitioner = Partitioner(data=2, fsdp=2, tensor=2)
    config, params, vocabulary = load_for_inference(tmp_path / "out", partitioner, "bfloat16")
    assert vocabulary.vocab_size == ROWS
    assert config == dataclasses.replace(saved.config, dtype="bfloat16")
    expected = partitioner.param_shardings(abstract_params(PlugModel(config)))
    whole = params_of(saved, "float32")

    def check(array, sharding, value):
        assert array.dtype == weights.BFLOAT16
        assert array.sharding == sharding
        np.testing.assert_array_equal(
            array.astype(np.float32), value.astype(weights.BFLOAT16).astype(np.float32)
        )

    jax.tree.map(check, params, expected, whole)
    _, params, _ = load_for_inference(tmp_path / "out")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_a_converted_encoder_starts_a_model_with_a_decoder(tensors, tmp_path):
    import optax

    saved = bring_in(
        write(tmp_path / "in", tensors, pieces=ROWS), tmp_path / "out", dtype="float16"
    )
    config = dataclasses.replace(saved.config, num_decoder_layers=1)
    layout = state_layout(PlugModel(config), (), optax.sgd(0.1), Partitioner(fsdp=2))
    state = TrainState(0, {"decoder": "fresh"}, ())
    vocabulary = WordPieceVocabulary(tmp_path / "in" / "vocab.txt")
    state, note = initialize_from(tmp_path / "out", state, layout, vocabulary=vocabulary)
    assert state.params.pop("decoder") == "fresh"
    assert note is not None and note.endswith(": decoder of this run is newly initialised")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    jax.tree.map(np.testing.assert_array_equal, state.params, params_of(saved, "float32"))
    wider = dataclasses.replace(config, num_token_types=3)
    layout = state_layout(PlugModel(wider), (), optax.sgd(0.1), Partitioner(fsdp=2))
    with pytest.raises(PlugError, match=r"token_type_embeddings: \(2, 16\) there, \(3, 16\) here"):
        initialize_from(tmp_path / "out", state, layout, vocabulary=vocabulary)


def test_large_arrays_are_stored_in_chunks_and_written_in_slices(tensors, tmp_path, monkeypatch):
    """As released PLUG's are, with sizes that make tiny arrays count as large."""
    directory = write(tmp_path / "in", tensors)
    whole = params_of(bring_in(directory, tmp_path / "whole"))
    monkeypatch.setattr(stored_arrays, "_SMALL", 64)
    monkeypatch.setattr(stored_arrays, "_IN_FLIGHT", 300)
    saved = bring_in(directory, tmp_path / "out")
    kernel = StoredTree(saved.path / "params").open("encoder/layers/mlp/wi/kernel")
    assert kernel.chunk_layout.read_chunk.shape == (1, 1, 4)  # of [2, 16, 32]
    jax.tree.map(np.testing.assert_array_equal, params_of(saved), whole)
    export_hf(tmp_path / "out", tmp_path / "back")
    weights.same(load_file(tmp_path / "back" / "model.safetensors"), tensors)


def store(directory, config):
    """The parameters of a checkpoint written by orbax on a mesh, with stacked layers."""
    partitioner = Partitioner(data=2, fsdp=2, tensor=2)
    boxed = abstract_params(PlugModel(config))
    shardings, rng = partitioner.param_shardings(boxed), np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), nn.unbox(boxed))
    with open_manager(epath.Path(directory) / CHECKPOINTS, create=True) as manager:
        manager.save(
            7,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(jax.device_put(params, shardings)),
                metadata=ocp.args.JsonSave(
                    {"plug_config": config.to_dict(), "vocabulary_fingerprint": None}
                ),
            ),
        )
    return params


def test_a_checkpoint_of_a_run_is_exported(tmp_path):
    params = store(tmp_path, weights.bert_config())
    export_hf(tmp_path, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["bert.embeddings.word_embeddings.weight"].shape == (90, 16)  # without padding
    layers = params["encoder"]["layers"]
    qkv = layers["attention"]["qkv"]["kernel"]  # [L, M, 3, H, K]
    for i in range(2):
        block = f"bert.encoder.layer.{i}"
        for part, name in enumerate(("query", "key", "value")):
            np.testing.assert_array_equal(
                found[f"{block}.attention.self.{name}.weight"], qkv[i, :, part].reshape(16, 16).T
            )
        np.testing.assert_array_equal(
            found[f"{block}.output.dense.weight"], layers["mlp"]["wo"]["kernel"][i].T
        )


def test_without_a_vocabulary(tensors, tmp_path):
    directory = write(tmp_path / "in", tensors)
    bring_in(directory, tmp_path / "out")
    with pytest.raises(PlugError, match="converted without a vocabulary.*--vocabulary vocab.txt"):
        load_for_inference(tmp_path / "out")
    words = [*SPECIAL_PIECES, *map(chr, range(0x4E00, 0x4E00 + 200))]
    (directory / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(PlugError, match="90 rows of embeddings, too few for 205 pieces"):
        bring_in(directory, tmp_path / "other")


def test_null_flags_of_a_config_are_absent(tensors, tmp_path):
    config = CONFIG | {"pre_ln": None, "use_pooler": None}
    saved = bring_in(write(tmp_path / "in", tensors, config=config), tmp_path / "out")
    assert (saved.config.norm_placement, saved.config.use_pooler) == ("post", True)


def test_heads_that_no_layout_has(tmp_path):
    """Neither has a size of heads beside their number and the hidden size."""
    for norms, export in (("post", export_hf), ("pre", export_hf), ("pre", export_plug)):
        run = tmp_path / f"{norms} {export.__name__}"
        store(run, weights.bert_config(head_dim=2, norm_placement=norms))
        with pytest.raises(PlugError, match="4 heads of size 2 and a hidden size of 16"):
            export(run, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_no_ranks_are_not_the_default(tmp_path):
    store(tmp_path / "run", weights.plug_config())
    with pytest.raises(PlugError, match="--ranks must be at least 1, not 0"):
        export_plug(tmp_path / "run", tmp_path / "out", ranks=0)


def test_a_bert_has_no_released_plug_layout(tensors, tmp_path):
    bring_in(write(tmp_path / "in", tensors), tmp_path / "out")
    with pytest.raises(PlugError, match="use export-hf"):
        export_plug(tmp_path / "out", tmp_path / "plug")


def test_the_command_line(tensors, tmp_path, capsys):
    directory = write(tmp_path / "in", tensors)
    command = ["convert", "import-hf", "--input", str(directory), "--output", str(tmp_path / "out")]
    assert main.main(command) == 0
    shown = capsys.readouterr()
    assert "2 + 0 layers, hidden 16, 4 heads of 4, 90 pieces in 128 rows" in shown.out
    assert "without a vocabulary" in shown.err
    assert "MB/s" in shown.err
    assert main.main(command) == 2
    assert "out exists" in capsys.readouterr().err
    back = str(tmp_path / "back")
    assert (
        main.main(["convert", "export-hf", "--checkpoint", str(tmp_path / "out"), "--output", back])
        == 0
    )
    weights.same(load_file(tmp_path / "back" / "model.safetensors"), tensors)
