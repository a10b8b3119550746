"""Muon, for the matrices within the layers; Adam for all else.

Muon (Jordan et al. 2024) moves a matrix by its momentum with all singular values made about one.
The update is then scaled to the root mean square that Adam's has, 0.2 (Liu et al., arXiv
2502.16982): so one learning rate, and one weight decay, serve both.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from plug_jax.parameter_paths import in_stack

_ADAMS_RMS = 0.2
# Axes of a kernel without that of the layers, those contracted and those of the output. Those in
# neither are of matrices of their own: queries, keys and values are three, whatever their heads.
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
    """Muon's updates, without learning rate, of matrices within layers; `adam`'s of the rest.

    Embeddings, output layers, biases, norms and LoRA's matrices are the rest.
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
    """Singular values of one are a root mean square of 1 / sqrt(the longer side)."""
    del params

    def scaled(update: jax.Array, dimensions: MuonDimensionNumbers) -> jax.Array:
        sides = (math.prod(update.shape[axis] for axis in axes) for axes in dimensions)
        return update * (_ADAMS_RMS * math.sqrt(max(sides)))

    return jax.tree.map(scaled, updates, dimension_numbers(updates))


def dimension_numbers(params: Any) -> Any:
    """Which axes of each parameter are a matrix's, a tree like `params`; None: it is Adam's."""

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
