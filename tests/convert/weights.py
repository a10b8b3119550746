"""Random PyTorch state dicts of a tiny model, split over ranks without plug_jax's code."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np

from plug_jax.config import PlugConfig
from plug_jax.convert.name_map import LAYOUTS, leaves_of
from tests import synthetic

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_COLUMNS = r"(attention\.output\.dense|layer\.\d+\.output(\.dense)?|attention\.dense)\.weight$"
_ROWS = r"(word_embeddings|decoder_weight|predictions\.bias|intermediate\.|\.query\.)"


def plug_config(**changes: object) -> PlugConfig:
    """Heads of size 4; 90 pieces."""
    return synthetic.tiny_config(encoder_final_norm_repeats=2, vocab_multiple=128, **changes)


def bert_config(**changes: object) -> PlugConfig:
    values = {
        "num_decoder_layers": 0,
        "norm_placement": "post",
        "use_pooler": True,
        "num_token_types": 2,
        "num_sentence_classes": 2,
        "layer_norm_epsilon": 1e-12,
        "vocab_multiple": 128,
    }
    return synthetic.tiny_config(**(values | changes))


def state_dict(
    config: PlugConfig, layout: str, *, rows: int, dtype: object = np.float32, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random tensors of one rank in a layout's names, without tied ones."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(0.0, 0.3, leaf.torch_shape(ranks=1, rows=rows)).astype(dtype)
        for leaf in leaves_of(config, LAYOUTS[layout])
        for i in leaf.layers
        for name in leaf.names(i)
    }


def half_with_some_norms_in_full(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float16, except float32 norms in layer 1 and one bfloat16 bias."""
    mixed = {
        name: array.astype(np.float32 if "layer.1" in name and "orm" in name else np.float16)
        for name, array in tensors.items()
    }
    name = "cls.predictions.transform.dense.bias"
    return mixed | {name: tensors[name].astype(BFLOAT16)}


def cut(tensors: dict[str, np.ndarray], ranks: int) -> list[dict[str, np.ndarray]]:
    """The part of each rank of released PLUG."""
    return [
        {name: _part(name, array, rank, ranks) for name, array in tensors.items()}
        for rank in range(ranks)
    ]


def _part(name: str, array: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    blocks = 3 if "query_key_value" in name else 2 if "key_value" in name else 0
    if blocks:
        parts = [np.split(block, ranks)[rank] for block in np.split(array, blocks)]
        return np.concatenate(parts)
    if re.search(_ROWS, name):
        return np.split(array, ranks)[rank]
    if re.search(_COLUMNS, name):
        return np.ascontiguousarray(np.split(array, ranks, axis=1)[rank])
    return array


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Assert the same names, dtypes and bits."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        assert array.shape == other[name].shape, name
        assert array.tobytes() == other[name].tobytes(), name
