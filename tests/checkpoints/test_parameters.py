"""The parameter tree without a run."""

from __future__ import annotations

import jax
import pytest

from plug_jax.checkpoints.parameters import abstract_params, init_params
from plug_jax.models.plug import PlugModel
from tests import synthetic


def test_a_models_tree_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run asks for it several times; another model has its own."""
    config = synthetic.tiny_config(mlp_dim=40)  # of no other test
    traced: list[PlugModel] = []
    touch = PlugModel.__call__

    def count(model: PlugModel, tokens: jax.Array) -> None:
        traced.append(model)
        touch(model, tokens)

    monkeypatch.setattr(PlugModel, "__call__", count)
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(PlugModel(config)))
    jax.eval_shape(lambda: init_params(PlugModel(config), jax.random.key(1)))
    assert len(traced) == 1
    wider = abstract_params(PlugModel(synthetic.tiny_config(mlp_dim=48)))
    assert len(traced) == 2
    assert jax.tree.map(lambda leaf: leaf.shape, wider) != shapes
