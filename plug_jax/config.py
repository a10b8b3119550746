"""PlugConfig: every size, flag and dtype of the model, checked before anything is built."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args

from plug_jax.errors import PlugError

NormPlacement = Literal["pre", "post"]
RematPolicy = Literal["none", "dots", "full"]
ComputeDtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlugConfig:
    """The model's shape. `num_decoder_layers=0` is stage 1: the StructBERT encoder alone.

    Raises:
        PlugError: naming each field that makes no sense, and what would.
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
    # Released PLUG trains with one final encoder LayerNorm and infers with the same one twice.
    encoder_final_norm_repeats: int = 1
    dropout_rate: float = 0.1  # on embeddings and on each residual branch
    attention_dropout_rate: float = 0.1
    init_std: float = 0.00707
    dtype: ComputeDtype = "float32"  # of matmuls; parameters, norms, softmax, losses stay float32
    vocab_multiple: int = 128  # the embedding table is padded to this multiple of rows
    scan_layers: bool = True  # one compiled layer in a loop; False: unrolled, the same parameters
    # What the backward pass recomputes: nothing, all but matmul outputs, or everything.
    remat_policy: RematPolicy = "none"

    def __post_init__(self) -> None:
        self.validate()

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: `vocab_size` rounded up to `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def validate(self) -> None:
        """Raise PlugError that lists every field out of range."""
        problems = []
        for name in (
            "vocab_size",
            "hidden_size",
            "num_encoder_layers",
            "num_heads",
            "head_dim",
            "mlp_dim",
            "max_positions",
            "num_token_types",
            "num_sentence_classes",
            "vocab_multiple",
        ):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_decoder_layers < 0:
            problems.append(f"num_decoder_layers must be 0 or more, got {self.num_decoder_layers}")
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
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                problems.append(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
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


_CHOICES: dict[str, tuple[str, ...]] = {
    "norm_placement": get_args(NormPlacement),
    "remat_policy": get_args(RematPolicy),
    "dtype": get_args(ComputeDtype),
}
