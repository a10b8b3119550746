"""Floating-point operations of a training step: those that the model needs, and those executed.

Axis letters: B rows, E and D encoder and decoder length, P predictions a row, M model, H heads,
K head size, F feed-forward, V vocabulary, C sentence classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax.extend.core import JaxprEqn, jaxprs_in_params

from plug_jax.config import PlugConfig
from plug_jax.training.objectives import num_predictions
from plug_jax.training.step import StepConfig


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """FLOPs of one forward pass over a batch, by part."""

    encoder: int
    decoder: int
    attention: int  # scores and weighted values, of both sides
    mlm_head: int
    sentence_head: int
    decoder_logits: int

    @property
    def forward(self) -> int:
        """The sum."""
        return sum(dataclasses.astuple(self))

    @property
    def train_step(self) -> int:
        """Three forward passes: the backward pass differentiates by weights and by inputs."""
        return 3 * self.forward


def model_flops(
    config: PlugConfig, step: StepConfig, lengths: Mapping[str, int], batch_size: int
) -> ModelFlops:
    """What the objectives need, whatever the implementation does: the numerator of MFU.

    Every matmul parameter costs 2 FLOPs a token that goes through it, every pair of tokens that
    attend 4 H K (scores, weighted values). A causal pair counts once, so half a square. The MLM
    head counts at the predicted positions, with the vocabulary before padding. Whole rows count,
    padding and other segments included. Embedding lookups, norms and softmax are left out, and so
    is whatever remat computes again; the number of micro-batches changes nothing.

    `lengths` is that of a row by side: {"encoder": E} or {"encoder": E, "decoder": D}.
    """
    c = config
    hidden, heads = c.hidden_size, c.num_heads * c.head_dim
    encoder_tokens = batch_size * lengths["encoder"]
    decoder_tokens = batch_size * lengths.get("decoder", 0)
    predictions = batch_size * num_predictions(
        lengths["encoder"], capacity=step.prediction_capacity
    )
    mlp = 2 * hidden * c.mlp_dim
    encoder_layer = 4 * hidden * heads + mlp
    decoder_layer = 4 * hidden * heads + 2 * hidden * heads + mlp  # self, cross (query, out), MLP
    cross_key_value = 2 * hidden * heads
    pairs = encoder_tokens * lengths["encoder"] * c.num_encoder_layers
    if decoder_tokens:
        causal, cross = decoder_tokens * lengths["decoder"] / 2, decoder_tokens * lengths["encoder"]
        pairs += int((causal + cross) * c.num_decoder_layers)
    sentence = hidden * c.num_sentence_classes + (hidden * hidden if c.use_pooler else 0)
    return ModelFlops(
        encoder=2 * encoder_tokens * encoder_layer * c.num_encoder_layers,
        decoder=2
        * c.num_decoder_layers
        * (decoder_tokens * decoder_layer + encoder_tokens * cross_key_value)
        * bool(decoder_tokens),
        attention=4 * heads * pairs,
        mlm_head=2 * predictions * (hidden * hidden + hidden * c.vocab_size),
        sentence_head=0 if decoder_tokens else 2 * encoder_tokens * sentence,
        decoder_logits=2 * decoder_tokens * hidden * c.vocab_size,
    )


def executed_flops(jaxpr: Any) -> int:
    """FLOPs of all matmuls of a traced computation, over the whole mesh.

    A scan counts as often as it runs, remat's second forward pass as well; of a cond's branches
    the costliest. A kernel counts by its own estimate, or else as its matmuls times its grid. What
    is not a matmul is left out: on a TPU it runs beside the matmul unit.
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        lhs, rhs = (_shape(variable.aval) for variable in equation.invars)
        return dot_flops(lhs, rhs, params["dimension_numbers"])
    if name == "pallas_call" and params.get("cost_estimate") is not None:
        return int(params["cost_estimate"].flops)
    inner = [executed_flops(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if not inner:
        return 0
    if name == "cond":
        return max(inner)
    return sum(inner) * _times(name, params)


def _times(name: str, params: Mapping[str, Any]) -> int:
    """How often the inner computations of an equation run."""
    if name == "scan":
        return int(params["length"])
    if name == "shard_map":  # its inside has the shapes of one device
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _shape(aval: Any) -> tuple[int, ...]:
    return tuple(aval.shape)


def dot_flops(
    lhs: tuple[int, ...],
    rhs: tuple[int, ...],
    dimension_numbers: tuple[tuple[Any, Any], tuple[Any, Any]],
) -> int:
    """2 x batch x rows x columns x contracted, of a dot_general of these shapes."""
    (_, rhs_contract), (_, rhs_batch) = dimension_numbers
    columns = (n for axis, n in enumerate(rhs) if axis not in (*rhs_contract, *rhs_batch))
    return 2 * math.prod(lhs) * math.prod(columns)
