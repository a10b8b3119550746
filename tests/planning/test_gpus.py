"""mesh/h100_8.gin on eight CPU devices, without GPUs or a compiler for them."""

from __future__ import annotations

import math

import jax
import pytest

from plug_jax.cli.plan import configure
from plug_jax.models.attention import attention_kernel
from plug_jax.partitioning import put_batch
from plug_jax.planning.compile import sharded_bytes
from plug_jax.planning.topologies import GIB, peak_flops
from plug_jax.training.program import train_program
from plug_jax.training.state import init_state
from tests import synthetic

RUN, MESH = "runs/palm_pretrain.gin", "mesh/h100_8.gin"
H100_BYTES = 80e9


def test_memory_of_plug_27b_by_hand() -> None:
    """An eighth of 26.0B float32 parameters, their gradients, and Adam's bfloat16 moments."""
    config = configure([RUN, "models/plug_27b.gin", MESH], [])
    with config.partitioner.context():
        state = train_program(config).layout.with_shardings()
    parameters, moments = sharded_bytes(state.params), sharded_bytes(state.opt_state)
    assert parameters / GIB == pytest.approx(12.13, abs=0.01)
    assert (parameters + moments) / GIB == pytest.approx(24.3, abs=0.05)
    # Gradients and their micro-batch accumulator take as much memory as the parameters each.
    assert (3 * parameters + moments) / GIB == pytest.approx(48.5, abs=0.1)
    assert 3 * parameters + moments < 0.7 * H100_BYTES


@pytest.mark.slow
def test_a_step_of_a_narrow_model() -> None:
    """The file's mesh, remat, loss chunks and moments; four micro-batches of one row per device."""
    narrow = ["hidden_size = 64", "num_heads = 4", "head_dim = 16", "mlp_dim = 128"]
    bindings = [f"config.PlugConfig.{value}" for value in (*narrow, "num_encoder_layers = 2")]
    bindings += ["DECODER_LAYERS = 1", "VOCAB_SIZE = 1000", "BATCH_SIZE = 32", "MICRO_BATCHES = 4"]
    bindings += ["TASK_FEATURE_LENGTHS = {'encoder': 128, 'decoder': 128}"]
    bindings += ["optimizer.OptimizerConfig.moment_dtype = 'float32'"]
    config = configure([RUN, "models/plug_27b.gin", MESH], bindings)
    batch = synthetic.batch(rows=32, encoder=128, decoder=128)
    with config.partitioner.context():
        program = train_program(config)
        state = init_state(program.model, (), program.optimizer, program.layout, seed=0)
        parameters = jax.tree.leaves(state.params)
        held = sum(leaf.addressable_shards[0].data.size for leaf in parameters)
        # Only the biases of the vocabulary, heads and MLP are replicated on all devices.
        assert held < 1.2 * sum(leaf.size for leaf in parameters) / 8
        _, metrics = program.train_step(state, put_batch(batch, config.partitioner.batch_sharding))
    assert math.isfinite(metrics["loss"].value())


@pytest.mark.parametrize("mesh", ["h100_1", "h100_8"])
def test_the_compiler_knows_its_options_and_auto_is_cudnn(mesh: str) -> None:
    config = configure([RUN, "models/large.gin", f"mesh/{mesh}.gin"], [])
    jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options=dict(config.compiler_options))
    device = jax.sharding.AbstractDevice("H100", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    ):
        lengths = config.train_data.feature_lengths.values()
        assert attention_kernel(config.model, *lengths) == "cudnn"


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),  # jax's name for a v5p
        ("TPU7x", 1153.5e12),  # a chip is two devices
        ("cpu", None),
    ],
)
def test_peaks_by_kind_of_device(kind: str, peak: float | None) -> None:
    assert peak_flops(kind) == peak
