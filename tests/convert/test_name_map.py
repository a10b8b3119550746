"""The tables cover every parameter, and tensors end up in the right place."""

import numpy as np
import pytest

from plug_jax.convert.arrange import DTYPES, assemble, cast, check_ranks, disassemble
from plug_jax.convert.name_map import BERT, PLUG, leaves_of
from plug_jax.convert.stored_arrays import chunk_shape
from plug_jax.errors import PlugError
from tests import synthetic
from tests.convert import weights

ROWS = 96


@pytest.mark.parametrize(
    ("layout", "config"),
    [
        (PLUG, weights.plug_config()),
        (PLUG, weights.plug_config(num_decoder_layers=0)),
        (PLUG, weights.bert_config(num_decoder_layers=2)),
        (BERT, weights.bert_config()),
    ],
)
def test_every_parameter_is_in_the_table(layout, config):
    leaves = leaves_of(config, layout)  # asserts that no tensor is unused
    names = [name for leaf in leaves for i in leaf.layers for name in leaf.names(i)]
    assert len(set(names)) == len(names)
    assert [leaf.path for leaf in leaves if not leaf.used] == (
        [] if config.use_pooler else ["pooler/kernel", "pooler/bias"]
    )


def leaf_of(path, layout=PLUG, **sizes):
    leaves = leaves_of(weights.plug_config(**sizes), layout)
    return next(leaf for leaf in leaves if leaf.path == path)


def test_ranks_hold_query_key_and_value_of_their_heads():
    leaf = leaf_of("encoder/layers/attention/qkv/bias", num_heads=2, head_dim=1, hidden_size=2)
    ranks = [np.array([0, 10, 20]), np.array([1, 11, 21])]  # q_r, k_r, v_r
    merged = assemble(leaf, [ranks], rows=ROWS)
    np.testing.assert_array_equal(merged[..., 0], [[0, 1], [10, 11], [20, 21]])  # [3, H]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_cutting_undoes_merging(ranks):
    config = weights.plug_config()
    tensors = weights.state_dict(config, "plug", rows=ROWS)
    parts = weights.cut(tensors, ranks)
    for leaf in leaves_of(config, PLUG):
        (name,) = leaf.names(0)
        pieces = [part[name] for part in parts]
        merged = assemble(leaf, [pieces], rows=ROWS)
        assert merged.shape == leaf.layer_shape
        np.testing.assert_array_equal(merged, assemble(leaf, [[tensors[name]]], rows=ROWS))
        (again,) = disassemble(leaf, merged, ranks=ranks, rows=ROWS)
        for piece, expected in zip(again, pieces, strict=True):
            np.testing.assert_array_equal(piece, expected)


def test_matrices_are_transposed_and_vocabulary_is_padded_with_zeros():
    config = weights.plug_config()
    tensors = weights.state_dict(config, "plug", rows=ROWS)
    kernel = tensors["decoder.decoder.layer.0.intermediate.weight"]
    leaf = leaf_of("decoder/layers/mlp/wi/kernel")
    np.testing.assert_array_equal(assemble(leaf, [[kernel]], rows=ROWS), kernel.T)
    words = tensors["bert.embeddings.word_embeddings.weight"]
    padded = assemble(leaf_of("embeddings/word_embeddings"), [[words]], rows=ROWS)
    assert padded.shape == (128, 16)
    np.testing.assert_array_equal(padded[:ROWS], words)
    assert not padded[ROWS:].any()


def test_ranks_that_do_not_divide():
    leaves = leaves_of(weights.plug_config(), PLUG)
    check_ranks(leaves, 4, rows=ROWS)
    with pytest.raises(PlugError, match="8 ranks do not divide heads of 4 .*a divisor of 4"):
        check_ranks(leaves, 8, rows=ROWS)


def test_a_number_too_large_for_a_dtype_is_an_error():
    array = np.array([1.0, 70000.0, np.inf], np.float32)
    with pytest.raises(PlugError, match="w holds 70000, more than float16"):
        cast(array, DTYPES["float16"], "w")
    assert cast(array[:1], DTYPES["float16"], "w").dtype == np.float16
    assert cast(array, DTYPES["bfloat16"], "w").dtype == weights.BFLOAT16


def test_chunks_of_the_released_model_suit_a_mesh_and_memory():
    """No chunk exceeds 16 MiB, and shards of fsdp 32 x tensor 8 are whole chunks."""
    config = synthetic.plug_27b()
    shards = {"embed": 32, "mlp": 8, "heads": 8, "vocab": 8}
    for leaf in leaves_of(config, PLUG):
        chunks = chunk_shape(leaf.shape, leaf.axes, DTYPES["float16"])
        assert 2 * np.prod(chunks) <= 16 << 20, leaf
        assert not leaf.stacked or chunks[0] == 1
        if 2 * np.prod(leaf.layer_shape) > 2 << 20:
            for size, chunk, axis in zip(leaf.shape, chunks, leaf.axes, strict=True):
                assert (size // shards.get(axis, 1)) % chunk == 0 or axis == "layers", leaf
