"""Planning cached decoding: the step of generation, and its memory."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.checkpoints.parameters import init_params
from plug_jax.errors import PlugError
from plug_jax.models.decoder import split_layers
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner
from plug_jax.planning.compile import sharded_bytes
from plug_jax.planning.decode import decode_program
from tests import synthetic

MESH = Partitioner(data=2, fsdp=2, tensor=2)
SIZES = {"batch_size": 8, "encoder_length": 6, "max_length": 10}


@pytest.mark.slow
def test_the_planned_step_is_a_step_of_decoding():
    config = synthetic.tiny_config()
    params = split_layers(init_params(PlugModel(config), jax.random.key(0)))
    model = PlugModel(config, unstacked_layers=True)
    encoded = jax.random.normal(jax.random.key(1), (8, 6, 16))
    tokens = jnp.arange(8, dtype=jnp.int32)[:, None] + 5

    def apply(method, *args, **kwargs):
        return model.apply({"params": params}, *args, method=method, **kwargs)

    cache = apply("init_cache", encoded, max_length=10)
    expected, _ = apply("decode_step", tokens, cache)
    with MESH.context():
        program = decode_program(config, MESH, **SIZES)
        arguments = jax.tree.map(
            lambda value, abstract: jax.device_put(value, abstract.sharding),
            (params, tokens, cache),
            (program.params, program.tokens, program.cache),
        )
        assert jax.tree.map(jnp.shape, arguments) == jax.tree.map(
            jnp.shape, (program.params, program.tokens, program.cache)
        )
        logits, after = program.step(*arguments)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    assert after.lengths.tolist() == [1] * 8


def test_bytes_by_hand():
    """2 layers' keys and values [B=8, H=4, S, K=4], float32; rows over 4 devices, heads over 2."""
    config = synthetic.tiny_config()
    with MESH.context():
        program = decode_program(config, MESH, **SIZES)
    own, cross = 2 * 2 * 2 * 10 * 2 * 4, 2 * 2 * 2 * 6 * 2 * 4
    mask, lengths = 2 * 6, 2 * 4  # bool [8, 1, 1, 6]; int32 [8]
    assert sharded_bytes(program.cache) == 4 * (own + cross) + mask + lengths


def test_what_cannot_be_decoded():
    with pytest.raises(PlugError, match="--decode is for models with a decoder"):
        decode_program(synthetic.tiny_config(num_decoder_layers=0), MESH, **SIZES)
    with pytest.raises(PlugError, match="BATCH_SIZE 6 does not divide"):
        decode_program(synthetic.tiny_config(), MESH, **(SIZES | {"batch_size": 6}))
    positions = synthetic.tiny_config().max_positions
    for length, what in (("encoder_length", "prompts"), ("max_length", "new texts")):
        message = f"{what} of {positions + 1:,} tokens are more than the model's {positions:,} pos"
        with pytest.raises(PlugError, match=message):
            decode_program(synthetic.tiny_config(), MESH, **(SIZES | {length: positions + 1}))


@pytest.mark.slow
def test_plan_of_base_on_the_real_compiler():
    pytest.importorskip("libtpu", reason="the TPU compiler: pip install '.[tpu]'")
    arguments = ["--topology=v5e:2x2", "--decode", "--json"]
    for name in ("runs/palm_pretrain", "models/base", "mesh/cpu1"):
        arguments.append(f"--gin_file={name}.gin")
    arguments += [
        "--gin.partitioning.Partitioner.data=1",
        "--gin.partitioning.Partitioner.tensor=4",
    ]
    arguments += [
        "--gin.BATCH_SIZE=8",
        "--gin.TASK_FEATURE_LENGTHS={'encoder': 128, 'decoder': 128}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "plug_jax", "plan", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    plan = json.loads(done.stdout)
    assert plan["fits"]
    # 6 layers, keys and values, 8 rows, 128 + 128 positions, 12 heads of 64 over 4 chips, bfloat16.
    keys_and_values = 6 * 2 * 8 * 256 * 3 * 64 * 2
    assert keys_and_values <= plan["cache"] < keys_and_values + 8192
    assert plan["parameters"] == pytest.approx(2 * 159.2e6 / 4, rel=0.05)
    assert plan["parameters"] + plan["cache"] < plan["hbm_needed"] < plan["hbm_available"]
    # A token reads at least the decoder's weights and the output table.
    weights = 2 * (6 * 16 * 768**2 + 21_128 * 768) / 4
    assert weights < plan["cost"]["hbm_traffic"] < 3 * plan["parameters"]
    assert plan["cost"]["roofline"]["bound_by"] in ("hbm", "interconnect")
    assert {row["kind"] for row in plan["cost"]["collectives"]} <= {"all-reduce", "all-gather"}
