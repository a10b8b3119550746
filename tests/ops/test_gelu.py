"""The exact GELU beside the normal distribution of scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from plug_jax.ops.gelu import gelu

X = np.linspace(-6, 6, 241)


@pytest.fixture(autouse=True, params=["cpu", "tpu"])
def platform(request, monkeypatch):
    """The devices that it is traced for."""
    monkeypatch.setattr("plug_jax.ops.gelu.target_platform", lambda: request.param)


def test_it_is_x_times_the_normal_distribution_function():
    np.testing.assert_allclose(gelu(jnp.float32(X)), X * stats.norm.cdf(X), atol=1e-6)


def test_its_gradient():
    expected = stats.norm.cdf(X) + X * stats.norm.pdf(X)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.float32(X)), expected, atol=1e-6)


@pytest.mark.parametrize("negative", [-2.0, -3.0, -4.0])
def test_bfloat16_keeps_small_values(negative):
    """1 + erf would be 0 or 0.004 in bfloat16."""
    found = gelu(jnp.bfloat16(negative))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(found), negative * stats.norm.cdf(negative), rtol=0.03)
