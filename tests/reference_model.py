"""PLUG in float64 NumPy, written from the description of the model and not from its JAX code.

Slow and plain on purpose: the real model is held to it. `params` is the model's parameter tree
(layers stacked on axis 0), `config` anything with the fields of `PlugConfig` that shape the model.
Letters: B rows, E encoder length, D decoder length, H heads, K head size, M hidden, V padded
vocabulary, C sentence classes.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erf


def parameter_shapes(config):
    """Nested dicts of shapes of the whole parameter tree."""
    hidden, heads, size, mlp = (
        config.hidden_size,
        config.num_heads,
        config.head_dim,
        config.mlp_dim,
    )

    def norm(*stack):
        return {"scale": (*stack, hidden), "bias": (*stack, hidden)}

    def dense(stack, inputs, outputs):
        return {"kernel": (*stack, *inputs, *outputs), "bias": (*stack, *outputs)}

    def layers(count, attentions):
        stack = (count,)
        tree = {f"{name}_norm": norm(count) for name in [*attentions, "mlp"]}
        for name in attentions:
            tree[name] = {"out": dense(stack, (heads, size), (hidden,))}
            if name == "cross_attention":
                tree[name]["query"] = dense(stack, (hidden,), (heads, size))
                tree[name]["key_value"] = dense(stack, (hidden,), (2, heads, size))
            else:
                tree[name]["qkv"] = dense(stack, (hidden,), (3, heads, size))
        tree["mlp"] = {
            "wi": dense(stack, (hidden,), (mlp,)),
            "wo": dense(stack, (mlp,), (hidden,)),
        }
        return tree

    shapes = {
        "embeddings": {
            "word_embeddings": (config.padded_vocab_size, hidden),
            "position_embeddings": (config.max_positions, hidden),
            "token_type_embeddings": (config.num_token_types, hidden),
            "layer_norm": norm(),
        },
        "encoder": {"layers": layers(config.num_encoder_layers, ["attention"])},
        "mlm_head": {
            "dense": dense((), (hidden,), (hidden,)),
            "layer_norm": norm(),
            "bias": (config.padded_vocab_size,),
        },
        "sentence_head": dense((), (hidden,), (config.num_sentence_classes,)),
    }
    if config.num_decoder_layers:
        attentions = ["self_attention", "cross_attention"]
        shapes["decoder"] = {"layers": layers(config.num_decoder_layers, attentions)}
    if config.norm_placement == "pre":
        for stack in {"encoder", "decoder"} & set(shapes):
            shapes[stack]["final_norm"] = norm()
    if config.use_pooler:
        shapes["pooler"] = dense((), (hidden,), (hidden,))
    return shapes


def random_params(config, seed):
    """Float32 parameters without zero biases or unit scales, which would hide errors."""
    rng = np.random.default_rng(seed)

    def fill(tree, name=""):
        if isinstance(tree, dict):
            return {key: fill(tree[key], key) for key in sorted(tree)}
        centre, spread = {"scale": (1, 0.2), "bias": (0, 0.2), "kernel": (0, 0.15)}.get(
            name, (0, 0.5)
        )
        return rng.normal(centre, spread, tree).astype(np.float32)

    return fill(parameter_shapes(config))


def encode(params, config, tokens, *, positions=None, token_types=None, segment_ids=None):
    """Final hidden states [B, E, M]; segment 0 is padding and attention never leaves a segment."""
    segments = np.ones_like(tokens) if segment_ids is None else segment_ids
    x = _embed(params, config, tokens, positions, token_types)
    allowed = _same_segment(segments, segments)
    stack = params["encoder"]
    for index in range(config.num_encoder_layers):
        layer = _layer(stack["layers"], index)
        x = _block(config, layer["attention_norm"], x, _self_attention, layer["attention"], allowed)
        x = _block(config, layer["mlp_norm"], x, _mlp, layer["mlp"])
    if config.norm_placement == "pre":
        for _ in range(config.encoder_final_norm_repeats):
            x = _layer_norm(stack["final_norm"], config, x)
    return x


def decode(
    params,
    config,
    tokens,
    encoded,
    *,
    positions=None,
    segment_ids=None,
    encoder_segment_ids=None,
):
    """Next-token logits [B, D, V] of the decoder over `encoded` [B, E, M]."""
    segments = np.ones_like(tokens) if segment_ids is None else segment_ids
    encoder_segments = (
        np.ones(encoded.shape[:2], np.int32) if encoder_segment_ids is None else encoder_segment_ids
    )
    x = _embed(params, config, tokens, positions, None)
    length = tokens.shape[1]
    causal = _same_segment(segments, segments) & np.tri(length, dtype=bool)
    cross = _same_segment(segments, encoder_segments)
    stack = params["decoder"]
    for index in range(config.num_decoder_layers):
        layer = _layer(stack["layers"], index)
        x = _block(
            config,
            layer["self_attention_norm"],
            x,
            _self_attention,
            layer["self_attention"],
            causal,
        )
        x = _block(
            config,
            layer["cross_attention_norm"],
            x,
            _cross_attention,
            layer["cross_attention"],
            encoded,
            cross,
        )
        x = _block(config, layer["mlp_norm"], x, _mlp, layer["mlp"])
    if config.norm_placement == "pre":
        x = _layer_norm(stack["final_norm"], config, x)
    return x @ _float64(params["embeddings"]["word_embeddings"]).T


def mlm_logits(params, config, hidden):
    """Masked-token logits [..., V] of encoder states [..., M]."""
    head = params["mlm_head"]
    transformed = _layer_norm(head["layer_norm"], config, _gelu(_dense(head["dense"], hidden)))
    vocabulary = _float64(params["embeddings"]["word_embeddings"])
    return transformed @ vocabulary.T + _float64(head["bias"])


def sentence_logits(params, config, cls_hidden):
    """Sentence-relation logits [..., C] of the states at [CLS] [..., M]."""
    if config.use_pooler:
        cls_hidden = np.tanh(_dense(params["pooler"], cls_hidden))
    return _dense(params["sentence_head"], cls_hidden)


def _embed(params, config, tokens, positions, token_types):
    tables = params["embeddings"]
    positions = np.arange(tokens.shape[1])[None] if positions is None else positions
    token_types = np.zeros_like(tokens) if token_types is None else token_types
    total = (
        _float64(tables["word_embeddings"])[tokens]
        + _float64(tables["position_embeddings"])[positions]
        + _float64(tables["token_type_embeddings"])[token_types]
    )
    return _layer_norm(tables["layer_norm"], config, total)


def _block(config, norm, x, sublayer, *args):
    if config.norm_placement == "pre":
        return x + sublayer(_layer_norm(norm, config, x), *args)
    return _layer_norm(norm, config, x + sublayer(x, *args))


def _self_attention(x, weights, allowed):
    query, key, value = np.moveaxis(_project(weights["qkv"], x), -3, 0)
    return _attend(query, key, value, allowed, weights["out"])


def _cross_attention(x, weights, encoded, allowed):
    key, value = np.moveaxis(_project(weights["key_value"], encoded), -3, 0)
    return _attend(_project(weights["query"], x), key, value, allowed, weights["out"])


def _project(weights, x):
    return np.tensordot(x, weights["kernel"], axes=1) + weights["bias"]


def _attend(query, key, value, allowed, out):
    scores = np.einsum("bqhk,bshk->bhqs", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * allowed[:, None]
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total == 0, 1, total)  # a query without keys gets zeros
    mixed = np.einsum("bhqs,bshk->bqhk", weights, value)
    return np.einsum("bqhk,hkm->bqm", mixed, out["kernel"]) + out["bias"]


def _same_segment(queries, keys):
    return (queries[:, :, None] == keys[:, None, :]) & (keys[:, None, :] > 0)


def _mlp(x, weights):
    return _dense(weights["wo"], _gelu(_dense(weights["wi"], x)))


def _dense(weights, x):
    return x @ _float64(weights["kernel"]) + _float64(weights["bias"])


def _gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def _layer_norm(norm, config, x):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    normal = centred / np.sqrt(variance + config.layer_norm_epsilon)
    return normal * _float64(norm["scale"]) + _float64(norm["bias"])


def _layer(tree, index):
    if isinstance(tree, dict):
        return {key: _layer(value, index) for key, value in tree.items()}
    return _float64(tree[index])


def _float64(array):
    return np.asarray(array, np.float64)
