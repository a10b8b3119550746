"""Metrics as weighted sums that add up over micro-batches, steps and hosts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Mean:
    """A weighted mean kept as (sum, weight): float32 scalars."""

    total: jax.Array
    weight: jax.Array

    def value(self) -> jax.Array:
        """total / weight; 0 if the weight is 0."""
        return self.total / jnp.maximum(self.weight, 1.0)


Metrics = Mapping[str, Mean]


def add(metrics: Iterable[Metrics]) -> dict[str, Mean]:
    """The sum of several host-side metric sets, in float64."""
    sums: dict[str, Mean] = {}
    for one in jax.device_get(list(metrics)):
        one = jax.tree.map(np.float64, dict(one))
        for name, mean in one.items():
            sums[name] = jax.tree.map(np.add, sums[name], mean) if name in sums else mean
    return sums


def summarize(metrics: Metrics) -> dict[str, float]:
    """Values by name, without metrics of weight 0 (masked LM in the last phase)."""
    return {k: float(m.total / m.weight) for k, m in metrics.items() if m.weight > 0}
