"""PlugConfig: every size, flag and dtype of the model, checked before anything is built."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields

NormPlacement = Literal["pre", "post"]
RematPolicy = Literal["none", "dots", "full", "names", "offload"]
# Activations of a block that may be saved for the backward pass; their memory in plug_27b's
# encoder, in KiB per token and layer in bfloat16 (qkv, context, wi: divided by `tensor`); and the
# share of the block's matmul FLOPs that saving them avoids. The MLP's second matmul, a third of the
# FLOPs, is never recomputed. A decoder block has qkv, context and out of self- and cross-attention.
#   input    16       the block's input: saved anyway, but "offload" can take it off the device
#   qkv      48  25%  queries, keys and values
#   context  16       attention's output by head: spares the weighting of values, or all of splash
#   out      16   8%  its projection to the hidden size
#   wi       64  33%  the MLP's hidden layer before the GELU
# With splash, context takes 32.5 KiB: heads of 64 padded to the TPU's tile of 128, and the
# log-sum-exp. That pays off for long rows, where attention is a larger share of the work.
RematName = Literal["input", "qkv", "context", "out", "wi"]
Attention = Literal["auto", "dot", "splash", "cudnn"]
ComputeDtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlugConfig:
    """The model's shape. `num_decoder_layers=0` is stage 1: the StructBERT encoder alone.

    `num_encoder_layers=0` is a decoder alone, like GPT-3: without cross-attention.

    Raises:
        PlugError: names each invalid field, and valid values.
    """

    vocab_size: int  # pieces of the vocabulary, before padding
    hidden_size: int
    num_encoder_layers: int
    num_decoder_layers: int = 0
    num_heads: int
    head_dim: int
    mlp_dim: int
    max_positions: int  # rows of the learned position table
    num_token_types: int = 3
    num_sentence_classes: int = 3
    norm_placement: NormPlacement = "pre"  # "pre": PLUG; "post": BERT and StructBERT
    use_pooler: bool = False  # tanh layer before the sentence head (BERT, StructBERT)
    layer_norm_epsilon: float = 1e-5
    # Released PLUG trains with one final encoder LayerNorm but applies it twice in inference.
    encoder_final_norm_repeats: int = 1
    dropout_rate: float = 0.1  # on embeddings and on each residual branch
    attention_dropout_rate: float = 0.1
    init_std: float = 0.00707
    dtype: ComputeDtype = "float32"  # of matmuls; parameters, norms, softmax, losses stay float32
    vocab_multiple: int = 128  # the embedding table is padded to this multiple of rows
    scan_layers: bool = True  # one compiled layer in a loop; False: unrolled, the same parameters
    # For training and scoring. "dot" materialises all attention scores, on any device; "splash"
    # (TPU, rows of a multiple of 128 tokens) and "cudnn" (GPU, bfloat16) are kernels that do not,
    # without dropout; "auto" is the device's kernel if it applies, else "dot". Cached decoding
    # always uses "dot".
    attention: Attention = "auto"
    attention_block_size: int = 512  # splash's block size for queries and keys
    # What the backward pass recomputes: nothing; all but matmul outputs ("dots"); everything
    # ("full"); all but `remat_saved_names`, kept on the device ("names") or its host ("offload").
    remat_policy: RematPolicy = "none"
    remat_saved_names: tuple[RematName, ...] = ("qkv", "out")

    def __post_init__(self) -> None:
        check_fields(self)
        self.validate()

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: `vocab_size` rounded up to `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def remat(self) -> str:
        """The remat policy with its saved names: "full", "names=qkv,out"."""
        named = self.remat_policy in ("names", "offload")
        saved = f"={','.join(self.remat_saved_names)}" if named else ""
        return f"{self.remat_policy}{saved}"

    def validate(self) -> None:
        """Raise a PlugError that lists every field out of range."""
        problems = []
        for name in (
            "vocab_size",
            "hidden_size",
            "num_heads",
            "head_dim",
            "mlp_dim",
            "max_positions",
            "num_token_types",
            "num_sentence_classes",
            "vocab_multiple",
            "attention_block_size",
        ):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_encoder_layers", "num_decoder_layers"):
            if getattr(self, name) < 0:
                problems.append(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.num_encoder_layers == self.num_decoder_layers == 0:
            problems.append("num_encoder_layers and num_decoder_layers are 0: a model needs layers")
        if self.encoder_final_norm_repeats not in (1, 2):
            problems.append(
                f"encoder_final_norm_repeats must be 1 or 2, got {self.encoder_final_norm_repeats}"
            )
        if self.norm_placement == "post" and self.encoder_final_norm_repeats != 1:
            problems.append("encoder_final_norm_repeats must be 1 with norm_placement='post'")
        for name in ("dropout_rate", "attention_dropout_rate"):
            if not 0.0 <= getattr(self, name) < 1.0:
                problems.append(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("layer_norm_epsilon", "init_std"):
            if getattr(self, name) <= 0.0:
                problems.append(f"{name} must be positive, got {getattr(self, name)}")
        if self.attention in ("splash", "cudnn") and self.attention_dropout_rate > 0.0:
            problems.append(
                f"attention={self.attention!r} has no dropout; set attention_dropout_rate = 0.0, "
                "or attention = 'dot'"
            )
        if self.attention == "cudnn" and self.dtype == "float32":
            problems.append(
                "attention='cudnn' has no float32; set dtype = 'bfloat16', or attention = 'dot'"
            )
        if self.attention_block_size % 128:
            problems.append(
                f"attention_block_size must be a multiple of 128, got {self.attention_block_size}"
            )
        if problems:
            raise PlugError("PlugConfig: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlugConfig:
        """Inverse of `to_dict`. An unknown or missing field is a PlugError that names it."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                close = difflib.get_close_matches(name, fields, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise PlugError(f"PlugConfig has no field {name!r}{hint}")
        required = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
        missing = [name for name in required if name not in values]
        if missing:
            raise PlugError(f"PlugConfig: missing {', '.join(missing)}")
        return cls(**values)
