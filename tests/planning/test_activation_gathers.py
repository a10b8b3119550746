"""All-gathers of activations over `tensor`, as partitioned by XLA for eight CPU devices."""

from __future__ import annotations

import pytest

from plug_jax.cli.plan import configure
from plug_jax.planning.collectives import axes_of, find_collectives
from plug_jax.planning.hlo import parse_module
from plug_jax.training.program import train_program

FILES = ["runs/palm_pretrain.gin", "models/plug_27b.gin", "models/decoder_alone.gin"]
MLP = 896  # nothing else has this size, nor a half or a quarter of it
MODEL = (
    "VOCAB_SIZE = 1000",
    "DECODER_LAYERS = 2",
    "BATCH_SIZE = 16",
    "MICRO_BATCHES = 1",
    "LOSS_CHUNK = 16",
    "TASK_FEATURE_LENGTHS = {'encoder': 32, 'decoder': 32}",
    "program.TrainConfig.compiler_options = {}",
    "config.PlugConfig.hidden_size = 64",
    "config.PlugConfig.num_heads = 4",
    "config.PlugConfig.head_dim = 16",
    f"config.PlugConfig.mlp_dim = {MLP}",
    "config.PlugConfig.attention = 'dot'",
    "partitioning.Partitioner.rules = (('activation_embed', 'tensor'),)",
)


@pytest.mark.parametrize("mesh", [(2, 2, 2), (2, 1, 4)])
def test_the_hidden_layer_of_an_mlp_stays_where_it_is_computed(mesh: tuple[int, int, int]) -> None:
    """Even if a block's output is sharded over `tensor` as well: only that is gathered."""
    sizes = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
    bindings = [f"partitioning.Partitioner.{axis} = {size}" for axis, size in sizes.items()]
    config = configure([*FILES, "mesh/h100_8.gin"], [*MODEL, *bindings])
    with config.partitioner.context():
        text = train_program(config).lower().compile().as_text()
    assert text is not None
    gathered = [
        array
        for one in find_collectives(parse_module(text), 8)
        if one.kind == "all-gather" and axes_of(one.groups, sizes) == "tensor"
        for array in one.arrays
    ]
    assert any(64 in array.dims for array in gathered)
    assert not [array for array in gathered if MLP in array.dims]
