"""The PlugConfig of a PyTorch checkpoint: sizes from its tensors' shapes, the rest by rule."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from plug_jax.config import PlugConfig
from plug_jax.convert.name_map import BERT
from plug_jax.convert.sources import Source
from plug_jax.errors import PlugError

_HEAD_DIM = 64  # of PLUG and of every BERT
_WORDS = "bert.embeddings.word_embeddings.weight"
_MULTIPLE = 128  # of vocabulary rows: the width of a TPU's tile


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What the user says of the model; None: by the rules of `infer_config`."""

    num_heads: int | None = None
    vocab_size: int | None = None
    layer_norm_epsilon: float | None = None
    encoder_final_norm_repeats: int | None = None
    num_sentence_classes: int | None = None


def vocab_rows(source: Source) -> int:
    """Rows of the word embeddings of all ranks together."""
    return _sizes(source, _WORDS)[0] * len(source.ranks)


def infer_config(source: Source, options: ModelOptions, pieces: int | None) -> PlugConfig:
    """The config that fits a checkpoint.

    Sizes come from the tensors, the numbers of layers from config.json where there is one (so that
    missing layers are noticed). Heads: as asked, else config.json, else of size 64. Pieces of the
    vocabulary: as asked, else those of the vocabulary, else config.json, else all rows. The
    model's table has the checkpoint's rows, rounded up to a multiple of 128.

    Args:
        source: the checkpoint.
        options: what was asked for.
        pieces: of the vocabulary, if there is one.

    Raises:
        PlugError: config.json describes another architecture, or sizes do not fit each other.
    """
    _check_architecture(source)
    is_bert, described = source.layout is BERT, source.config
    hidden, heads = _sizes(source, _WORDS)[1], _heads(source, options)
    vocab_size = _vocab_size(source, options, pieces)
    epsilon = described.get("layer_norm_eps") or described.get("layernorm_epsilon")
    is_pre_norm = described.get("pre_ln", not is_bert)
    repeats = described.get("encoder_final_norm_repeats") or (2 if is_pre_norm else 1)
    classes = source.ranks[0].get("cls.seq_relationship.weight")
    encoder_layers = _layers(source, "bert.encoder", "num_hidden_layers", "num_encoder_layers")
    decoder_layers = 0 if is_bert else _layers(source, "decoder.decoder", "num_decoder_layers")
    mlp = _sizes(source, "bert.encoder.layer.0.intermediate.dense.weight")
    return PlugConfig(
        vocab_size=vocab_size,
        vocab_multiple=_vocab_multiple(vocab_size, vocab_rows(source)),
        hidden_size=hidden,
        num_encoder_layers=encoder_layers,
        num_decoder_layers=decoder_layers,
        num_heads=heads,
        head_dim=hidden // heads,
        mlp_dim=mlp[0] * len(source.ranks),
        max_positions=_sizes(source, "bert.embeddings.position_embeddings.weight")[0],
        num_token_types=_sizes(source, "bert.embeddings.token_type_embeddings.weight")[0],
        num_sentence_classes=options.num_sentence_classes or (classes.shape[0] if classes else 3),
        norm_placement="pre" if is_pre_norm else "post",
        use_pooler=described.get("use_pooler", is_bert),
        layer_norm_epsilon=options.layer_norm_epsilon or epsilon or (1e-12 if is_bert else 1e-5),
        encoder_final_norm_repeats=options.encoder_final_norm_repeats or repeats,
        init_std=described.get("initializer_range") or (0.02 if is_bert else 0.00707),
    )


def _heads(source: Source, options: ModelOptions) -> int:
    hidden = _sizes(source, _WORDS)[1]
    said = options.num_heads or source.config.get("num_attention_heads")
    heads = said or (0 if hidden % _HEAD_DIM else hidden // _HEAD_DIM)
    if heads < 1 or hidden % heads:
        raise PlugError(
            f"cannot tell the heads of {source.path}: its hidden size is {hidden}, and neither "
            f"config.json nor the rule of {_HEAD_DIM} numbers a head fits; give --num_heads"
        )
    return heads


def _vocab_size(source: Source, options: ModelOptions, pieces: int | None) -> int:
    rows = vocab_rows(source)
    if options.vocab_size and pieces and options.vocab_size != pieces:
        raise PlugError(
            f"--vocab_size {options.vocab_size}, but the vocabulary has {pieces} pieces"
        )
    size = options.vocab_size or pieces or source.config.get("vocab_size") or rows
    if size > rows:
        raise PlugError(
            f"{source.path} has {rows} rows of embeddings, too few for {size} pieces; give the "
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
    """As many as config.json says under one of the keys, else one more than the highest index."""
    said = [source.config[key] for key in keys if key in source.config]
    number = re.compile(re.escape(prefix) + r"\.layer\.(\d+)\.")
    found = [int(m[1]) for name in source.ranks[0] if (m := number.match(name))]
    return said[0] if said else max(found, default=-1) + 1


def _vocab_multiple(vocab_size: int, rows: int) -> int:
    """The `vocab_multiple` that rounds `vocab_size` up to `rows`, itself a multiple of 128."""
    rows = -(-rows // _MULTIPLE) * _MULTIPLE
    multiple = _MULTIPLE
    while multiple < rows and -(-vocab_size // multiple) * multiple != rows:
        multiple *= 2
    return multiple if -(-vocab_size // multiple) * multiple == rows else rows


def _check_architecture(source: Source) -> None:
    """PlugError when config.json says that the model computes something else than ours."""
    expected: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("gelu", "gelu_python", "gelu (exact, erf)"),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
    }
    if source.layout is BERT:
        expected["pre_ln"] = (False,)
    for key, values in expected.items():
        if key in source.config and source.config[key] not in values:
            raise PlugError(
                f"config.json of {source.path} has {key} = {source.config[key]!r}; this model "
                f"computes {values[0]!r} only"
            )
