"""Child-Tuning D's pass over the training data, to find the most important parameters."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plug_jax.hosts.activity import doing
from plug_jax.metrics import Mean
from plug_jax.objectives import composition
from plug_jax.objectives.composition import features_of
from plug_jax.objectives.forward import Batch
from plug_jax.objectives.objective import Progress
from plug_jax.techniques.child_tuning import of_layers
from plug_jax.techniques.passes import Passes
from plug_jax.training.feed import Feed
from plug_jax.training.program import TrainConfig, TrainProgram
from plug_jax.training.step import gradients

Leaves = Mapping[str, jax.Array]  # of layers, by path

_SALT = zlib.crc32(b"fisher")
_AHEAD = 8  # batches dispatched before the host waits for them: a hang must show


def fisher_of(config: TrainConfig, program: TrainProgram, params: Any) -> Leaves:
    """The sum of each parameter's squared gradient over all training batches.

    float32, for the trained parameters of layers. Every tensor of a layer is first clipped
    separately. AliceMind divides by the number of batches, which does not change the order.
    """
    doing("Child-Tuning D, batch 1")
    once = dataclasses.replace(config.train_data, num_epochs=1, shuffle=False)
    feed = Feed(
        once,
        features_of(config.objectives),
        model=config.model,
        sharding=config.partitioner.batch_sharding,
    )
    layout = program.layout
    shardings = of_layers(layout.gradients)
    shapes = of_layers(jax.eval_shape(layout.trained.take, layout.abstract.params))
    step = jax.jit(_fisher_step(config, program), out_shardings=shardings, donate_argnums=0)
    zeros = jax.jit(
        lambda: {path: jnp.zeros(leaf.shape) for path, leaf in shapes.items()},
        out_shardings=shardings,
    )
    fisher = zeros()
    for number, batch in enumerate(feed):
        if number == 0:
            doing("compiling the Child-Tuning pass", watched=False)
        fisher = step(fisher, params, batch, number)
        doing(f"Child-Tuning D, batch {number + 2}")
        if number % _AHEAD == 0:
            jax.block_until_ready(fisher)
    return jax.block_until_ready(fisher)


def top_mask(values: Leaves, part: float) -> dict[str, jax.Array]:
    """True at the largest `part` of all values >= 0: those from numpy's percentile on.

    The threshold is found by bisection over floats, whose bits have the same order.
    """

    @jax.jit
    def counts(values: Leaves, bits: jax.Array) -> Any:  # by layer, to fit int32
        return {
            path: jnp.sum(_bits(leaf) >= bits, axis=tuple(range(1, leaf.ndim)))
            for path, leaf in values.items()
        }

    total = sum(math.prod(leaf.shape) for leaf in values.values())
    wanted = total - math.ceil(round((1 - part) * (total - 1), 6))
    low, high = 0, 0x7F800000  # 0 and infinity
    while high - low > 1:
        middle = (low + high) // 2
        found = jax.device_get(counts(values, jnp.int32(middle)))
        above = sum(int(np.sum(count, dtype=np.int64)) for count in found.values())
        low, high = (middle, high) if above >= wanted else (low, middle)
    return {path: jax.jit(lambda x: _bits(x) >= low)(leaf) for path, leaf in values.items()}


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _fisher_step(config: TrainConfig, program: TrainProgram) -> Callable[..., Leaves]:
    objectives, layout = config.objectives, program.layout
    key = jax.random.fold_in(jax.random.key(config.seed), _SALT)

    def step(fisher: Leaves, params: Any, batch: Batch, number: jax.Array) -> Leaves:
        batch = composition.prepare(objectives, batch, Progress(jnp.int32(0), config.steps))
        weights = composition.objective_weights(objectives, batch)

        def loss(part: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
            whole = config.techniques.model_params(layout.trained.put(params, part))
            passes = Passes(
                objectives, program.model, whole, batch, weights, config.step.loss_chunk
            )
            return passes.loss(passes.forward(rng))

        grads, _ = gradients(
            loss,
            layout.trained.take(params),
            batch,
            jax.random.fold_in(key, number),
            config.step.micro_batches,
            layout.gradients,
        )
        limit = config.optimizer.clip_norm
        squares = {path: _clipped(leaf, limit) ** 2 for path, leaf in of_layers(grads).items()}
        return {path: fisher[path] + square for path, square in squares.items()}

    return step


def _clipped(stacked: jax.Array, limit: float) -> jax.Array:
    """Each layer of [layers,...] scaled down to norm `limit` (0: unchanged)."""
    if not limit:
        return stacked
    axes = tuple(range(1, stacked.ndim))
    norm = jnp.sqrt(jnp.sum(stacked**2, axis=axes, keepdims=True))
    return stacked * jnp.minimum(1.0, limit / (norm + 1e-6))
