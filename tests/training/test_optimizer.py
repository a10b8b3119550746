"""Schedules and weight decay by worked examples."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.errors import PlugError
from plug_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("linear", [1.0, 1 - 1 / 90, 0.5, 0.0]),
        ("cosine", [1.0, 0.5 * (1 + np.cos(np.pi / 90)), 0.5, 0.0]),
        ("rsqrt", [1.0, (10 / 11) ** 0.5, (10 / 55) ** 0.5, (10 / 100) ** 0.5]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules(name: str, after: list[float]) -> None:
    """100 steps, 10% warm-up: 0.1, 0.2, ... 1.0 of the peak, then the decay to the end."""
    config = OptimizerConfig(learning_rate=2.0, schedule=name, warmup_fraction=0.1)  # type: ignore[arg-type]
    schedule = make_schedule(config, 100)
    rise = [float(schedule(step)) / 2 for step in range(10)]
    np.testing.assert_allclose(rise, np.arange(1, 11) / 10, rtol=1e-5)
    got = [float(schedule(step)) / 2 for step in (10, 11, 55, 100)]
    np.testing.assert_allclose(got, after, atol=1e-6)


def test_weight_decay_spares_biases_and_norms() -> None:
    """One AdamW step without gradient: kernels and tables shrink by lr * decay, the rest stays."""
    params = {
        "mlp": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
        "layer_norm": {"scale": jnp.ones(2)},
        "word_embeddings": jnp.ones(2),
    }
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, schedule="constant")
    optimizer = make_optimizer(config, make_schedule(config, 10))
    zeros = {
        "mlp": {"kernel": jnp.zeros(2), "bias": jnp.zeros(2)},
        "layer_norm": {"scale": jnp.zeros(2)},
        "word_embeddings": jnp.zeros(2),
    }
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["mlp"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["word_embeddings"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["mlp"]["bias"], 0)
    np.testing.assert_array_equal(updates["layer_norm"]["scale"], 0)


def test_config_says_what_is_wrong() -> None:
    with pytest.raises(PlugError, match="schedule must be one of .* got 'sqrt'"):
        OptimizerConfig(schedule="sqrt")  # type: ignore[arg-type]
    with pytest.raises(PlugError, match="learning_rate must be positive"):
        OptimizerConfig(learning_rate=0)
