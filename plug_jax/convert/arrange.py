"""Converts between PyTorch tensors, split over ranks, and one layer of a parameter; on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from plug_jax.convert.name_map import Leaf
from plug_jax.errors import PlugError

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def assemble(leaf: Leaf, parts: Sequence[Sequence[np.ndarray]], *, rows: int) -> np.ndarray:
    """One layer of a parameter, from the tensors of each part and rank.

    `parts[p][r]` is part p (of `leaf.entry.names`) on rank r; unsplit tensors are the same on all
    ranks. Vocabulary `rows` are padded with zeros to the parameter's.

    Worked example, query_key_value of 2 ranks with H = 2, K = 1, M = 1: rank 0 holds
    [[q0], [k0], [v0]], rank 1 [[q1], [k1], [v1]]; the result [M, 3, H, K] is
    [[[[q0], [q1]], [[k0], [k1]], [[v0], [v1]]]].
    """
    shape, split = leaf.stored_shape(rows), leaf.entry.split
    inputs, several = leaf.entry.inputs or 0, len(leaf.entry.names) > 1
    merged = []
    for pieces in parts:
        local = list(shape)
        if split is not None:
            local[split] //= len(pieces)
        outputs = local[inputs + several :]
        pieces = [piece.reshape(*outputs, *local[:inputs]) for piece in pieces]
        if split is None or len(pieces) == 1:
            merged.append(pieces[0])
        else:
            after = split - inputs - several if split >= inputs else len(outputs) + split
            merged.append(np.concatenate(pieces, axis=after))
    whole = np.stack(merged) if several else merged[0]
    if inputs:  # [*outputs, *inputs] -> [*inputs, *outputs]
        flat = whole.reshape(-1, math.prod(shape[:inputs]))
        whole = _transposed(flat).reshape(shape)
    if shape == leaf.layer_shape:
        return whole
    padded = np.zeros(leaf.layer_shape, whole.dtype)
    padded[:rows] = whole
    return padded


def disassemble(leaf: Leaf, array: np.ndarray, *, ranks: int, rows: int) -> list[list[np.ndarray]]:
    """The inverse of `assemble`: the tensor of each part and rank, contiguous."""
    shape, split = leaf.stored_shape(rows), leaf.entry.split
    inputs, several = leaf.entry.inputs or 0, len(leaf.entry.names) > 1
    if shape != leaf.layer_shape:
        array = array[:rows]
    outputs = shape[inputs:]
    if inputs:  # [*inputs, *outputs] -> [*outputs, *inputs]
        flat = array.reshape(-1, math.prod(outputs))
        array = _transposed(flat).reshape(*outputs, *shape[:inputs])
    if split is None:
        pieces = [array] * ranks
    else:
        after = split - inputs if split >= inputs else len(outputs) + split
        pieces = np.split(array, ranks, axis=after)
    torch_shape = leaf.torch_shape(ranks=ranks, rows=rows)
    by_part = [list(piece) if several else [piece] for piece in pieces]  # [rank][part]
    return [
        [np.ascontiguousarray(piece[part]).reshape(torch_shape) for piece in by_part]
        for part in range(len(leaf.entry.names))
    ]


def _transposed(matrix: np.ndarray, block: int = 256) -> np.ndarray:
    """A contiguous transpose. In cache-sized blocks it takes a third of NumPy's time."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for i in range(0, matrix.shape[0], block):
        for j in range(0, matrix.shape[1], block):
            out[j : j + block, i : i + block] = matrix[i : i + block, j : j + block].T
    return out


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """`array` in another dtype. PlugError if a number would become infinite."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        out = array.astype(dtype)
    if dtype.itemsize < array.dtype.itemsize or dtype == np.float16:
        overflown = ~np.isfinite(out) & np.isfinite(array)
        if overflown.any():
            worst = np.abs(array[overflown].astype(np.float64)).max()
            raise PlugError(
                f"{name} holds {worst:g}, more than {dtype.name} can; choose another --dtype"
            )
    return out


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    """The narrowest dtype that holds all exactly: a single one itself, else float32."""
    return dtypes[0] if len(set(dtypes)) == 1 else DTYPES["float32"]


def check_ranks(leaves: Sequence[Leaf], ranks: int, *, rows: int) -> None:
    """PlugError unless the number of ranks divides everything that is split."""
    for leaf in leaves:
        if leaf.entry.split is None:
            continue
        size = leaf.stored_shape(rows)[leaf.entry.split]
        if size % ranks:
            axis = leaf.axes[leaf.stacked :][leaf.entry.split]
            raise PlugError(
                f"{ranks} ranks do not divide {axis} of {size} ({leaf.path}); take a divisor of "
                f"{math.gcd(*_split_sizes(leaves, rows))}"
            )


def _split_sizes(leaves: Sequence[Leaf], rows: int) -> list[int]:
    return [
        leaf.stored_shape(rows)[leaf.entry.split] for leaf in leaves if leaf.entry.split is not None
    ]
