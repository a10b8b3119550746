"""Which PyTorch tensors make up which parameter: one table per layout, used in both directions.

Axis letters: M model, F feed-forward, H heads, K head size, V vocabulary, L layers, R ranks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import flax.linen as nn
import jax

from plug_jax.checkpoints.parameters import HEADS, abstract_params
from plug_jax.config import PlugConfig
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.models.torch_tensors import Entry, linear, norm
from plug_jax.objectives.composition import Objectives
from plug_jax.objectives.continuation import Continuation
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.sentence_structural import SentenceStructural

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A family of checkpoints."""

    name: str
    entries: tuple[Entry, ...]
    tied: Mapping[str, str]  # second names, and the tensors that they must equal


_BERT_BLOCK = "bert.encoder.layer.{i}"
_WORDS = "bert.embeddings.word_embeddings.weight"

# Shared by all layouts: embeddings, the encoder's MLP, the heads of stage 1.
_COMMON = (
    Entry("embeddings/word_embeddings", (_WORDS,), split=0),
    Entry("embeddings/position_embeddings", ("bert.embeddings.position_embeddings.weight",)),
    Entry("embeddings/token_type_embeddings", ("bert.embeddings.token_type_embeddings.weight",)),
    *norm("embeddings/layer_norm", "bert.embeddings.LayerNorm"),
    *linear("encoder/layers/mlp/wi", f"{_BERT_BLOCK}.intermediate.dense", split=1),
    *linear("encoder/layers/mlp/wo", f"{_BERT_BLOCK}.output.dense", split=0),
    *linear(
        "encoder/layers/attention/out", f"{_BERT_BLOCK}.attention.output.dense", inputs=2, split=0
    ),
    *MaskedLM.tensors,
    *SentenceStructural.tensors,
)

# Released PLUG: rank r's query_key_value is [q_r; k_r; v_r], which is [3, H / R, K] flattened.
PLUG = Layout(
    "plug",
    (
        *_COMMON,
        *norm("encoder/layers/attention_norm", f"{_BERT_BLOCK}.attention.LayerNorm"),
        *linear(
            "encoder/layers/attention/qkv",
            f"{_BERT_BLOCK}.attention.self.query_key_value",
            split=2,
        ),
        *norm("encoder/layers/mlp_norm", f"{_BERT_BLOCK}.LayerNorm"),
        *norm("encoder/final_norm", "bert.encoder.LayerNorm"),
        *Continuation.tensors,
    ),
    tied={"cls.predictions.decoder_weight": _WORDS},
)

# Hugging Face's BertForPreTraining, also used by StructBERT and RoBERTa-wwm.
BERT = Layout(
    "bert",
    (
        *_COMMON,
        *norm("encoder/layers/attention_norm", f"{_BERT_BLOCK}.attention.output.LayerNorm"),
        *linear(
            "encoder/layers/attention/qkv",
            *(f"{_BERT_BLOCK}.attention.self.{part}" for part in ("query", "key", "value")),
        ),
        *norm("encoder/layers/mlp_norm", f"{_BERT_BLOCK}.output.LayerNorm"),
    ),
    tied={
        "cls.predictions.decoder.weight": _WORDS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)

LAYOUTS = {layout.name: layout for layout in (PLUG, BERT)}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter of a model of a given size, and the tensors that make it up."""

    entry: Entry
    shape: Shape  # as in the parameter tree: [L, ...] if stacked over layers
    axes: tuple[str | None, ...]  # logical axes of `shape`
    used: bool = True  # False: only the layout has it; kept next to the model's parameters

    @property
    def path(self) -> str:
        """Its path in the parameter tree, joined by slashes."""
        return self.entry.leaf

    @property
    def layers(self) -> Iterator[int]:
        """The indices of its layers; only 0 if not stacked."""
        return iter(range(self.shape[0] if self.stacked else 1))

    @property
    def stacked(self) -> bool:
        """Whether its first axis is the layers'."""
        return self.axes[0] == "layers"

    @property
    def layer_shape(self) -> Shape:
        """The shape of one layer, or of the whole if not stacked."""
        return self.shape[self.stacked :]

    def names(self, layer: int) -> tuple[str, ...]:
        """The PyTorch names of a layer's parts."""
        return tuple(name.format(i=layer) for name in self.entry.names)

    def stored_shape(self, rows: int) -> Shape:
        """`layer_shape` with the checkpoint's number of vocabulary `rows`."""
        axes = self.axes[self.stacked :]
        return tuple(
            rows if axis == "vocab" else size
            for axis, size in zip(axes, self.layer_shape, strict=True)
        )

    def torch_shape(self, *, ranks: int, rows: int) -> Shape:
        """The shape of one rank's tensor (of each part, if there are several)."""
        local, inputs = list(self.stored_shape(rows)), self.entry.inputs
        if self.entry.split is not None:
            local[self.entry.split] //= ranks
        if inputs is None:
            return tuple(local)
        outputs = math.prod(local[inputs + (len(self.entry.names) > 1) :])
        return (outputs, math.prod(local[:inputs])) if inputs else (outputs,)


def leaves_of(config: PlugConfig, layout: Layout, objectives: Objectives = ()) -> list[Leaf]:
    """All parameters of a model in the order of the layout's table.

    The heads of `objectives` come last, under the names that these give them.

    PLUG's unused pooler is included with `used` False, unless a head has one.
    """
    boxed = abstract_params(PlugModel(config), objectives)
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
    brought = [entry for one in objectives for entry in one.tensors]
    taken = {name for entry in brought if entry.leaf in params for name in entry.names}
    for entry in dict.fromkeys((*layout.entries, *brought)):
        if entry.leaf in params:
            leaves.append(Leaf(entry, *params.pop(entry.leaf)))
        elif entry.leaf in unused and not taken.intersection(entry.names):
            leaves.append(Leaf(entry, *unused[entry.leaf], used=False))
    if nameless := [path for path in params if path.startswith(f"{HEADS}/")]:
        raise PlugError(
            f"the PyTorch name of {', '.join(nameless)} is not known: its objective must give it "
            "in `tensors`"
        )
    assert not params, f"the layout {layout.name} lacks {sorted(params)}"
    return leaves
