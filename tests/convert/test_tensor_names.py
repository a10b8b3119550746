"""Several names for one tensor, and options that leave tensors out."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from plug_jax.convert.from_torch import ImportOptions, import_weights
from plug_jax.convert.model_sizes import ModelOptions
from plug_jax.convert.name_map import BERT, PLUG
from plug_jax.convert.sources import Source, open_hf
from plug_jax.convert.tensor_files import Tensor
from plug_jax.convert.tensor_names import by_layout
from plug_jax.errors import PlugError
from tests.convert import weights

WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
BIAS, DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
NORM = "bert.embeddings.LayerNorm"


@pytest.fixture(scope="module")
def tensors():
    return weights.state_dict(weights.bert_config(), "bert", rows=90)


def read(directory, tensors, **options):
    save_file(tensors, directory / "model.safetensors")
    source = by_layout(open_hf(directory), **options)
    return {name: tensor.read() for name, tensor in source.ranks[0].items()}, source.left_out


def renamed(tensors, names):
    return {names.get(name, name): array for name, array in tensors.items()}


@pytest.mark.parametrize(
    "names",
    [
        {BIAS: DECODER_BIAS},
        {WORDS: DECODER},
        {f"{NORM}.weight": f"{NORM}.gamma", f"{NORM}.bias": f"{NORM}.beta"},
    ],
)
def test_a_lone_second_name_is_the_tensor(tensors, tmp_path, names):
    found, _ = read(tmp_path, renamed(tensors, names))
    weights.same(found, tensors)


@pytest.mark.parametrize(
    ("first", "second"),
    [(BIAS, DECODER_BIAS), (WORDS, DECODER), (f"{NORM}.weight", f"{NORM}.gamma")],
)
def test_two_names_that_differ(tensors, tmp_path, first, second):
    """Either can be left out explicitly; neither is chosen silently."""
    other = tensors[first] + 1
    both = tensors | {second: other}
    with pytest.raises(PlugError, match=f"{second} differs from {first} .*--drop '{second}'"):
        read(tmp_path, both)
    found, left_out = read(tmp_path, both, drop=[second])
    weights.same(found, tensors)
    assert left_out == [second]
    found, _ = read(tmp_path, both, drop=[first])
    weights.same(found, tensors | {first: other})
    with pytest.raises(PlugError, match="differs from"):  # of another shape
        read(tmp_path, tensors | {second: tensors[first][:3]})


@pytest.mark.parametrize("narrow", [np.float16, weights.BFLOAT16])
def test_equal_but_for_the_dtype_is_equal(tensors, tmp_path, narrow):
    halves = {BIAS: tensors[BIAS].astype(narrow), DECODER_BIAS: tensors[BIAS]}
    found, _ = read(tmp_path, tensors | halves)
    assert found[BIAS].dtype == narrow  # the first name's
    found, _ = read(tmp_path, tensors | {DECODER_BIAS: halves[BIAS]})
    weights.same(found, tensors)
    off = (tensors[BIAS] * 1.02).astype(narrow)
    with pytest.raises(PlugError, match="differs from"):
        read(tmp_path, tensors | {DECODER_BIAS: off})


def test_what_a_fresh_head_has_is_not_compared(tensors, tmp_path):
    both = tensors | {DECODER: tensors[WORDS] + 1, DECODER_BIAS: tensors[BIAS] + 1}
    found, left_out = read(tmp_path, both, fresh=["mlm_head"])
    assert not [name for name in found if name.startswith("cls.predictions")]
    assert BIAS in left_out
    np.testing.assert_array_equal(found[WORDS], tensors[WORDS])
    with pytest.raises(PlugError, match="differs from"):
        read(tmp_path, both, fresh=["pooler"])


def test_a_pattern_is_of_names_in_the_file_or_of_the_layout(tensors, tmp_path):
    bare = {name.removeprefix("bert."): array for name, array in tensors.items()}
    for pattern in ("pooler.*", "bert.pooler.*"):
        found, left_out = read(tmp_path, bare, drop=[pattern])
        assert left_out == ["pooler.dense.bias", "pooler.dense.weight"]
        assert found.keys() == {n for n in tensors if not n.startswith("bert.pooler")}
    with pytest.raises(PlugError, match="--drop Pooler.*: .* has no such tensor"):
        read(tmp_path, bare, drop=["Pooler.*"])


def test_one_of_two_models_in_a_file(tensors, tmp_path):
    two = {f"{tower}.{name}": a for name, a in tensors.items() for tower in ("query", "passage")}
    with pytest.raises(PlugError, match=r"2 tensors.*passage.bert., query.bert.\); --drop all but"):
        read(tmp_path, two)
    found, _ = read(tmp_path, two, drop=["passage.*"])
    weights.same(found, tensors)


def test_a_buffer_with_other_values(tensors, tmp_path):
    name = "bert.embeddings.position_ids"
    odd = tensors | {name: np.ones((1, 32), np.int64)}
    with pytest.raises(PlugError, match=f"{name} holds other values.*--drop '{name}'"):
        read(tmp_path, odd)
    found, _ = read(tmp_path, odd, drop=[name])
    weights.same(found, tensors)


def test_an_output_layer_that_is_said_to_be_of_its_own(tensors, tmp_path):
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": false}')
    with pytest.raises(PlugError, match=f"tie_word_embeddings = false.* lack {DECODER}"):
        read(tmp_path, tensors)
    same = tensors | {DECODER: tensors[WORDS]}
    weights.same(read(tmp_path, same)[0], tensors)
    weights.same(read(tmp_path, same, drop=[DECODER])[0], tensors)
    read(tmp_path, tensors, fresh=["mlm_head"])


def test_second_names_of_released_plug_by_rank():
    def tensor(value):
        array = np.full((2, 3), value, np.float32)
        return Tensor(array.shape, array.dtype, lambda: array, f"memory:{id(array)}")

    tied = next(iter(PLUG.tied))
    lone = Source("here", PLUG, [{tied: tensor(1)}, {tied: tensor(2)}], {}, ())
    assert [rank[WORDS].read()[0, 0] for rank in by_layout(lone).ranks] == [1, 2]
    differ = Source(
        "here",
        PLUG,
        [{WORDS: tensor(1), tied: tensor(1)}, {WORDS: tensor(1), tied: tensor(2)}],
        {},
        (),
    )
    with pytest.raises(PlugError, match=f"{tied} differs from {WORDS}"):
        by_layout(differ)
    assert by_layout(differ, drop=[tied]).ranks[1][WORDS].read()[0, 0] == 1
    assert list(BERT.tied) == [DECODER, DECODER_BIAS]


def test_what_is_left_out_is_not_read_all_the_same(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    options = ImportOptions(model=ModelOptions(num_heads=4), drop=["bert.pooler.dense.bias"])
    with pytest.raises(PlugError, match="missing: bert.pooler.dense.bias"):
        import_weights(open_hf(tmp_path), tmp_path / "out", options)
