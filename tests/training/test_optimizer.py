"""Schedules and weight decay, in worked examples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plug_jax.errors import PlugError
from plug_jax.training.optimizer import (
    OptimizerConfig,
    bfloat16_moments,
    make_optimizer,
    make_schedule,
    round_at_random,
)


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
    """One AdamW step without gradient: kernels and tables shrink by lr * decay, others stay."""
    params = {
        "mlp": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
        "layer_norm": {"scale": jnp.ones(2)},
        "word_embeddings": jnp.ones(2),
        "position_embeddings": jnp.ones(2),
    }
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, schedule="constant")
    optimizer = make_optimizer(config, make_schedule(config, 10))
    zeros = {
        "mlp": {"kernel": jnp.zeros(2), "bias": jnp.zeros(2)},
        "layer_norm": {"scale": jnp.zeros(2)},
        "word_embeddings": jnp.zeros(2),
        "position_embeddings": jnp.zeros(2),
    }
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["mlp"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["word_embeddings"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["position_embeddings"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["mlp"]["bias"], 0)
    np.testing.assert_array_equal(updates["layer_norm"]["scale"], 0)


def test_gradients_are_clipped_by_their_norm_over_all_parameters() -> None:
    """(3, 4) has norm 5. Adam's first moment is a tenth of the clipped gradient."""
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    for clip_norm, kept in ((1.0, [0.6, 0.8]), (10.0, [3.0, 4.0]), (0.0, [3.0, 4.0])):
        config = OptimizerConfig(learning_rate=0.1, clip_norm=clip_norm, b1=0.9)
        optimizer = make_optimizer(config, make_schedule(config, 10))
        _, state = optimizer.update(grads, optimizer.init(grads), grads)
        moments = next(part.mu for part in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(part))
        np.testing.assert_allclose(moments["a"], 0.1 * kept[0], rtol=1e-5)
        np.testing.assert_allclose(moments["b"], 0.1 * kept[1], rtol=1e-5)


def is_adam(part: object) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def test_config_says_what_is_wrong() -> None:
    with pytest.raises(PlugError, match="schedule must be one of .* not 'sqrt'"):
        OptimizerConfig(schedule="sqrt")  # type: ignore[arg-type]
    for name, value in (
        ("learning_rate", 0),
        ("learning_rate", 1e-320),  # 0 in float32
        ("learning_rate", 1e39),  # infinite in float32
        ("warmup_fraction", 1.0),
        ("weight_decay", -0.1),
        ("clip_norm", -1.0),  # would reverse gradients
        ("b1", 1.0),
        ("b2", -0.1),
        ("epsilon", 0),
    ):
        with pytest.raises(PlugError, match=f"OptimizerConfig: {name} must be .*, got"):
            OptimizerConfig(**{name: value})


def test_rounding_at_random_is_right_on_average() -> None:
    x = jnp.full(4000, -(1 + 1 / 512), jnp.float32)
    rounded = np.asarray(round_at_random(x, jax.random.key(0)).astype(jnp.float32))
    assert set(rounded.tolist()) == {-1.0, -(1 + 1 / 128)}
    # Binomial(4000, 1/4): five standard deviations are 137.
    assert abs((rounded < -1).sum() - 1000) < 137
    exact = jnp.asarray([0.0, 1.0, -1.5, 2.0**-100])
    np.testing.assert_array_equal(round_at_random(exact, jax.random.key(1)), exact)


def test_bfloat16_moments_follow_float32_ones() -> None:
    """The second moment also decreases, where rounding to nearest would keep it forever."""
    adam = optax.scale_by_adam(b1=0.9, b2=0.999)
    low = bfloat16_moments(adam)
    params = {"w": jnp.zeros((256,))}
    states = [adam.init(params), low.init(params)]
    assert {x.dtype for x in jax.tree.leaves((states[1].mu, states[1].nu))} == {
        jnp.dtype(jnp.bfloat16)
    }
    for step in range(400):  # large gradients, then small ones
        grads = {"w": jnp.full((256,), 1.0 if step < 100 else 0.01)}
        updates = []
        for i, optimizer in enumerate((adam, low)):
            update, states[i] = jax.jit(optimizer.update)(grads, states[i])
            updates.append(update["w"])
    full, kept = (np.asarray(s.nu["w"], np.float32) for s in states)
    peak = 1 - 0.999**100
    assert full[0] < 0.8 * peak
    # Each element is a random walk around the exact value; their mean is close to it.
    np.testing.assert_allclose(kept.mean(), full[0], rtol=0.01)
    np.testing.assert_allclose(np.mean(updates[1]), updates[0][0], rtol=0.02)


def test_bfloat16_moments_train_as_float32_ones() -> None:
    target = jax.random.normal(jax.random.key(0), (64,))
    losses = []
    for dtype in ("float32", "bfloat16"):
        config = OptimizerConfig(learning_rate=0.03, schedule="constant", moment_dtype=dtype)
        optimizer = make_optimizer(config, make_schedule(config, 100))
        params = {"kernel": jnp.zeros(64)}
        state = optimizer.init(params)
        for _ in range(100):
            grads = jax.grad(lambda p: jnp.sum((p["kernel"] - target) ** 2))(params)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        losses.append(float(jnp.sum((params["kernel"] - target) ** 2)))
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[0] < 0.1 * float(jnp.sum(target**2))
