"""Child-Tuning (Xu et al., 2021, arXiv 2109.05687; AliceMind's ChildTuning): partial updates."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.parameter_paths import by_path, in_stack

_SALT = zlib.crc32(b"child_tuning")


@dataclasses.dataclass(frozen=True)
class ChildTuningF:
    """At every step each gradient element is multiplied by an independent Bernoulli(p) / p.

    As in AliceMind's ChildTuningAdamW this happens after clipping and before the moments: weight
    decay and moments still apply where the gradient is 0.
    """

    p: float = 0.3  # the fraction with a gradient

    def __post_init__(self) -> None:
        check_fields(self)
        _check_part(self)

    def transformation(self, seed: int) -> optax.GradientTransformation:
        """For an optimizer whose `update` takes the `step`, an int32 scalar."""

        def update(
            updates: optax.Updates, state: Any, params: Any = None, *, step: jax.Array, **_: Any
        ) -> tuple[optax.Updates, Any]:
            del params
            rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _SALT), step)
            leaves, tree = jax.tree.flatten(updates)
            masked = [
                jnp.where(jax.random.bernoulli(key, self.p, leaf.shape), leaf / self.p, 0.0)
                for leaf, key in zip(leaves, jax.random.split(rng, len(leaves)), strict=True)
            ]
            return jax.tree.unflatten(tree, masked), state

        return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


@dataclasses.dataclass(frozen=True)
class ChildTuningD:
    """Updates only those layer parameters that matter most to the task.

    Before training, one pass over the training data sums the squares of each batch's gradient, with
    each layer's tensors clipped separately to `clip_norm`: the diagonal of the Fisher information.
    From then on only the top p of all elements have a gradient, which is not rescaled. Parameters
    outside layers (embeddings, heads) always have one. The mask is stored with the optimizer state.
    """

    p: float = 0.3

    def __post_init__(self) -> None:
        check_fields(self)
        _check_part(self)

    def transformation(self, seed: int) -> optax.GradientTransformation:
        """Masks by its state, initially nothing: see `with_mask`."""
        del seed

        def init(params: optax.Params) -> ChildState:
            ones = {p: jnp.ones(x.shape, bool) for p, x in of_layers(params).items()}
            if not ones:
                raise PlugError(
                    "ChildTuningD chooses among the parameters of layers, and here none is trained"
                )
            return ChildState(unflatten_dict(ones, sep="/"))

        def update(
            updates: optax.Updates, state: Any, params: Any = None
        ) -> tuple[optax.Updates, Any]:
            del params
            masked = by_path(updates)
            for path, mask in by_path(state.child_mask).items():
                masked[path] = jnp.where(mask, masked[path], 0.0)
            return unflatten_dict(masked, sep="/"), state

        return optax.GradientTransformation(init, update)


class ChildState(NamedTuple):
    """The mask of trained elements."""

    child_mask: Any  # bool, like the parameters of layers


def of_layers(tree: Any) -> dict[str, Any]:
    """The leaves stacked over layers, by path."""
    return {path: leaf for path, leaf in by_path(tree).items() if in_stack(path)}


def with_mask(opt_state: optax.OptState, mask: dict[str, jax.Array]) -> optax.OptState:
    """The optimizer's state with this mask, bool leaves by path."""
    return optax.tree.set(opt_state, child_mask=unflatten_dict(mask, sep="/"))


def _check_part(config: ChildTuningF | ChildTuningD) -> None:
    if not 0 < config.p < 1:
        raise PlugError(f"{type(config).__name__}.p must be in (0, 1), got {config.p}")
