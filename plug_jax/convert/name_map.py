"""Which PyTorch tensors make up which parameter: one table a layout, read in both directions.

Axis letters: M model, F feed-forward, H heads, K head size, V vocabulary, L layers, R ranks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import flax.linen as nn
import jax

from plug_jax.config import PlugConfig
from plug_jax.models.plug import PlugModel
from plug_jax.training.state import abstract_params

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of ours and its tensors; axes are counted without that of the layers.

    PyTorch's matrix of a linear map is [outputs, inputs], with heads flattened into either; ours
    is [*inputs, *outputs]. Ranks of a model-parallel run each hold an equal part of axis `split`.
    """

    leaf: str  # path in the parameter tree
    names: tuple[str, ...]  # {i} is the layer; several are the parts along the first output axis
    inputs: int | None = None  # leading axes that a linear map contracts; None: stored as ours is
    split: int | None = None  # the axis that ranks divide; None: each rank has the whole


@dataclasses.dataclass(frozen=True)
class Layout:
    """A family of checkpoints."""

    name: str
    entries: tuple[Entry, ...]
    tied: Mapping[str, str]  # second names, and the tensor that each must equal


def _norm(leaf: str, name: str) -> tuple[Entry, ...]:
    return Entry(f"{leaf}/scale", (f"{name}.weight",)), Entry(f"{leaf}/bias", (f"{name}.bias",))


def _linear(leaf: str, *names: str, inputs: int = 1, split: int | None = None) -> tuple[Entry, ...]:
    """Kernel and bias; `split` is an axis of the kernel."""
    bias_split = split - inputs if split is not None and split >= inputs else None
    return (
        Entry(f"{leaf}/kernel", tuple(f"{n}.weight" for n in names), inputs, split),
        Entry(f"{leaf}/bias", tuple(f"{n}.bias" for n in names), 0, bias_split),
    )


_BERT_BLOCK, _PLUG_DECODER_BLOCK = "bert.encoder.layer.{i}", "decoder.decoder.layer.{i}"
_WORDS = "bert.embeddings.word_embeddings.weight"

# What all of them share: embeddings, the MLP of the encoder, the heads.
_COMMON = (
    Entry("embeddings/word_embeddings", (_WORDS,), split=0),
    Entry("embeddings/position_embeddings", ("bert.embeddings.position_embeddings.weight",)),
    Entry("embeddings/token_type_embeddings", ("bert.embeddings.token_type_embeddings.weight",)),
    *_norm("embeddings/layer_norm", "bert.embeddings.LayerNorm"),
    *_linear("encoder/layers/mlp/wi", f"{_BERT_BLOCK}.intermediate.dense", split=1),
    *_linear("encoder/layers/mlp/wo", f"{_BERT_BLOCK}.output.dense", split=0),
    *_linear(
        "encoder/layers/attention/out", f"{_BERT_BLOCK}.attention.output.dense", inputs=2, split=0
    ),
    *_linear("mlm_head/dense", "cls.predictions.transform.dense"),
    *_norm("mlm_head/layer_norm", "cls.predictions.transform.LayerNorm"),
    Entry("mlm_head/bias", ("cls.predictions.bias",), split=0),
    *_linear("pooler", "bert.pooler.dense"),
    *_linear("sentence_head", "cls.seq_relationship"),
)

# Released PLUG: rank r's query_key_value is [q_r; k_r; v_r], which is [3, H / R, K] flattened.
PLUG = Layout(
    "plug",
    (
        *_COMMON,
        *_norm("encoder/layers/attention_norm", f"{_BERT_BLOCK}.attention.LayerNorm"),
        *_linear(
            "encoder/layers/attention/qkv",
            f"{_BERT_BLOCK}.attention.self.query_key_value",
            split=2,
        ),
        *_norm("encoder/layers/mlp_norm", f"{_BERT_BLOCK}.LayerNorm"),
        *_norm("encoder/final_norm", "bert.encoder.LayerNorm"),
        *_norm("decoder/layers/self_attention_norm", f"{_PLUG_DECODER_BLOCK}.input_layernorm"),
        *_linear(
            "decoder/layers/self_attention/qkv",
            f"{_PLUG_DECODER_BLOCK}.attention.query_key_value",
            split=2,
        ),
        *_linear(
            "decoder/layers/self_attention/out",
            f"{_PLUG_DECODER_BLOCK}.attention.dense",
            inputs=2,
            split=0,
        ),
        *_norm(
            "decoder/layers/cross_attention_norm", f"{_PLUG_DECODER_BLOCK}.post_attention_layernorm"
        ),
        *_linear(
            "decoder/layers/cross_attention/query",
            f"{_PLUG_DECODER_BLOCK}.cross_attention.query",
            split=1,
        ),
        *_linear(
            "decoder/layers/cross_attention/key_value",
            f"{_PLUG_DECODER_BLOCK}.cross_attention.key_value",
            split=2,
        ),
        *_linear(
            "decoder/layers/cross_attention/out",
            f"{_PLUG_DECODER_BLOCK}.cross_attention.dense",
            inputs=2,
            split=0,
        ),
        *_norm("decoder/layers/mlp_norm", f"{_PLUG_DECODER_BLOCK}.post_cross_attention_layernorm"),
        *_linear("decoder/layers/mlp/wi", f"{_PLUG_DECODER_BLOCK}.intermediate", split=1),
        *_linear("decoder/layers/mlp/wo", f"{_PLUG_DECODER_BLOCK}.output", split=0),
        *_norm("decoder/final_norm", "decoder.decoder.final_layernorm"),
    ),
    tied={"cls.predictions.decoder_weight": _WORDS},
)

# Hugging Face's BertForPreTraining, which StructBERT and RoBERTa-wwm are.
BERT = Layout(
    "bert",
    (
        *_COMMON,
        *_norm("encoder/layers/attention_norm", f"{_BERT_BLOCK}.attention.output.LayerNorm"),
        *_linear(
            "encoder/layers/attention/qkv",
            *(f"{_BERT_BLOCK}.attention.self.{part}" for part in ("query", "key", "value")),
        ),
        *_norm("encoder/layers/mlp_norm", f"{_BERT_BLOCK}.output.LayerNorm"),
    ),
    tied={
        "cls.predictions.decoder.weight": _WORDS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)

LAYOUTS = {layout.name: layout for layout in (PLUG, BERT)}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter of a model of a certain size, and the tensors that it is made of."""

    entry: Entry
    shape: Shape  # as in the parameter tree: [L, ...] where there are layers
    axes: tuple[str | None, ...]  # logical axes of `shape`
    used: bool = True  # False: the layout has it, the model does not: kept beside its parameters

    @property
    def path(self) -> str:
        """Where it is in the parameter tree, joined by slashes."""
        return self.entry.leaf

    @property
    def layers(self) -> Iterator[int]:
        """The indices of its layers; just 0 where it has none."""
        return iter(range(self.shape[0] if self.stacked else 1))

    @property
    def stacked(self) -> bool:
        """Whether its first axis is that of the layers."""
        return self.axes[0] == "layers"

    @property
    def layer_shape(self) -> Shape:
        """The shape of one layer, or of all of it."""
        return self.shape[self.stacked :]

    def names(self, layer: int) -> tuple[str, ...]:
        """The PyTorch names of a layer's parts."""
        return tuple(name.format(i=layer) for name in self.entry.names)

    def stored_shape(self, rows: int) -> Shape:
        """`layer_shape` with as many `rows` of the vocabulary as the checkpoint has."""
        axes = self.axes[self.stacked :]
        return tuple(
            rows if axis == "vocab" else size
            for axis, size in zip(axes, self.layer_shape, strict=True)
        )

    def torch_shape(self, *, ranks: int, rows: int) -> Shape:
        """The shape of one rank's tensor (of each part, where there are several)."""
        local, inputs = list(self.stored_shape(rows)), self.entry.inputs
        if self.entry.split is not None:
            local[self.entry.split] //= ranks
        if inputs is None:
            return tuple(local)
        outputs = math.prod(local[inputs + (len(self.entry.names) > 1) :])
        return (outputs, math.prod(local[:inputs])) if inputs else (outputs,)


def leaves_of(config: PlugConfig, layout: Layout) -> list[Leaf]:
    """The parameters of a model in the order of the layout's table, every one of them.

    The pooler, which PLUG has and does not use, comes too, as not `used`.
    """
    boxed = abstract_params(PlugModel(config))
    params = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.value.shape, leaf.names)
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
        )
    }
    hidden = config.hidden_size
    unused = {
        "pooler/kernel": ((hidden, hidden), ("embed", "mlp")),
        "pooler/bias": ((hidden,), ("mlp",)),
    }
    leaves = []
    for entry in layout.entries:
        if entry.leaf in params:
            leaves.append(Leaf(entry, *params.pop(entry.leaf)))
        elif entry.leaf in unused:
            leaves.append(Leaf(entry, *unused[entry.leaf], used=False))
    assert not params, f"the layout {layout.name} lacks {sorted(params)}"
    return leaves
