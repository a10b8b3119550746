"""import-plug, export-plug and verify against the released layout and its outputs."""

import dataclasses
import json
import pickle
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from plug_jax.benchmarks.convert import largest_tensor, write_synthetic
from plug_jax.checkpoints.checksums import CHECKSUMS
from plug_jax.checkpoints.saved_model import open_checkpoint
from plug_jax.cli import main
from plug_jax.convert.from_torch import ImportOptions, import_weights
from plug_jax.convert.sources import open_hf, open_plug
from plug_jax.convert.tensor_files import read_torch_file
from plug_jax.convert.to_torch import export_hf, export_plug
from plug_jax.errors import PlugError
from tests import golden_weights
from tests.convert import weights

pytestmark = pytest.mark.parity
ROWS = 96  # of 90 pieces


def to_torch(array):
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_numpy(tensor):
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def write(directory, ranks, *, legacy=False, **extras):
    """As DeepSpeed saves it, with RNG states and tied tensors sharing storage."""
    import torch

    directory.mkdir(parents=True)
    for rank, tensors in enumerate(ranks):
        module = {name: to_torch(array) for name, array in tensors.items()}
        module["cls.predictions.decoder_weight"] = module["bert.embeddings.word_embeddings.weight"]
        content = {
            "module": module,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]},
            "csr_tensor_module_names": set(),
            "np_rng_state": np.random.RandomState(0).get_state(),
            "torch_rng_state": torch.get_rng_state(),
            "iteration": 28000,
            "mp_world_size": len(ranks),
        }
        torch.save(
            content | extras,
            directory / f"mp_rank_{rank:02d}_model_states.pt",
            _use_new_zipfile_serialization=not legacy,
        )
    (directory / "config.json").write_text(json.dumps({"num_attention_heads": 4, "vocab_size": 90}))
    return directory


def read(directory):
    """The state dicts of all ranks, loaded by PyTorch."""
    import torch

    paths = sorted(directory.glob("mp_rank_*_model_states.pt"))
    modules = [torch.load(path, weights_only=True)["module"] for path in paths]
    for module in modules:
        words = module["bert.embeddings.word_embeddings.weight"]
        tied = module.pop("cls.predictions.decoder_weight")
        assert tied.untyped_storage().data_ptr() == words.untyped_storage().data_ptr()
    return [{name: to_numpy(tensor) for name, tensor in module.items()} for module in modules]


@pytest.fixture(scope="module")
def tensors():
    whole = weights.state_dict(weights.plug_config(), "plug", rows=ROWS)
    return weights.half_with_some_norms_in_full(whole)


def bring_in(directory, output, **options):
    import_weights(open_plug(directory), output, ImportOptions(**options))
    return open_checkpoint(output)


def params_of(saved, dtype=None):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return saved.params(jax.tree.map(lambda _: device, saved.param_shapes()), dtype)


@pytest.mark.parametrize(
    ("variant", "golden", "options", "status"),
    [
        ("full", "golden.npz", (), 0),
        ("mp2", "golden.npz", (), 0),
        ("mp2_fp16", "golden_fp16weights.npz", (), 0),
        ("full", "golden_train.npz", ("--encoder_final_norm_repeats", "1"), 0),
        ("full", "golden_train.npz", (), 1),
        ("full", "golden_fp16weights.npz", (), 1),
    ],
)
def test_import_and_verify(golden_dir, tmp_path, capsys, variant, golden, options, status):
    """End to end: import a released checkpoint, get the released outputs."""
    plug = golden_dir / "plug_tiny"
    out = str(tmp_path / "out")
    command = ["convert", "import-plug", "--input", str(plug / variant), "--output", out]
    assert main.main([*command, *options]) == 0
    capsys.readouterr()
    command = ["convert", "verify", "--checkpoint", out, "--golden", str(plug / golden), "--json"]
    assert main.main(command) == status
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] == (status == 0)
    assert result["max_absolute_difference"].keys() == {
        "encoder_hidden",
        "mlm_logits",
        "sentence_logits",
        "decoder_logits",
    }
    assert None not in result["max_absolute_difference"].values()


@pytest.mark.parametrize("variant", ["full", "mp2", "mp2_fp16"])
def test_parameters_are_what_an_independent_reader_reads(golden_dir, tmp_path, variant):
    """Including key biases, which no output depends on."""
    plug = golden_dir / "plug_tiny"
    config, expected = golden_weights.load_plug_tiny(plug, variant, final_norm_repeats=2)
    saved = bring_in(plug / variant, tmp_path / "out")
    assert saved.config == dataclasses.replace(config, attention="dot")
    jax.tree.map(np.testing.assert_array_equal, params_of(saved, "float32"), expected)
    export_plug(tmp_path / "out", tmp_path / "back")
    for one, other in zip(read(tmp_path / "back" / "1"), read(plug / variant), strict=True):
        weights.same(one, other)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_mixed_dtypes_come_back_bit_for_bit(tensors, tmp_path, ranks):
    parts = weights.cut(tensors, ranks)
    directory = write(tmp_path / "in" / "28000", parts).parent
    (directory / "latest").write_text("28000\n")
    saved = bring_in(directory, tmp_path / "out")
    assert (saved.config.vocab_size, saved.config.padded_vocab_size) == (90, 128)
    export_plug(tmp_path / "out", tmp_path / "back", tag="28000")
    back = read(tmp_path / "back" / "28000")
    assert len(back) == ranks
    for one, other in zip(back, parts, strict=True):
        weights.same(one, other)
    # Another number of ranks.
    export_plug(tmp_path / "out", tmp_path / "whole", ranks=1)
    (whole,) = read(tmp_path / "whole" / "1")
    weights.same(whole, tensors)


def test_one_dtype_if_asked(tensors, tmp_path):
    directory = write(tmp_path / "in", weights.cut(tensors, 2))
    saved = bring_in(directory, tmp_path / "out", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(saved.param_shapes())} == {weights.BFLOAT16}
    export_plug(tmp_path / "out", tmp_path / "back", dtype="float32")
    assert {array.dtype.name for array in read(tmp_path / "back" / "1")[1].values()} == {"float32"}


def test_a_file_of_an_old_pytorch_is_read_whole(tensors, tmp_path, capsys):
    directory = write(tmp_path / "in", weights.cut(tensors, 2), legacy=True)
    bring_in(directory, tmp_path / "out")
    assert "before 1.6: it is read whole" in capsys.readouterr().err
    export_plug(tmp_path / "out", tmp_path / "back")
    for one, other in zip(read(tmp_path / "back" / "1"), weights.cut(tensors, 2), strict=True):
        weights.same(one, other)


def test_a_transposed_tensor_is_read_by_its_strides(tmp_path):
    import torch

    matrix = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    torch.save({"a": matrix.t(), "b": matrix[1:3, 2:]}, tmp_path / "views.pt")
    found = read_torch_file(tmp_path / "views.pt")
    np.testing.assert_array_equal(found["a"].read(), matrix.t())
    np.testing.assert_array_equal(found["b"].read(), matrix[1:3, 2:])


class Malicious:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused(tensors, tmp_path, capsys, legacy):
    directory = write(tmp_path / "in", [tensors], legacy=legacy, iteration=Malicious())
    command = ["convert", "import-plug", "--input", str(directory), "--output", str(tmp_path / "o")]
    assert main.main(command) == 2
    shown = capsys.readouterr()
    assert "mp_rank_00_model_states.pt is refused: its pickle asks for more" in shown.err
    assert "never be printed" not in shown.out
    assert not list(tmp_path.glob("o*"))


def test_a_bare_pickle_is_refused(tmp_path):
    path = tmp_path / "mp_rank_00_model_states.pt"
    path.write_bytes(pickle.dumps({"module": Malicious()}))
    with pytest.raises(PlugError, match="mp_rank_00_model_states.pt"):
        open_plug(tmp_path)


def test_ranks_that_are_missing_or_differ(tensors, tmp_path, capfd):
    parts = weights.cut(tensors, 4)
    directory = write(tmp_path / "middle", parts)
    (directory / "mp_rank_02_model_states.pt").unlink()
    with pytest.raises(PlugError, match="lacks mp_rank_02_model_states.pt"):
        open_plug(directory)
    (directory / "mp_rank_03_model_states.pt").unlink()
    with pytest.raises(PlugError, match="2 ranks, .* there are 4: .*mp_rank_03_model_states.pt"):
        open_plug(directory)
    parts = weights.cut(tensors, 2)
    name = "bert.encoder.layer.0.attention.output.dense.bias"
    other = parts[1] | {name: parts[1][name] + 1}
    directory = write(tmp_path / "differ", [parts[0], other])
    out = str(tmp_path / "out")
    assert main.main(["convert", "import-plug", "--input", str(directory), "--output", out]) == 2
    error = capfd.readouterr().err
    assert f"error: {name} is not sharded over ranks, yet differs" in error
    assert "Traceback" not in error  # even if it occurs while orbax writes
    fewer = {n: a for n, a in parts[1].items() if n != name}
    with pytest.raises(PlugError, match=f"ranks 0 and 1 of .* differ in {name}"):
        bring_in(write(tmp_path / "fewer", [parts[0], fewer]), tmp_path / "out")
    short = parts[1] | {name: parts[1][name][:3]}
    with pytest.raises(PlugError, match=rf"{name}: \(3,\), should be \(16,\) .*mp_rank_01"):
        bring_in(write(tmp_path / "short", [parts[0], short]), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_which_directory(tensors, tmp_path):
    with pytest.raises(PlugError, match="no checkpoint"):
        open_plug(tmp_path)
    write(tmp_path / "100", [tensors])
    assert open_plug(tmp_path).path == tmp_path / "100"
    write(tmp_path / "200", [tensors])
    with pytest.raises(PlugError, match="several checkpoints: 100, 200"):
        open_plug(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("200")
    assert open_plug(tmp_path).path == tmp_path / "200"


def test_a_model_without_the_unused_pooler_exports_zeros(tensors, tmp_path, capsys):
    """As a model trained here, which has no pooler."""
    bring_in(
        write(tmp_path / "in", [tensors]),
        tmp_path / "out",
        drop=("bert.pooler.*",),
        fresh=("pooler",),
    )
    step = tmp_path / "out" / "checkpoints" / "0"
    shutil.rmtree(step / "unused")
    (step / CHECKSUMS).unlink()
    export_plug(tmp_path / "out", tmp_path / "back")
    assert "pooler/kernel: PLUG has it and does not use it" in capsys.readouterr().err
    (back,) = read(tmp_path / "back" / "1")
    assert not back["bert.pooler.dense.weight"].any()


def test_the_synthetic_checkpoint_of_the_benchmark(tmp_path):
    config = weights.plug_config(dropout_rate=0.1, attention_dropout_rate=0.1, init_std=0.00707)
    size = write_synthetic(tmp_path / "in", config, ranks=2, dtype="float16", seed=0)
    assert size == sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    saved = bring_in(tmp_path / "in", tmp_path / "out")
    assert saved.config == dataclasses.replace(config, attention="dot")
    assert largest_tensor(config, "float16") == 2 * 128 * 16  # the word embeddings


def test_transformers_loads_an_exported_encoder(golden_dir, tmp_path):
    import torch
    from transformers import BertForPreTraining

    source = golden_dir / "structbert_hf"
    import_weights(open_hf(source), tmp_path / "out", ImportOptions())
    export_hf(tmp_path / "out", tmp_path / "back")
    model, report = BertForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values())
    with np.load(source / "golden.npz") as golden, torch.no_grad():
        names = ("input_ids", "token_type_ids", "attention_mask")
        inputs = {name: torch.from_numpy(golden[name]) for name in names}
        outputs = model.eval()(**inputs)
        mask = golden["attention_mask"] == 1
        for found, name in (
            (outputs.prediction_logits, "mlm_logits"),
            (outputs.seq_relationship_logits, "seq_relationship_logits"),
        ):
            expected = golden[name]
            found = found.numpy()
            if expected.ndim == 3:
                found, expected = found[mask], expected[mask]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_pytorch_model_bin(tmp_path):
    import torch

    tensors = weights.state_dict(weights.bert_config(), "bert", rows=90)
    directory = tmp_path / "in"
    directory.mkdir()
    torch.save({n: to_torch(a) for n, a in tensors.items()}, directory / "pytorch_model.bin")
    (directory / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    source = open_hf(directory)
    weights.same({n: t.read() for n, t in source.ranks[0].items()}, tensors)
