"""FGM (Miyato et al., 2017, arXiv 1605.07725): adversarial perturbation of word embeddings."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields

# (trained parameters, key) to their gradient and auxiliary outputs.
Gradient = Callable[[Any, jax.Array], tuple[Any, Any]]

_SALT = zlib.crc32(b"fgm")


@dataclasses.dataclass(frozen=True)
class Fgm:
    """The gradient g of the batch, plus that with perturbed word embeddings.

    The table is moved by epsilon * g / ||g||_2 with its own gradient g over the whole table, and
    restored before the update (shell-nlp/nlp-task, and CLUE's contestants since).
    """

    epsilon: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.epsilon > 0:
            raise PlugError(f"Fgm.epsilon must be positive, got {self.epsilon}")

    def gradient(self, plain: Gradient, params: Any, rng: jax.Array) -> tuple[Any, Any]:
        """g(params) + g(params with the table moved), and the former's auxiliary outputs.

        Raises:
            PlugError: the table is not among the trained parameters.
        """
        if "word_embeddings" not in params.get("embeddings", {}):
            raise PlugError(
                "Fgm moves the word embeddings along their gradient, and here they are frozen (by "
                "freeze, or by LoRA): leave out one of the two"
            )
        grads, others = plain(params, rng)
        table = grads["embeddings"]["word_embeddings"]
        norm = jnp.maximum(optax.tree.norm(table), jnp.finfo(jnp.float32).tiny)
        moved = _with_table(
            params, lambda words: words + jax.lax.stop_gradient(self.epsilon * table / norm)
        )
        again, _ = plain(moved, jax.random.fold_in(rng, _SALT))
        return jax.tree.map(jnp.add, grads, again), others


def _with_table(params: Mapping[str, Any], change: Callable[[jax.Array], jax.Array]) -> Any:
    embeddings = params["embeddings"]
    changed = {**embeddings, "word_embeddings": change(embeddings["word_embeddings"])}
    return {**params, "embeddings": changed}
