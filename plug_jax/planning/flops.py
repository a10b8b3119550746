"""Floating-point operations of a training step: those that the model needs, and those executed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax.extend.core import JaxprEqn, jaxprs_in_params

from plug_jax.config import PlugConfig
from plug_jax.models.flops import RowShape, encoder_flops, total
from plug_jax.objectives.composition import Objectives


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """FLOPs of one forward pass over a batch, by part of the model.

    `attention` is scores and weighted values of all stacks; the other parts are matmuls.
    """

    parts: Mapping[str, int]

    @property
    def forward(self) -> int:
        """The sum."""
        return sum(self.parts.values())

    @property
    def train_step(self) -> int:
        """Three forward passes: the backward pass differentiates by weights and by inputs."""
        return 3 * self.forward


def model_flops(
    config: PlugConfig, objectives: Objectives, lengths: Mapping[str, int], batch_size: int
) -> ModelFlops:
    """What the objectives need, whatever the implementation does: the numerator of MFU.

    The encoder, and what each objective says of its part (see `plug_jax.models.flops` for what
    counts). Whatever remat computes again is left out; the number of micro-batches changes nothing.

    `lengths` is that of a row by side: {"encoder": E} or {"encoder": E, "decoder": D}.
    """
    rows = RowShape(batch_size, lengths["encoder"], lengths.get("decoder", 0))
    of_objectives = (one.flops(config, rows) for one in objectives)
    return ModelFlops(total(encoder_flops(config, rows), *of_objectives))


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
