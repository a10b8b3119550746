"""Which parameters are trained: frozen ones have no gradient and no optimizer slots."""

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
    """The trained part of a parameter tree, and its insertion into the whole.

    Frozen arrays are omitted, and stacks only have their trained layers. So gradients, updates and
    optimizer state cover only this part.
    """

    frozen: frozenset[str] = frozenset()  # paths of whole arrays
    layers: Mapping[str, Index] = dataclasses.field(default_factory=dict)  # trained layers, by path

    @classmethod
    def of(cls, freeze: Iterable[str], params: Mapping[str, Any]) -> Trained:
        """All of `params` (arrays or their shapes) except those covered by the patterns `freeze`.

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
        """The tree without completely frozen leaves."""
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
        """`params` with the trained part replaced by `part`."""
        if not self.frozen and not self.layers:
            return part
        whole, moved = by_path(params), flatten_dict(part, sep="/")
        for path, leaf in moved.items():
            layers = self.layers.get(path)
            whole[path] = leaf if layers is None else whole[path].at[layers].set(leaf)
        return unflatten_dict(whole, sep="/")


EVERYTHING = Trained()


def _index(moving: np.ndarray) -> Index:
    """A slice if possible, which needs no gather."""
    layers = np.flatnonzero(moving)
    first, last = int(layers[0]), int(layers[-1])
    return slice(first, last + 1) if last - first + 1 == layers.size else layers
