"""Which of the parameters a run trains: what is frozen has no gradient and no optimizer's slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from plug_jax.errors import PlugError
from plug_jax.parameter_paths import by_path, covered

Index = slice | np.ndarray  # of layers


@dataclasses.dataclass(frozen=True)
class Trained:
    """The trained part of a parameter tree, and the way back from it to the whole.

    Arrays that are frozen are left out of the part, and of a stack it has those layers that move.
    So the gradient, and all that an optimizer does or keeps, is of the part alone.
    """

    frozen: frozenset[str] = frozenset()  # paths of whole arrays
    layers: Mapping[str, Index] = dataclasses.field(
        default_factory=dict
    )  # those that move, by path

    @classmethod
    def of(cls, freeze: Iterable[str], params: Mapping[str, Any]) -> Trained:
        """All of `params` (arrays or their shapes) but what the patterns `freeze` cover.

        Raises:
            PlugError: a pattern that covers nothing, or nothing is left.
        """
        shapes = by_path(params)
        still: dict[str, np.ndarray] = {}
        for pattern in freeze:
            for path, where in covered("freeze", pattern, shapes).items():
                still[path] = still.get(path, False) | where
        frozen = frozenset(path for path, where in still.items() if where.all())
        if frozen == shapes.keys():
            raise PlugError("freeze: every parameter is frozen, so there is nothing to train")
        return cls(
            frozen, {path: _index(~where) for path, where in still.items() if path not in frozen}
        )

    def select(self, tree: Any) -> Any:
        """The tree without the leaves that are frozen as a whole."""
        if not self.frozen:
            return tree
        kept = {path: leaf for path, leaf in by_path(tree).items() if path not in self.frozen}
        return unflatten_dict(kept, sep="/")

    def take(self, tree: Any) -> Any:
        """The trained part of a tree like the parameters."""
        if not self.layers:
            return self.select(tree)
        leaves = by_path(self.select(tree))
        taken = {
            p: leaf[self.layers[p]] if p in self.layers else leaf for p, leaf in leaves.items()
        }
        return unflatten_dict(taken, sep="/")

    def put(self, params: Any, part: Any) -> Any:
        """`params` with the trained part in its place."""
        if not self.frozen and not self.layers:
            return part
        whole, moved = by_path(params), flatten_dict(part, sep="/")
        for path, leaf in moved.items():
            layers = self.layers.get(path)
            whole[path] = leaf if layers is None else whole[path].at[layers].set(leaf)
        return unflatten_dict(whole, sep="/")


EVERYTHING = Trained()


def _index(moving: np.ndarray) -> Index:
    """A slice where it can be, which costs no gather."""
    layers = np.flatnonzero(moving)
    first, last = int(layers[0]), int(layers[-1])
    return slice(first, last + 1) if last - first + 1 == layers.size else layers
