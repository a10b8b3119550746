"""config.json of PyTorch weights: settings to use, to require, to ignore."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from plug_jax.config import PlugConfig
from plug_jax.convert.name_map import BERT
from plug_jax.convert.sources import Source, some
from plug_jax.errors import PlugError

# Settings that change the computation, and the values that this model implements.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu", "gelu_python", "gelu (exact, erf)"),
    "position_embedding_type": ("absolute",),
    "use_relative_position": (False,),
    "use_task_id": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    "pad_token_id": (0,),
    "attn_separate": (False,),
    "embedding_layernorm": (True,),
    "decoder_logits_bias": (False,),
    "decoder_head_transform": (False,),
}
_FIXED_FOR_BERT = {"pre_ln": (False,), "is_encoder_decoder": (False,)}
_ABSENT = {  # must be absent
    "quantization_config": "the weights are quantised; fetch unquantised ones",
    "auto_map": "the model needs custom code, which is not supported",
}
# Used by `infer_config`, `open_hf` or `by_layout`, or written by an export.
_READ = {
    *("vocab_size", "original_vocab_size", "padded_vocab_size", "num_hidden_layers"),
    *("num_encoder_layers", "num_decoder_layers", "dec_hidden_layers", "num_attention_heads"),
    *("layer_norm_eps", "layernorm_epsilon", "pre_ln", "use_pooler", "initializer_range"),
    *("encoder_final_norm_repeats", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("tie_word_embeddings", "model_type", "architectures", "is_encoder_decoder"),
}
# Sizes that also follow from the weights, and our names for them.
_SIZES = {
    "hidden_size": "hidden_size",
    "embedding_size": "hidden_size",
    "head_dim": "head_dim",
    "intermediate_size": "mlp_dim",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_token_types",
}
# No effect on the model's outputs: origin, training, execution, heads that BertForPreTraining does
# not have, and settings that transformers' BERT ignores too.
_NO_MATTER = {
    *("_name_or_path", "_commit_hash", "_num_labels", "transformers_version", "torch_dtype"),
    *("dtype", "torchscript", "use_bfloat16", "use_cache", "return_dict", "output_attentions"),
    *("output_hidden_states", "output_past", "gradient_checkpointing", "chunk_size_feed_forward"),
    *("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "unk_token_id"),
    *("classifier_dropout", "classifier_dropout_prob", "finetuning_task", "problem_type"),
    *("id2label", "label2id", "num_labels", "num_choices", "task_specific_params"),
    *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
    *("pooler_size_per_head", "pooler_type", "attn_implementation", "_attn_implementation"),
    *("lr_decay_style", "weight_decay", "clip_grad", "warmup", "fp16", "fp32_layernorm"),
    *("fp32_embedding", "fp32_tokentypes", "name", "language", "license", "tags"),
    *("adv_grad_factor", "adv_bound", "sigma"),
}


def check_settings(source: Source) -> None:
    """PlugError if config.json describes a computation that differs from ours.

    Settings that are not read are named on standard error.
    """
    fixed = _FIXED | (_FIXED_FOR_BERT if source.layout is BERT else {})
    described = {name: value for name, value in source.config.items() if value is not None}
    for name, values in fixed.items():
        if name in described and described[name] not in values:
            raise PlugError(
                f"config.json of {source.path} has {name} = {json.dumps(described[name])}; this "
                f"model computes {json.dumps(values[0])} only"
            )
    for name, why in _ABSENT.items():
        if name in described:
            raise PlugError(f"config.json of {source.path} has {name}: {why}")
    known = {*fixed, *_READ, *_NO_MATTER, *_SIZES}
    if unknown := sorted(described.keys() - known):
        print(f"config.json: nothing here reads {some(unknown)}", file=sys.stderr)


def check_sizes(source: Source, config: PlugConfig) -> None:
    """PlugError if config.json and the weights disagree."""
    for name, field in _SIZES.items():
        said, size = number(source, name), getattr(config, field)
        if said is not None and said != size:
            raise PlugError(
                f"config.json of {source.path} has {name} = {said}, and the weights have {size}: "
                "they do not belong to one model"
            )


def number(source: Source, *names: str) -> int | float | None:
    """The first of these settings in config.json. PlugError if it is not a number."""
    for name in names:
        value = source.config.get(name)
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise PlugError(
                f"config.json of {source.path} has {name} = {json.dumps(value)}, which is not a "
                "number"
            )
        return value
    return None


def whole(source: Source, *names: str) -> int | None:
    """Like `number`, for sizes. PlugError also unless it is an integer of at least 0."""
    value = number(source, *names)
    if value is not None and (value < 0 or value != int(value)):
        raise PlugError(f"config.json of {source.path} has {some(names)} = {value}")
    return None if value is None else int(value)


def flag(source: Source, name: str) -> bool | None:
    """A switch in config.json; None: it is absent or null. PlugError unless true or false."""
    value = source.config.get(name)
    if value is not None and not isinstance(value, bool):
        raise PlugError(
            f"config.json of {source.path} has {name} = {json.dumps(value)}, which is neither true "
            "nor false"
        )
    return value
