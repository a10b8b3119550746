"""Load the golden checkpoints into our parameter tree, accounting for every tensor."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from plug_jax.config import PlugConfig

# How model-parallel ranks split tensors of the released model, by name; others are replicated.
_STACKED = {r"query_key_value\.(weight|bias)$": 3, r"key_value\.(weight|bias)$": 2}
_ROWS = r"(word_embeddings|decoder_weight|predictions\.bias|intermediate\.|\.query\.)"
_COLUMNS = r"(attention\.output\.dense|layer\.\d+\.output(\.dense)?|attention\.dense)\.weight$"


class Tensors:
    """A state dict that must be used up."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self._left = dict(tensors)

    def take(self, name: str) -> np.ndarray:
        return self._left.pop(name).astype(np.float32)

    def finish(self) -> None:
        assert not self._left, f"tensors nobody asked for: {sorted(self._left)}"


def load_plug_tiny(directory: Path, variant: str, *, final_norm_repeats: int):
    """`(PlugConfig, params)` of plug_tiny/<variant>, whose ranks are merged."""
    sizes = json.loads((directory / "config.json").read_text())
    config = PlugConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_encoder_layers=sizes["num_encoder_layers"],
        num_decoder_layers=sizes["num_decoder_layers"],
        num_heads=sizes["num_attention_heads"],
        head_dim=sizes["head_dim"],
        mlp_dim=sizes["intermediate_size"],
        max_positions=sizes["max_position_embeddings"],
        num_token_types=sizes["type_vocab_size"],
        num_sentence_classes=sizes["sentence_labels"],
        norm_placement="pre",
        use_pooler=False,
        layer_norm_epsilon=sizes["layernorm_epsilon"],
        encoder_final_norm_repeats=final_norm_repeats,
    )
    tensors = Tensors(_merged_ranks(directory / variant))
    params = _plug_params(config, tensors)
    tensors.take("bert.pooler.dense.weight")  # the released model never applies its pooler
    tensors.take("bert.pooler.dense.bias")
    tied = tensors.take("cls.predictions.decoder_weight")
    np.testing.assert_array_equal(tied, params["embeddings"]["word_embeddings"])
    tensors.finish()
    return config, params


def load_structbert(directory: Path):
    """`(PlugConfig, params)` of structbert_hf, a Hugging Face `BertForPreTraining`."""
    from safetensors.numpy import load_file

    sizes = json.loads((directory / "config.json").read_text())
    config = PlugConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_encoder_layers=sizes["num_hidden_layers"],
        num_decoder_layers=0,
        num_heads=sizes["num_attention_heads"],
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"],
        mlp_dim=sizes["intermediate_size"],
        max_positions=sizes["max_position_embeddings"],
        num_token_types=sizes["type_vocab_size"],
        num_sentence_classes=2,
        norm_placement="post",
        use_pooler=True,
        layer_norm_epsilon=sizes["layer_norm_eps"],
    )
    tensors = Tensors(load_file(directory / "model.safetensors"))
    params = _shared_params(tensors)
    params["pooler"] = _dense(tensors, "bert.pooler.dense")

    def layer(index):
        prefix = f"bert.encoder.layer.{index}"
        parts = [_heads(config, tensors, f"{prefix}.attention.self.{n}", 1) for n in _QKV]
        return {
            "attention_norm": _norm(tensors, f"{prefix}.attention.output.LayerNorm"),
            "attention": {
                "qkv": {key: np.concatenate([part[key] for part in parts], -3) for key in parts[0]},
                "out": _out(config, tensors, f"{prefix}.attention.output.dense"),
            },
            "mlp_norm": _norm(tensors, f"{prefix}.output.LayerNorm"),
            "mlp": {
                "wi": _dense(tensors, f"{prefix}.intermediate.dense"),
                "wo": _dense(tensors, f"{prefix}.output.dense"),
            },
        }

    params["encoder"] = {"layers": _stack([layer(i) for i in range(config.num_encoder_layers)])}
    tensors.finish()
    return config, params


_QKV = ("query", "key", "value")


def _merged_ranks(directory: Path) -> dict[str, np.ndarray]:
    import torch

    paths = sorted(directory.glob("mp_rank_*_model_states.pt"))
    ranks = [torch.load(path, weights_only=True)["module"] for path in paths]
    assert all(rank.keys() == ranks[0].keys() for rank in ranks)
    return {name: _merge(name, [rank[name].numpy() for rank in ranks]) for name in ranks[0]}


def _merge(name: str, parts: list[np.ndarray]) -> np.ndarray:
    for pattern, count in _STACKED.items():
        if re.search(pattern, name):  # rank r holds [q_r; k_r; v_r]
            split = [part.reshape(count, -1, *part.shape[1:]) for part in parts]
            return np.concatenate(split, axis=1).reshape(-1, *parts[0].shape[1:])
    if re.search(_ROWS, name):
        return np.concatenate(parts, axis=0)
    if re.search(_COLUMNS, name):
        return np.concatenate(parts, axis=1)
    for part in parts[1:]:
        np.testing.assert_array_equal(part, parts[0], err_msg=name)
    return parts[0]


def _plug_params(config, tensors):
    def encoder_layer(index):
        prefix = f"bert.encoder.layer.{index}"
        return {
            "attention_norm": _norm(tensors, f"{prefix}.attention.LayerNorm"),
            "attention": {
                "qkv": _heads(config, tensors, f"{prefix}.attention.self.query_key_value", 3),
                "out": _out(config, tensors, f"{prefix}.attention.output.dense"),
            },
            "mlp_norm": _norm(tensors, f"{prefix}.LayerNorm"),
            "mlp": {
                "wi": _dense(tensors, f"{prefix}.intermediate.dense"),
                "wo": _dense(tensors, f"{prefix}.output.dense"),
            },
        }

    def decoder_layer(index):
        prefix = f"decoder.decoder.layer.{index}"
        query = _heads(config, tensors, f"{prefix}.cross_attention.query", 1)
        return {
            "self_attention_norm": _norm(tensors, f"{prefix}.input_layernorm"),
            "self_attention": {
                "qkv": _heads(config, tensors, f"{prefix}.attention.query_key_value", 3),
                "out": _out(config, tensors, f"{prefix}.attention.dense"),
            },
            "cross_attention_norm": _norm(tensors, f"{prefix}.post_attention_layernorm"),
            "cross_attention": {
                "query": {key: np.squeeze(value, -3) for key, value in query.items()},
                "key_value": _heads(config, tensors, f"{prefix}.cross_attention.key_value", 2),
                "out": _out(config, tensors, f"{prefix}.cross_attention.dense"),
            },
            "mlp_norm": _norm(tensors, f"{prefix}.post_cross_attention_layernorm"),
            "mlp": {
                "wi": _dense(tensors, f"{prefix}.intermediate"),
                "wo": _dense(tensors, f"{prefix}.output"),
            },
        }

    params = _shared_params(tensors)
    params["encoder"] = {
        "layers": _stack([encoder_layer(i) for i in range(config.num_encoder_layers)]),
        "final_norm": _norm(tensors, "bert.encoder.LayerNorm"),
    }
    params["decoder"] = {
        "layers": _stack([decoder_layer(i) for i in range(config.num_decoder_layers)]),
        "final_norm": _norm(tensors, "decoder.decoder.final_layernorm"),
    }
    return params


def _shared_params(tensors):
    return {
        "embeddings": {
            "word_embeddings": tensors.take("bert.embeddings.word_embeddings.weight"),
            "position_embeddings": tensors.take("bert.embeddings.position_embeddings.weight"),
            "token_type_embeddings": tensors.take("bert.embeddings.token_type_embeddings.weight"),
            "layer_norm": _norm(tensors, "bert.embeddings.LayerNorm"),
        },
        "mlm_head": {
            "dense": _dense(tensors, "cls.predictions.transform.dense"),
            "layer_norm": _norm(tensors, "cls.predictions.transform.LayerNorm"),
            "bias": tensors.take("cls.predictions.bias"),
        },
        "sentence_head": _dense(tensors, "cls.seq_relationship"),
    }


def _norm(tensors, name):
    return {"scale": tensors.take(f"{name}.weight"), "bias": tensors.take(f"{name}.bias")}


def _dense(tensors, name):
    return {"kernel": tensors.take(f"{name}.weight").T, "bias": tensors.take(f"{name}.bias")}


def _heads(config, tensors, name, parts):
    shape = (parts, config.num_heads, config.head_dim)
    dense = _dense(tensors, name)
    return {key: value.reshape(*value.shape[:-1], *shape) for key, value in dense.items()}


def _out(config, tensors, name):
    dense = _dense(tensors, name)
    shape = (config.num_heads, config.head_dim, -1)
    return {"kernel": dense["kernel"].reshape(shape), "bias": dense["bias"]}


def _stack(layers):
    if isinstance(layers[0], dict):
        return {key: _stack([layer[key] for layer in layers]) for key in layers[0]}
    return np.stack(layers)
