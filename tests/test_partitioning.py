"""The mesh, its rules and slices, and errors where they do not fit."""

import math

import jax
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from plug_jax.checkpoints.parameters import abstract_params, with_shardings
from plug_jax.config import PlugConfig
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner
from plug_jax.training.state import state_layout

CONFIG = PlugConfig(
    vocab_size=60,
    vocab_multiple=12,
    hidden_size=24,
    num_encoder_layers=2,
    num_decoder_layers=1,
    num_heads=6,
    head_dim=4,
    mlp_dim=48,
    max_positions=16,
)


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(Partitioner(data=-1, fsdp=2, tensor=2).mesh.shape) == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }


def test_devices_can_be_given():
    mesh = Partitioner(fsdp=2, devices=tuple(jax.devices()[2:6])).mesh
    assert {d.id for d in mesh.devices.flat} == {2, 3, 4, 5}
    assert mesh.shape["data"] == 2


def test_slices_lie_along_the_data_axis():
    mesh = Partitioner(data=2, fsdp=4, slices=2).mesh
    first, second = ({d.id for d in row.flat} for row in mesh.devices)
    assert (first, second) == ({0, 1, 2, 3}, {4, 5, 6, 7})


@pytest.mark.parametrize(
    ("partitioner", "message"),
    [
        (Partitioner(data=3), "data=3 x fsdp=1 x tensor=1 does not match the 8 devices"),
        (Partitioner(data=-1, fsdp=-1), "at most one is -1"),
        (Partitioner(data=0), "sizes are positive"),
        (Partitioner(data=1, fsdp=8, slices=2), "a multiple of the slices; set data=2"),
        (Partitioner(data=8, slices=3), "data must be a multiple of the slices"),
    ],
)
def test_meshes_that_cannot_be(partitioner, message):
    with pytest.raises(PlugError, match=message):
        _ = partitioner.mesh


def test_only_devices_of_this_cpu_can_be_made_more():
    with pytest.raises(PlugError, match="the 8 devices here; .* XLA_FLAGS=.*device_count=N makes"):
        _ = Partitioner(data=3).mesh
    with pytest.raises(PlugError, match=r"the 8 devices that it is for; .* to -1\)\.$"):
        _ = Partitioner(data=3, devices=tuple(jax.devices())).mesh


def test_rules_override_the_defaults_by_name():
    rules = dict(Partitioner(rules=(("kv", "tensor"), ("heads", None))).logical_rules)
    assert rules["kv"] == "tensor"
    assert rules["heads"] is None
    assert rules["embed"] == "fsdp"


def test_rules_with_unknown_names():
    with pytest.raises(PlugError, match="no logical axis 'head'; did you mean 'heads'"):
        _ = Partitioner(rules=(("head", "tensor"),)).logical_rules
    with pytest.raises(PlugError, match="'model', which is not a mesh axis"):
        _ = Partitioner(rules=(("heads", "model"),)).logical_rules


def test_a_mesh_that_does_not_divide_the_model_says_what_would():
    devices = tuple(jax.devices()[:5])
    boxed = abstract_params(PlugModel(CONFIG))
    with pytest.raises(PlugError) as error:
        Partitioner(data=1, tensor=5, devices=devices).param_shardings(boxed)
    message = str(error.value)
    assert "encoder/layers/attention/qkv/kernel (2, 24, 3, 6, 4): 'heads' of 6 over tensor = 5" in (
        message
    )
    # 60 = 5 x 12 rows of the vocabulary are divided: nothing is wrong with them.
    assert "word_embeddings" not in message
    # gcd(6 heads, 48 mlp, 60 vocabulary, 24 of the MLM head) = 6
    assert "tensor may be 1, 2, 3" in message


def test_batches_that_do_not_divide_are_told_the_nearest():
    partitioner = Partitioner(data=4, fsdp=2)
    partitioner.check_batch(48, micro_batches=3)
    with pytest.raises(PlugError, match="the nearest that do: 24, 48 "):
        partitioner.check_batch(40, micro_batches=3)
    with pytest.raises(PlugError, match="the nearest that does: 8 "):
        partitioner.check_batch(5)


@pytest.mark.parametrize(
    ("mesh", "shape", "param", "gradient"),
    [
        # Along the dimension that has shards already, as far as it divides...
        ((2, 4, 1), (2, 24, 48), (None, "fsdp", "tensor"), (None, ("fsdp", "data"), "tensor")),
        ((4, 2, 1), (2, 12, 48), (None, "fsdp", "tensor"), (None, "fsdp", ("tensor", "data"))),
        # ... first along fsdp's, over which rows are sharded too, whatever the size of `tensor`.
        ((2, 2, 2), (2, 24, 48), (None, "fsdp", "tensor"), (None, ("fsdp", "data"), "tensor")),
        ((2, 1, 4), (2, 48, 24), (None, "tensor", "fsdp"), (None, "tensor", "data")),
        # ... without one, the longest.
        ((2, 2, 2), (2, 3, 6, 8), (None,) * 4, (None, None, None, ("data", "fsdp", "tensor"))),
        ((2, 4, 1), (2, 24), (), (None, ("data", "fsdp"))),
        ((2, 4, 1), (2, 12), (), (None, "data")),  # 4 does not divide the remaining 6
        ((8, 1, 1), (3,), (None,), (None,)),  # nothing divides
        ((1, 8, 1), (24, 2), ("fsdp", None), ("fsdp", None)),
    ],
)
def test_gradients_lie_over_the_axes_on_which_the_parameter_is_whole(mesh, shape, param, gradient):
    partitioner = Partitioner(*mesh)
    sharding = NamedSharding(partitioner.mesh, PartitionSpec(*param))
    leaf = jax.ShapeDtypeStruct(shape, "float32")
    found = partitioner.gradient_shardings([leaf], [sharding])[0]
    assert found.is_equivalent_to(NamedSharding(partitioner.mesh, PartitionSpec(*gradient)), 4)


@pytest.mark.parametrize("optimizer", [optax.adamw(1e-3), optax.adafactor(1e-3)])
def test_no_device_keeps_what_another_one_keeps(optimizer):
    """Of gradients and slots, everything except scalars, and a few short vectors."""
    partitioner = Partitioner(data=2, fsdp=2, tensor=2)
    config = CONFIG.from_dict(
        CONFIG.to_dict() | {"hidden_size": 256, "mlp_dim": 1024, "vocab_size": 256}
    )
    layout = state_layout(PlugModel(config), (), optimizer, partitioner)
    kept = with_shardings(layout.abstract.opt_state, layout.shardings.opt_state)
    summed = with_shardings(layout.abstract.params, layout.gradients)
    large = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((kept, summed)):
        if leaf.size > 64:
            large += 1
            shard = math.prod(leaf.sharding.shard_shape(leaf.shape))
            assert shard == leaf.size // 8, jax.tree_util.keystr(path)
    assert large > 60
    # Parameters are replicated over data only, or are vectors without an embed axis.
    for path, leaf in jax.tree_util.tree_leaves_with_path(layout.with_shardings().params):
        if leaf.size > 4096:
            assert not leaf.sharding.is_fully_replicated, jax.tree_util.keystr(path)
