"""Muon for the matrices of the layers and of the masked-LM head, Adam for everything else.

Muon (Jordan et al. 2024) updates a matrix by its orthogonalised momentum, with all singular values
about one. The update is then scaled to the root mean square of Adam's, 0.2 (Liu et al., arXiv
2502.16982), so that one learning rate and one weight decay serve both.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from plug_jax.parameter_paths import in_stack

_ADAMS_RMS = 0.2
# Input and output axes of a kernel, without the layer axis. Other axes index separate matrices:
# queries, keys and values are three, with all heads in one.
_DIMENSIONS = {
    "qkv": MuonDimensionNumbers((0,), (2, 3)),  # [M,3,H,K]
    "key_value": MuonDimensionNumbers((0,), (2, 3)),  # [M,2,H,K]
    "query": MuonDimensionNumbers((0,), (1, 2)),  # [M,H,K]
    "out": MuonDimensionNumbers((0, 1), (2,)),  # [H,K,M]
    "wi": MuonDimensionNumbers((0,), (1,)),  # [M,F]
    "wo": MuonDimensionNumbers((0,), (1,)),  # [F,M]
    "dense": MuonDimensionNumbers((0,), (1,)),  # [M,M], the masked-LM head's
}


def muon_and(
    adam: optax.GradientTransformation, *, beta: float, moment_dtype: Any = None
) -> optax.GradientTransformation:
    """Muon's updates, without learning rate, for the matrices above; `adam`'s for the rest.

    The rest is embeddings, output layers, other heads, biases, norms and LoRA's matrices.
    """
    muon = optax.chain(
        scale_by_muon(beta=beta, mu_dtype=moment_dtype, weight_dimension_numbers=dimension_numbers),
        optax.stateless(_with_adams_rms),
    )

    def labels(params: Any) -> Any:
        return jax.tree.map(
            lambda dimensions: "adam" if dimensions is None else "muon",
            dimension_numbers(params),
            is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
        )

    return optax.partition({"muon": muon, "adam": adam}, labels)


def _with_adams_rms(updates: Any, params: Any) -> Any:
    """Unit singular values give a root mean square of 1 / sqrt(the longer side)."""
    del params

    def scaled(update: jax.Array, dimensions: MuonDimensionNumbers) -> jax.Array:
        sides = (math.prod(update.shape[axis] for axis in axes) for axes in dimensions)
        return update * (_ADAMS_RMS * math.sqrt(max(sides)))

    return jax.tree.map(scaled, updates, dimension_numbers(updates))


def dimension_numbers(params: Any) -> Any:
    """The matrix axes of each parameter, a tree like `params`; None for Adam."""

    def of(path: Any, _: Any) -> MuonDimensionNumbers | None:
        names = [key.key for key in path]
        if names[-1] != "kernel" or names[0] in ("heads", "lora"):
            return None
        dimensions = _DIMENSIONS.get(names[-2])
        if dimensions is None or not in_stack("/".join(names)):
            return dimensions
        reduction, output = dimensions
        return MuonDimensionNumbers(
            tuple(axis + 1 for axis in reduction), tuple(axis + 1 for axis in output)
        )

    return jax.tree_util.tree_map_with_path(of, params)
