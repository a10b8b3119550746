"""The PlugConfig of a PyTorch checkpoint: sizes from tensor shapes, the rest by rules."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from plug_jax.config import PlugConfig
from plug_jax.convert.model_settings import check_settings, check_sizes, flag, number, whole
from plug_jax.convert.name_map import BERT
from plug_jax.convert.sources import Source
from plug_jax.errors import PlugError

_HEAD_DIM = 64  # of PLUG and of every BERT
_WORDS = "bert.embeddings.word_embeddings.weight"
_MULTIPLE = 128  # of vocabulary rows: the width of a TPU's tile


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The user's settings of the model; None: by the rules of `infer_config`."""

    num_heads: int | None = None
    vocab_size: int | None = None
    layer_norm_epsilon: float | None = None
    encoder_final_norm_repeats: int | None = None
    num_sentence_classes: int | None = None


def vocab_rows(source: Source) -> int:
    """Rows of the word embeddings of all ranks together."""
    return _sizes(source, _WORDS)[0] * len(source.ranks)


def infer_config(source: Source, options: ModelOptions, pieces: int | None) -> PlugConfig:
    """The config of a checkpoint.

    Sizes come from the tensors; the numbers of layers from config.json if there is one (so that
    missing layers are noticed), as does everything that tensors do not show. Heads: the option,
    else config.json, else of size 64. Vocabulary size: the option, else the vocabulary's, else
    config.json, else all rows. The model's table has the checkpoint's rows, rounded up to a
    multiple of 128.

    Args:
        source: the checkpoint.
        options: the user's settings.
        pieces: size of the vocabulary, if there is one.

    Raises:
        PlugError: config.json describes another architecture or has an invalid number, or sizes
            do not fit each other.
    """
    check_settings(source)
    is_bert = source.layout is BERT
    hidden, heads = _sizes(source, _WORDS)[1], _heads(source, options)
    vocab_size = _vocab_size(source, options, pieces)
    is_pre_norm = _first(flag(source, "pre_ln"), not is_bert)
    epsilon = number(source, "layer_norm_eps", "layernorm_epsilon")
    classes = source.ranks[0].get("cls.seq_relationship.weight")
    mlp = _sizes(source, "bert.encoder.layer.0.intermediate.dense.weight")
    config = PlugConfig(
        vocab_size=vocab_size,
        vocab_multiple=_vocab_multiple(vocab_size, vocab_rows(source)),
        hidden_size=hidden,
        num_encoder_layers=_layers(
            source, "bert.encoder", "num_hidden_layers", "num_encoder_layers"
        ),
        num_decoder_layers=0
        if is_bert
        else _layers(source, "decoder.decoder", "num_decoder_layers", "dec_hidden_layers"),
        num_heads=heads,
        head_dim=hidden // heads,
        mlp_dim=mlp[0] * len(source.ranks),
        max_positions=_sizes(source, "bert.embeddings.position_embeddings.weight")[0],
        num_token_types=_sizes(source, "bert.embeddings.token_type_embeddings.weight")[0],
        num_sentence_classes=_first(options.num_sentence_classes, classes and classes.shape[0], 3),
        norm_placement="pre" if is_pre_norm else "post",
        use_pooler=_first(flag(source, "use_pooler"), is_bert),
        layer_norm_epsilon=_first(options.layer_norm_epsilon, epsilon, 1e-12 if is_bert else 1e-5),
        encoder_final_norm_repeats=_first(
            options.encoder_final_norm_repeats,
            whole(source, "encoder_final_norm_repeats"),
            2 if is_pre_norm else 1,
        ),
        dropout_rate=_first(number(source, "hidden_dropout_prob"), 0.1),
        attention_dropout_rate=_first(number(source, "attention_probs_dropout_prob"), 0.1),
        init_std=_first(number(source, "initializer_range"), 0.02 if is_bert else 0.00707),
    )
    check_sizes(source, config)
    return config


def _first(*values: Any) -> Any:
    """The first value that is not None (0 counts)."""
    return next(value for value in values if value is not None)


def _heads(source: Source, options: ModelOptions) -> int:
    hidden = _sizes(source, _WORDS)[1]
    by_rule = 0 if hidden % _HEAD_DIM else hidden // _HEAD_DIM
    heads: int = _first(options.num_heads, whole(source, "num_attention_heads"), by_rule)
    if heads < 1 or hidden % heads:
        raise PlugError(
            f"cannot tell the heads of {source.path}: its hidden size is {hidden}, and neither "
            f"config.json nor the rule of {_HEAD_DIM} numbers a head fits; give --num_heads"
        )
    return heads


def _vocab_size(source: Source, options: ModelOptions, pieces: int | None) -> int:
    rows = vocab_rows(source)
    if options.vocab_size is not None and pieces and options.vocab_size != pieces:
        raise PlugError(
            f"--vocab_size {options.vocab_size}, but the vocabulary has {pieces} pieces"
        )
    said = whole(source, "original_vocab_size", "vocab_size")
    size: int = _first(options.vocab_size, pieces, said, rows)
    most = size if options.vocab_size is not None else max(size, said or 0)
    if most > rows:
        raise PlugError(
            f"{source.path} has {rows} rows of embeddings, too few for {most} pieces; give the "
            "vocabulary that goes with it (--vocabulary, --vocab_size)"
        )
    return size


def _sizes(source: Source, name: str) -> tuple[int, ...]:
    tensor = source.ranks[0].get(name)
    if tensor is None or len(tensor.shape) != 2:
        what = "lacks it" if tensor is None else f"has it in shape {tensor.shape}"
        raise PlugError(f"every such model has a matrix {name}; {source.path} {what}")
    return tensor.shape


def _layers(source: Source, prefix: str, *keys: str) -> int:
    """The number in config.json under one of the keys, else one more than the highest index."""
    number_of = re.compile(re.escape(prefix) + r"\.layer\.(\d+)\.")
    found = [int(m[1]) for name in source.ranks[0] if (m := number_of.match(name))]
    layers: int = _first(whole(source, *keys), max(found, default=-1) + 1)
    return layers


def _vocab_multiple(vocab_size: int, rows: int) -> int:
    """The `vocab_multiple` that rounds `vocab_size` up to `rows`, itself a multiple of 128."""
    rows = -(-rows // _MULTIPLE) * _MULTIPLE
    multiple = _MULTIPLE
    while multiple < rows and -(-vocab_size // multiple) * multiple != rows:
        multiple *= 2
    return multiple if -(-vocab_size // multiple) * multiple == rows else rows
