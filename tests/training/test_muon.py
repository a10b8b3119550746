"""Muon updates each matrix of a layer as optax does alone; Adam updates the rest."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plug_jax.checkpoints.parameters import init_params
from plug_jax.config import PlugConfig
from plug_jax.models.plug import PlugModel
from plug_jax.parameter_paths import by_path
from plug_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule

CONFIG = PlugConfig(
    vocab_size=40,
    hidden_size=16,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    max_positions=8,
)
RATE = 0.01
STEPS = 3


@pytest.fixture(scope="module")
def moved() -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Parameters before and after some steps, and each step's gradients, by path."""
    before = params = init_params(PlugModel(CONFIG), jax.random.key(0))
    config = OptimizerConfig(
        name="muon", learning_rate=RATE, schedule="constant", weight_decay=0.0, clip_norm=0.0
    )
    optimizer = make_optimizer(config, make_schedule(config, 100))
    slots = optimizer.init(params)
    gradients = []
    for step in range(STEPS):
        keys = iter(jax.random.split(jax.random.key(step), 1000))
        grads = jax.tree.map(lambda x, keys=keys: jax.random.normal(next(keys), x.shape), params)
        updates, slots = optimizer.update(grads, slots, params, step=jnp.int32(50))
        params = optax.apply_updates(params, updates)
        gradients.append(by_path(grads))
    return by_path(before), by_path(params), gradients


# How a layer's array divides into matrices [in, out].
def _matrices(name: str, array: np.ndarray) -> list[np.ndarray]:
    hidden = CONFIG.hidden_size
    if name in ("qkv", "key_value"):  # [M,3 or 2,H,K]
        return [array[:, i].reshape(hidden, -1) for i in range(array.shape[1])]
    if name == "out":  # [H,K,M]
        return [array.reshape(-1, hidden)]
    if name == "query":  # [M,H,K]
        return [array.reshape(hidden, -1)]
    return [array]


@pytest.mark.parametrize(
    "path",
    [
        "encoder/layers/attention/qkv/kernel",
        "encoder/layers/attention/out/kernel",
        "encoder/layers/mlp/wi/kernel",
        "encoder/layers/mlp/wo/kernel",
        "decoder/layers/cross_attention/key_value/kernel",
        "decoder/layers/cross_attention/query/kernel",
        "mlm_head/dense/kernel",
    ],
)
def test_matrices_move_as_they_do_alone(moved: Any, path: str) -> None:
    before, after, gradients = moved
    name = path.split("/")[-2]
    layers = range(2) if "layers" in path else [...]
    for layer in layers:
        start = _matrices(name, np.asarray(before[path][layer]))
        end = _matrices(name, np.asarray(after[path][layer]))
        steps = [_matrices(name, np.asarray(grads[path][layer])) for grads in gradients]
        for number, (matrix, wanted) in enumerate(zip(start, end, strict=True)):
            alone = optax.contrib.muon(RATE, consistent_rms=0.2)
            params = {"matrix": jnp.asarray(matrix)}
            slots = alone.init(params)
            for step in steps:
                updates, slots = alone.update({"matrix": jnp.asarray(step[number])}, slots, params)
                params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(params["matrix"] - matrix, wanted - matrix, atol=2e-5)


def test_all_else_is_adams(moved: Any) -> None:
    before, after, gradients = moved
    adam = optax.adam(RATE)
    rest = [
        path
        for path in before
        if not path.endswith("kernel") or path.startswith(("sentence_head", "pooler"))
    ]
    assert "embeddings/word_embeddings" in rest and "sentence_head/kernel" in rest
    params = {path: before[path] for path in rest}
    slots = adam.init(params)
    for grads in gradients:
        updates, slots = adam.update({path: grads[path] for path in rest}, slots, params)
        params = optax.apply_updates(params, updates)
    for path in rest:
        np.testing.assert_allclose(after[path], params[path], atol=1e-6, err_msg=path)


def test_every_matrix_of_a_layer_is_muons(moved: Any) -> None:
    """An update's RMS is at most 0.2 of the learning rate with Muon, and 1 with Adam."""
    before, after, _ = moved
    for path in before:
        if "/layers/" in path and path.endswith("kernel"):
            size = float(jnp.sqrt(jnp.mean((after[path] - before[path]) ** 2))) / RATE
            assert size < 0.2 * STEPS, path
