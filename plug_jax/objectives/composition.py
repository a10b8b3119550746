"""Composition of several objectives, from their features to the total loss."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax.config import PlugConfig
from plug_jax.data.features import ENCODER_TEXT, EXAMPLE_INDEX, Feature
from plug_jax.data.task_settings import TaskSettings
from plug_jax.errors import PlugError
from plug_jax.metrics import Mean, Metrics, summarize
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.objective import Objective, Progress

if TYPE_CHECKING:
    import seqio

Objectives = tuple[Objective, ...]


def check_objectives(objectives: Sequence[Objective], config: PlugConfig) -> None:
    """PlugError for none, for duplicate names, and for one that the model cannot train."""
    if not objectives:
        raise PlugError("OBJECTIVES is empty: name at least one, as gin_configs/objectives/ does")
    names = [one.name for one in objectives]
    for name in names:
        if names.count(name) > 1:
            kinds = ", ".join(type(one).__name__ for one in objectives if one.name == name)
            raise PlugError(
                f"two of OBJECTIVES are called {name!r}: {kinds}; give each its own name"
            )
    if not config.num_encoder_layers:
        reading = [type(one).__name__ for one in objectives if one.reads_encoder]
        if reading:
            raise PlugError(
                f"{', '.join(reading)} read the states of an encoder, and this model has none "
                "(PlugConfig.num_encoder_layers is 0): use objectives/language_model.gin"
            )
    if problems := [problem for one in objectives if (problem := one.problem(config))]:
        raise PlugError("; ".join(problems))
    texts_a_row(objectives)


def check_rows(objectives: Iterable[Objective], *, pack: bool, predict: bool = False) -> None:
    """PlugError for packed rows if an objective reads, or predicts, one example per row."""
    alone = [
        type(one).__name__
        for one in objectives
        if not one.packs or (predict and EXAMPLE_INDEX in one.features)
    ]
    if pack and alone:
        raise PlugError(
            f"{', '.join(alone)} {'predicts' if predict else 'reads'} one example a row: set "
            f"{'eval/' if predict else ''}pipeline.DatasetConfig.pack to False"
        )


def check_settings(
    objectives: Iterable[Objective], provider: seqio.Task | seqio.Mixture, split: str
) -> None:
    """PlugError if an objective cannot train on examples made with the task's settings."""
    settings = TaskSettings.of(provider, split)
    for one in objectives:
        one.check_settings(settings)


def features_of(objectives: Iterable[Objective]) -> tuple[Feature, ...]:
    """The features of all objectives, each once.

    Raises:
        PlugError: two objectives declare a feature differently.
    """
    features: dict[str, Feature] = {one.name: one for one in ENCODER_TEXT}
    for objective in objectives:
        for one in objective.features:
            if features.setdefault(one.name, one) != one:
                raise PlugError(
                    f"the objectives do not agree on the feature {one.name!r}: "
                    f"{features[one.name]} and {one}"
                )
    return tuple(features.values())


def texts_a_row(objectives: Iterable[Objective]) -> int:
    """Texts per row, in equal parts. PlugError if objectives disagree."""
    numbers = {one.texts_a_row: type(one).__name__ for one in objectives}
    if len(numbers) > 1:
        said = ", ".join(f"{name} {number}" for number, name in numbers.items())
        raise PlugError(f"the objectives do not agree on how many texts a row holds: {said}")
    return next(iter(numbers), 1)


def stage_of(objectives: Iterable[Objective]) -> int | None:
    """The stage of PLUG's training that they make up, if any."""
    return next((one.stage for one in objectives if one.stage is not None), None)


def objectives_for(features: Iterable[str], known: Sequence[Objective]) -> Objectives:
    """The known objectives whose features a task has; of several of one name, the first."""
    given, found = set(features), {}
    for one in known:
        if one.name not in found and given >= {feature.name for feature in one.features}:
            found[one.name] = one
    return tuple(found.values())


# The parameters of the objectives' own heads.


def abstract_heads(objectives: Iterable[Objective], config: PlugConfig) -> dict[str, Any]:
    """Boxed trees of the objectives' own heads by name, as ShapeDtypeStructs."""
    return {
        name: jax.eval_shape(lambda head=head: _init_head(head, config, jax.random.key(0)))
        for name, head in _heads(objectives, config).items()
    }


def init_heads(objectives: Iterable[Objective], config: PlugConfig, rng: jax.Array) -> Any:
    """Initial float32 parameters of their own heads by name; each depends only on its name."""
    return {
        name: nn.unbox(_init_head(head, config, jax.random.fold_in(rng, zlib.crc32(name.encode()))))
        for name, head in _heads(objectives, config).items()
    }


def _heads(objectives: Iterable[Objective], config: PlugConfig) -> dict[str, nn.Module]:
    heads = {one.name: one.head(config) for one in objectives}
    return {name: head for name, head in heads.items() if head is not None}


def _init_head(head: nn.Module, config: PlugConfig, rng: jax.Array) -> Any:
    return head.init(rng, jnp.zeros((1, 1, config.hidden_size), jnp.dtype(config.dtype)))["params"]


# From a batch to the loss.


def prepare(
    objectives: Iterable[Objective], batch: Batch, progress: Progress | None = None
) -> Batch:
    """The whole batch prepared by each objective in order; without `progress`, for evaluation."""
    for one in objectives:
        batch = one.prepare(batch, progress)
    return batch


def objective_weights(objectives: Iterable[Objective], batch: Batch) -> dict[str, jax.Array]:
    """Number of predictions of each in the whole prepared batch, by name: float32 scalars."""
    return {one.name: one.predictions(batch) for one in objectives}


def training_forward(
    objectives: Sequence[Objective],
    model: PlugModel,
    params: Any,
    batch: Batch,
    rng: jax.Array,
    *,
    chunk: int = 0,
    perturbation: jax.Array | None = None,
) -> Forward:
    """A forward pass over a prepared batch, with dropout; `perturbation`: see `Forward`."""
    return Forward(
        model,
        params,
        batch,
        uncorrupted=_uncorrupted(objectives),
        texts_a_row=texts_a_row(objectives),
        rng=rng,
        chunk=chunk,
        perturbation=perturbation,
    )


def scoring_forward(
    objectives: Sequence[Objective], model: PlugModel, params: Any, batch: Batch, *, chunk: int = 0
) -> Forward:
    """A forward pass over an unprepared batch, without dropout."""
    return Forward(
        model,
        params,
        prepare(objectives, batch),
        uncorrupted=_uncorrupted(objectives),
        texts_a_row=texts_a_row(objectives),
        chunk=chunk,
    )


def metrics_of(objectives: Sequence[Objective], forward: Forward) -> dict[str, Mean]:
    """The metrics of all objectives."""
    metrics: dict[str, Mean] = {}
    for objective in objectives:
        metrics |= objective.metrics(forward)
    return metrics


def or_one(weight: jax.Array) -> jax.Array:
    """The divisor: 1 for a batch without predictions, which has no loss."""
    return jnp.where(weight > 0, weight, 1.0)


def loss_of(
    objectives: Iterable[Objective], metrics: Metrics, weights: Mapping[str, jax.Array]
) -> jax.Array:
    """The total loss: the weighted sum of losses, each divided by its weight in the batch."""
    parts = [
        one.weight * (metrics[f"{one.name}_loss"].total / or_one(weights[one.name]))
        for one in objectives
    ]
    return functools.reduce(jnp.add, parts)


def evaluation_metrics(
    objectives: Sequence[Objective],
    model: PlugModel,
    params: Any,
    batch: Batch,
    *,
    chunk: int = 0,
) -> dict[str, Mean]:
    """The metrics of all objectives over an unprepared batch, without dropout."""
    return evaluate(objectives, model, params, batch, chunk=chunk)[0]


def evaluate(
    objectives: Sequence[Objective],
    model: PlugModel,
    params: Any,
    batch: Batch,
    *,
    chunk: int = 0,
) -> tuple[dict[str, Mean], dict[str, jax.Array]]:
    """`evaluation_metrics`, and the outputs for predictions, [B, ...] each.

    If there are any, `example_index`, int32 [B], has the example of each, -1 for none.
    """
    padding = batch_metrics(batch)
    index, segments = batch.get("example_index"), batch["encoder_segment_ids"]
    forward = scoring_forward(objectives, model, params, batch, chunk=chunk)
    outputs = _outputs(objectives, forward)
    if outputs:
        assert index is not None
        outputs["example_index"] = jnp.where(segments[:, 0] > 0, index[:, 0], -1)
    return metrics_of(objectives, forward) | padding, outputs


def predict(
    objectives: Sequence[Objective], model: PlugModel, params: Any, batch: Batch
) -> dict[str, jax.Array]:
    """The outputs for predictions, [B, ...] each, of an unprepared batch."""
    return _outputs(objectives, scoring_forward(objectives, model, params, batch))


def batch_metrics(batch: Batch) -> dict[str, Mean]:
    """`pad_fraction` over all rows and per side, and `tokens`: the count of real tokens."""
    one = jnp.ones((), jnp.float32)
    metrics = {}
    for name, segments in batch.items():
        if name.endswith("_segment_ids"):
            real = jnp.sum(segments > 0).astype(jnp.float32)
            side = name.removesuffix("_segment_ids")
            metrics[f"{side}_pad_fraction"] = Mean(segments.size - real, segments.size * one)
    padding = sum((mean.total for mean in metrics.values()), 0 * one)
    size = sum((mean.weight for mean in metrics.values()), 0 * one)
    return {
        **metrics,
        "pad_fraction": Mean(padding, size),
        "tokens": Mean(size - padding, one),
    }


def summarize_metrics(objectives: Iterable[Objective], metrics: Metrics) -> dict[str, float]:
    """Values by name, including those that objectives derive from them."""
    values = summarize(metrics)
    for one in objectives:
        values |= one.summary(values)
    return values


def _outputs(objectives: Iterable[Objective], forward: Forward) -> dict[str, jax.Array]:
    outputs: dict[str, jax.Array] = {}
    for objective in objectives:
        outputs |= objective.outputs(forward)
    return outputs


def _uncorrupted(objectives: Sequence[Objective]) -> Callable[[Batch], Batch]:
    def restore(batch: Batch) -> Batch:
        for one in reversed(objectives):
            batch = one.uncorrupted(batch)
        return batch

    return restore
