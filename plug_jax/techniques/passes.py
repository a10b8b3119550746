"""Several forward passes over one batch, and the divergence of their predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from plug_jax import losses
from plug_jax.errors import PlugError
from plug_jax.metrics import Mean
from plug_jax.models.plug import PlugModel
from plug_jax.objectives import composition
from plug_jax.objectives.composition import Objectives
from plug_jax.objectives.forward import Batch, Forward

Distributions = dict[
    str, tuple[jax.Array, jax.Array]
]  # by objective: logits [...,C], weights [...]


@dataclasses.dataclass(frozen=True)
class Passes:
    """Forward passes of the model over a batch or a slice of one."""

    objectives: Objectives
    model: PlugModel
    params: Any
    batch: Batch  # prepared
    weights: Mapping[str, jax.Array]  # each objective's weight in the whole batch
    chunk: int

    def forward(self, rng: jax.Array, perturbation: jax.Array | None = None) -> Forward:
        """A training pass; see `Forward`."""
        return composition.training_forward(
            self.objectives,
            self.model,
            self.params,
            self.batch,
            rng,
            chunk=self.chunk,
            perturbation=perturbation,
        )

    def loss(self, forward: Forward) -> tuple[jax.Array, dict[str, Mean]]:
        """The objectives' loss, a float32 scalar, and metrics."""
        metrics = composition.metrics_of(self.objectives, forward)
        return composition.loss_of(self.objectives, metrics, self.weights), metrics

    def distributions(self, technique: str, forward: Forward) -> Distributions:
        """Each objective's predicted distribution.

        Raises:
            PlugError: one predicts no distribution, as `technique` requires.
        """
        found = {}
        for one in self.objectives:
            distribution = one.distributions(forward)
            if distribution is None:
                raise PlugError(
                    f"{technique} compares the distributions that objectives predict, and "
                    f"{type(one).__name__} predicts none: leave out one of the two"
                )
            found[one.name] = distribution
        return found

    def divergence(self, first: Distributions, second: Distributions) -> tuple[jax.Array, Mean]:
        """The mean KL(p, q) + KL(q, p) per prediction, summed over objectives like their losses.

        Also returned as a metric.
        """
        total, metric = jnp.zeros(()), Mean(jnp.zeros(()), jnp.zeros(()))
        for one in self.objectives:
            (logits, weights), (others, _) = first[one.name], second[one.name]
            kl, count = losses.weighted(symmetric_kl(logits, others), weights)
            total += one.weight * kl / composition.or_one(self.weights[one.name])
            metric = Mean(metric.total + kl, metric.weight + count)
        return total, metric


def symmetric_kl(logits: jax.Array, others: jax.Array) -> jax.Array:
    """KL(p, q) + KL(q, p) in nats of softmax distributions: float [...,C] each -> float32 [...].

    A class excluded by both (-inf) counts 0.
    """
    log_p, log_q = (jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in (logits, others))
    possible = jnp.isfinite(log_p) & jnp.isfinite(log_q)
    difference = jnp.where(possible, log_p - log_q, 0.0)
    return jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * difference, axis=-1)
