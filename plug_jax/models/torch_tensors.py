"""Names of the parameters in PyTorch checkpoints of PLUG and BERT."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our parameters and its PyTorch tensors; axes do not count the layer axis.

    PyTorch's matrix of a linear map is [outputs, inputs], with heads flattened into either; ours
    is [*inputs, *outputs]. Ranks of a model-parallel run each hold an equal part of axis `split`.
    """

    leaf: str  # path in the parameter tree
    names: tuple[str, ...]  # {i} is the layer; several names are parts along the first output axis
    inputs: int | None = None  # leading axes contracted by a linear map; None: same layout as ours
    split: int | None = None  # the axis divided over ranks; None: replicated


def norm(leaf: str, name: str) -> tuple[Entry, ...]:
    """Scale and bias of a LayerNorm."""
    return Entry(f"{leaf}/scale", (f"{name}.weight",)), Entry(f"{leaf}/bias", (f"{name}.bias",))


def linear(leaf: str, *names: str, inputs: int = 1, split: int | None = None) -> tuple[Entry, ...]:
    """Kernel and bias; `split` is an axis of the kernel."""
    bias_split = split - inputs if split is not None and split >= inputs else None
    return (
        Entry(f"{leaf}/kernel", tuple(f"{n}.weight" for n in names), inputs, split),
        Entry(f"{leaf}/bias", tuple(f"{n}.bias" for n in names), 0, bias_split),
    )


_BLOCK, _LAYERS = "decoder.decoder.layer.{i}", "decoder/layers"

# PLUG's decoder; rank r's query_key_value is [q_r; k_r; v_r], which is [3, H / R, K] flattened.
DECODER_ENTRIES = (
    *norm(f"{_LAYERS}/self_attention_norm", f"{_BLOCK}.input_layernorm"),
    *linear(f"{_LAYERS}/self_attention/qkv", f"{_BLOCK}.attention.query_key_value", split=2),
    *linear(f"{_LAYERS}/self_attention/out", f"{_BLOCK}.attention.dense", inputs=2, split=0),
    *norm(f"{_LAYERS}/cross_attention_norm", f"{_BLOCK}.post_attention_layernorm"),
    *linear(f"{_LAYERS}/cross_attention/query", f"{_BLOCK}.cross_attention.query", split=1),
    *linear(f"{_LAYERS}/cross_attention/key_value", f"{_BLOCK}.cross_attention.key_value", split=2),
    *linear(f"{_LAYERS}/cross_attention/out", f"{_BLOCK}.cross_attention.dense", inputs=2, split=0),
    *norm(f"{_LAYERS}/mlp_norm", f"{_BLOCK}.post_cross_attention_layernorm"),
    *linear(f"{_LAYERS}/mlp/wi", f"{_BLOCK}.intermediate", split=1),
    *linear(f"{_LAYERS}/mlp/wo", f"{_BLOCK}.output", split=0),
    *norm("decoder/final_norm", "decoder.decoder.final_layernorm"),
)
