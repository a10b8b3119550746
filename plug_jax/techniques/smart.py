"""SMART's smoothness-inducing regularization (Jiang et al., 2020, arXiv 1911.03437)."""

from __future__ import annotations

import dataclasses
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.metrics import Mean
from plug_jax.models.layers import ACTIVATION_EMBED
from plug_jax.objectives.forward import Forward
from plug_jax.techniques.passes import Passes

_SALT = zlib.crc32(b"smart")


@dataclasses.dataclass(frozen=True)
class Smart:
    """loss + weight * (KL(p, q) + KL(q, p)), with q from adversarially perturbed embeddings.

    x is the encoder's input, [B,E,M]: the sum of the embeddings, after its norm and dropout.

        r <- noise * N(0, 1)
        r <- u / (max |u| + 1e-6), u = r + step_size * gradient of the divergence of x + r from x

    with `steps` repetitions of the second, and the maximum over each token's M (the inf-norm).
    Defaults are those of mt-dnn's SmartPerturbation (namisan/mt-dnn; its command line has a
    step_size of 1e-5). SMART's second part, Bregman proximal point, is not implemented.
    """

    weight: float = 1.0
    noise: float = 1e-5
    step_size: float = 1e-3
    steps: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("weight", "noise", "step_size"):
            if not getattr(self, name) > 0:
                raise PlugError(f"Smart.{name} must be positive, got {getattr(self, name)}")
        if self.steps < 1:
            raise PlugError(f"Smart.steps must be 1 or more, got {self.steps}")

    def loss(self, passes: Passes, clean: Forward, rng: jax.Array) -> tuple[jax.Array, Mean]:
        """The term added to the loss of the `clean` pass, and the divergence as a metric.

        `rng` is the clean pass's; passes over perturbed embeddings have their own dropout.
        """
        noise_rng, rng = jax.random.split(jax.random.fold_in(rng, _SALT))
        predicted = passes.distributions("Smart", clean)
        fixed = dataclasses.replace(passes, params=lax.stop_gradient(passes.params))
        target = lax.stop_gradient(predicted)

        def divergence(perturbation: jax.Array) -> jax.Array:
            # A sum over predictions, as in mt-dnn, so that the step does not depend on the batch.
            near = fixed.distributions("Smart", fixed.forward(rng, perturbation))
            return fixed.divergence(target, near)[1].total

        shape = (*passes.batch["encoder_input_tokens"].shape, clean.config.hidden_size)
        perturbation = self.noise * jax.random.normal(noise_rng, shape)
        for _ in range(self.steps):
            perturbation = nn.with_logical_constraint(perturbation, ACTIVATION_EMBED)
            towards = perturbation + self.step_size * jax.grad(divergence)(perturbation)
            perturbation = towards / (jnp.max(jnp.abs(towards), axis=-1, keepdims=True) + 1e-6)
        adversarial = passes.forward(rng, lax.stop_gradient(perturbation))
        kl, metric = passes.divergence(predicted, passes.distributions("Smart", adversarial))
        return self.weight * kl, metric
