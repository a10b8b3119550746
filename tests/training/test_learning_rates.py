"""Layer-wise decay and multipliers, in worked examples."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.parameter_paths import by_path
from plug_jax.training.learning_rates import learning_rate_scales
from plug_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from plug_jax.training.trained import Trained
from tests import synthetic
from tests.objectives.sentence_length import SentenceLength


def params_of(**changes: object) -> dict:
    model = PlugModel(synthetic.tiny_config(use_pooler=True, **changes))
    return nn.unbox(abstract_params(model, (SentenceLength(),)))


def scales_of(params: dict, decay: float, **multipliers: float) -> dict[str, list]:
    scales = learning_rate_scales(decay, multipliers, params)
    return {path: np.ravel(scale).tolist() for path, scale in by_path(scales).items()}


def test_depths_of_an_encoder() -> None:
    """ELECTRA's for n = 2: embeddings d^4, layers d^3 and d^2, heads 1; our final norm d."""
    scales = scales_of(params_of(num_decoder_layers=0), 0.5)
    expected = {
        "embeddings/word_embeddings": [1 / 16],
        "embeddings/layer_norm/scale": [1 / 16],
        "encoder/layers/attention/qkv/kernel": [1 / 8, 1 / 4],
        "encoder/layers/mlp_norm/bias": [1 / 8, 1 / 4],
        "encoder/final_norm/scale": [1 / 2],
        "mlm_head/dense/kernel": [1],
        "pooler/kernel": [1],
        "sentence_head/bias": [1],
        "heads/sentence_length/kernel": [1],
    }
    assert {path: scales[path] for path in expected} == expected


def test_a_decoder_goes_on_where_the_encoder_ends() -> None:
    scales = scales_of(params_of(num_decoder_layers=1), 0.5)
    assert scales["embeddings/word_embeddings"] == [1 / 32]
    assert scales["encoder/layers/mlp/wi/kernel"] == [1 / 16, 1 / 8]
    assert scales["encoder/final_norm/scale"] == [1 / 4]  # like the decoder's first layer
    assert scales["decoder/layers/mlp/wi/kernel"] == [1 / 4]
    assert scales["decoder/final_norm/scale"] == [1 / 2]
    assert scales["mlm_head/bias"] == scales["heads/sentence_length/bias"] == [1]


def test_multipliers_are_on_top() -> None:
    params = params_of(num_decoder_layers=0)
    scales = scales_of(params, 0.5, **{"heads": 10.0, "encoder/layers:1/mlp": 3.0})
    assert scales["heads/sentence_length/kernel"] == [10]
    assert scales["encoder/layers/mlp/wi/kernel"] == [1 / 8, 3 / 4]
    assert scales["encoder/layers/attention/qkv/kernel"] == [1 / 8, 1 / 4]
    alone = scales_of(params, 1.0, heads=10.0)
    assert alone.pop("heads/sentence_length/bias") == [10]
    assert alone.pop("heads/sentence_length/kernel") == [10]
    assert all(set(scale) == {1.0} for scale in alone.values())
    assert learning_rate_scales(1.0, {}, params) is None
    with pytest.raises(PlugError, match="learning_rate_multipliers: no parameter is at 'head'"):
        scales_of(params, 1.0, head=10.0)


def test_updates_are_in_the_ratio_of_the_rates() -> None:
    """Adam's first step is lr * (sign(g) + decay * p): ELECTRA scales all of it. With layer 0
    frozen the others keep their depths."""
    params = params_of(num_decoder_layers=0)
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params)
    for freeze in ((), ("encoder/layers:0",)):
        trained = Trained.of(freeze, params)
        config = OptimizerConfig(learning_rate=0.1, schedule="constant", clip_norm=0.0)
        scales = trained.take(learning_rate_scales(0.5, {}, params))
        optimizer = make_optimizer(config, make_schedule(config, 10), scales=scales)
        part = trained.take(params)
        updates, _ = jax.jit(optimizer.update)(part, optimizer.init(part), part)
        updates = by_path(updates)
        kernel = updates["encoder/layers/mlp/wi/kernel"]
        expected = -0.1 * 1.01 * np.array([1 / 8, 1 / 4])[len(freeze) :]
        np.testing.assert_allclose(kernel[:, 0, 0], expected, rtol=1e-4)
        np.testing.assert_allclose(updates["embeddings/word_embeddings"], -0.101 / 16, rtol=1e-4)
        np.testing.assert_allclose(updates["encoder/final_norm/scale"], -0.1 / 2, rtol=1e-4)
        np.testing.assert_allclose(updates["mlm_head/bias"], -0.1, rtol=1e-4)


def test_rates_that_make_no_sense() -> None:
    for value in (0, 1.1, -0.5, float("nan")):
        with pytest.raises(PlugError, match="layer_decay must be"):
            OptimizerConfig(layer_decay=value)
    for value in (0, -1, float("inf")):
        with pytest.raises(PlugError, match="learning_rate_multipliers must be"):
            OptimizerConfig(learning_rate_multipliers={"heads": value})
