"""Freezing: frozen parameters do not change, have no slots, and do not affect the others."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from plug_jax.errors import PlugError
from plug_jax.parameter_paths import by_path, covered
from plug_jax.training.optimizer import OptimizerConfig
from plug_jax.training.trained import EVERYTHING, Trained
from tests import synthetic
from tests.training.program_runs import MESH, assert_close, run, run_config

PARAMS = {
    "embeddings": {"word_embeddings": np.zeros((5, 2)), "layer_norm": {"scale": np.zeros(2)}},
    "encoder": {
        "layers": {"mlp": {"kernel": np.arange(8.0).reshape(4, 2), "bias": np.arange(4.0)}},
        "final_norm": {"scale": np.ones(2)},
    },
    "heads": {"tags": {"kernel": np.ones((2, 3))}},
}


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("embeddings", {"embeddings/word_embeddings": True, "embeddings/layer_norm/scale": True}),
        ("*/*norm", {"embeddings/layer_norm/scale": True, "encoder/final_norm/scale": True}),
        ("heads/*/kernel", {"heads/tags/kernel": True}),
        ("encoder/layers:1/mlp/bias", {"encoder/layers/mlp/bias": [False, True, False, False]}),
        (
            "encoder/layers:0-2",
            {f"encoder/layers/mlp/{name}": [True] * 3 + [False] for name in ("kernel", "bias")},
        ),
        ("encoder/layers/mlp/bias", {"encoder/layers/mlp/bias": [True] * 4}),
    ],
)
def test_patterns(pattern: str, paths: dict) -> None:
    found = covered("freeze", pattern, by_path(PARAMS))
    assert {path: where.tolist() for path, where in found.items()} == paths


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("embedings", "freeze: no parameter is at 'embedings'; did you mean 'embeddings'?"),
        ("xyz", "there are embeddings, embeddings/layer_norm, .*encoder/layers, .*heads/tags"),
        ("layers", "no parameter is at 'layers'"),  # not in the middle of a path
        ("encoder/layer", "did you mean 'encoder/layers'"),
        ("encoder/layers:0-4", "'encoder/layers:0-4': the layers are 0-3"),
        ("encoder/layers:2-1", "the layers are 0-3, in order"),
        ("encoder/layers:-2", "is not understood; layers are named"),
        ("encoder/final_norm:1", "is not understood"),
        ("encoder/layers:1/mlp:1", "is not understood"),
    ],
)
def test_patterns_that_say_nothing(pattern: str, message: str) -> None:
    with pytest.raises(PlugError, match=message):
        covered("freeze", pattern, by_path(PARAMS))


def test_parts_and_the_way_back() -> None:
    trained = Trained.of(["embeddings", "encoder/layers:1-2", "encoder/layers:0/mlp/bias"], PARAMS)
    part = trained.take(PARAMS)
    assert by_path(part).keys() == {
        "encoder/layers/mlp/kernel", "encoder/layers/mlp/bias", "encoder/final_norm/scale",
        "heads/tags/kernel",
    }  # fmt: skip
    mlp = part["encoder"]["layers"]["mlp"]
    assert mlp["kernel"].tolist() == [[0, 1], [6, 7]] and mlp["bias"].tolist() == [3]
    arrays = jax.tree.map(jax.numpy.asarray, PARAMS)
    moved = trained.put(arrays, jax.tree.map(lambda x: x + 10, trained.take(arrays)))
    moved_mlp = moved["encoder"]["layers"]["mlp"]
    assert moved_mlp["kernel"].tolist() == [[10, 11], [2, 3], [4, 5], [16, 17]]
    assert moved_mlp["bias"].tolist() == [0, 1, 2, 13]
    assert moved["heads"]["tags"]["kernel"].tolist() == [[11] * 3] * 2
    np.testing.assert_array_equal(moved["embeddings"]["word_embeddings"], 0)
    assert Trained.of([], PARAMS).take(PARAMS) is PARAMS is EVERYTHING.take(PARAMS)
    with pytest.raises(PlugError, match="every parameter is frozen"):
        Trained.of(["*"], PARAMS)


def test_frozen_parameters_stay_on_a_mesh_as_on_one_device() -> None:
    """Not by weight decay either; their gradient does not count in the clipping norm."""
    freeze = ("embeddings", "mlm_head", "encoder/layers:0")
    optimizer = OptimizerConfig(
        learning_rate=1e-2, warmup_fraction=0.0, epsilon=1e-3, weight_decay=0.5, freeze=freeze
    )
    config, batch = run_config(optimizer=optimizer), synthetic.batch()
    before, after, values = run(config, [batch] * 2)
    old, new = by_path(before.params), by_path(after.params)
    for path in old:
        parts = path.split("/")
        if parts[0] in ("embeddings", "mlm_head"):
            np.testing.assert_array_equal(old[path], new[path])
        elif parts[1] == "layers":
            np.testing.assert_array_equal(old[path][0], new[path][0])
            assert not np.array_equal(old[path][1], new[path][1]), path
        else:
            assert not np.array_equal(old[path], new[path]), path
    slots = {path: leaf.shape for path, leaf in by_path(_moments(after.opt_state)).items()}
    assert not [path for path in slots if path.startswith(("embeddings", "mlm_head"))]
    assert slots["encoder/layers/mlp/wi/kernel"] == (1, 16, 32)
    _, sharded, sharded_values = run(dataclasses.replace(config, partitioner=MESH), [batch] * 2)
    assert_close(sharded.params, after.params, 1e-5)
    assert sharded_values[0]["grad_norm"] == pytest.approx(values[0]["grad_norm"], rel=1e-5)


def _moments(opt_state: object) -> dict:
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "mu"))
    return next(leaf.mu for leaf in leaves if hasattr(leaf, "mu"))
