"""Our logical axes in t5x's terms."""

from __future__ import annotations

import flax.linen as nn
import pytest
from flax.linen import partitioning as flax_partitioning
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.stages import PALM
from plug_jax.partitioning import DEFAULT_RULES, Partitioner
from plug_jax.t5x_bridge.axes import logical_axis_rules, params_axes, rules_with_batch
from tests.objectives.toy_classification import ToyClassification
from tests.synthetic import tiny_config


@pytest.mark.parametrize(
    ("fsdp", "axes", "expected"),
    [
        (False, ("layers", "embed", "mlp"), (None, None, "model")),
        (True, ("layers", "embed", "mlp"), (None, "data", "model")),
        (True, ("vocab", "embed"), ("model", "data")),
        (True, ("layers", "embed", None, "heads", "kv"), (None, "data", None, "model", None)),
        (True, ("position",), (None,)),
        (False, ("batch",), ("data",)),
        (
            True,
            ("activation_batch", "activation_length", "activation_heads"),
            ("data", None, "model"),
        ),
    ],
)
def test_where_axes_lie_on_the_mesh_of_t5x(fsdp, axes, expected):
    rules = logical_axis_rules(fsdp)
    assert flax_partitioning.logical_to_mesh_axes(axes, rules) == PartitionSpec(*expected)


def test_every_axis_of_ours_has_a_rule():
    assert {name for name, _ in logical_axis_rules()} == {"batch", *dict(DEFAULT_RULES)}


def test_rules_of_our_own_mesh():
    rules = rules_with_batch(Partitioner(rules=(("kv", "tensor"),)).logical_rules)
    assert dict(rules)["batch"] == ("data", "fsdp")
    assert dict(rules)["kv"] == "tensor"


@pytest.mark.parametrize("objectives", [PALM, (ToyClassification(),)])
def test_every_parameter_has_its_axes(objectives):
    boxed = abstract_params(PlugModel(tiny_config()), objectives)
    axes = flatten_dict(params_axes(boxed), sep="/")
    shapes = flatten_dict(nn.unbox(boxed), sep="/")
    assert set(axes) == {f"{path}_axes" for path in shapes}
    assert all(len(axes[f"{path}_axes"].names) == leaf.ndim for path, leaf in shapes.items())
    names = axes["decoder/layers/mlp/wi/kernel_axes"].names
    assert tuple(names) == ("layers", "embed", "mlp")
