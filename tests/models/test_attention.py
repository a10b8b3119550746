"""Attention kernels in the whole model, remat policies, and the compiled TPU step."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.config import PlugConfig
from plug_jax.errors import PlugError
from plug_jax.models.attention import attention_kernel
from plug_jax.models.decoder import split_layers
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner
from tests import synthetic

ROOT = Path(__file__).resolve().parent.parent.parent
DOT = synthetic.tiny_config(
    attention="dot",
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_heads=2,
    head_dim=8,
    max_positions=256,
)
SPLASH = dataclasses.replace(DOT, attention="splash", attention_block_size=128)


def init(config: PlugConfig) -> dict:
    variables = PlugModel(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return nn.unbox(variables)["params"]


def loss(config: PlugConfig, params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """A scalar over all meaningful logits, and the decoder's logits."""
    model, variables = PlugModel(config), {"params": params}
    encoder_segments, segments = batch["encoder_segment_ids"], batch["decoder_segment_ids"]
    encoded = model.apply(
        variables, batch["encoder_input_tokens"], segment_ids=encoder_segments, method="encode"
    )
    logits = model.apply(
        variables,
        batch["decoder_input_tokens"],
        encoded,
        segment_ids=segments,
        encoder_segment_ids=encoder_segments,
        method="decode",
    )
    encoded = jnp.where(encoder_segments[..., None] > 0, encoded, 0)
    logits = jnp.where(segments[..., None] > 0, logits, 0)
    return jnp.mean(logits**2) + jnp.mean(jnp.sin(encoded)), logits


def test_splash_on_a_mesh_equals_dot_on_one_device() -> None:
    """Logits and parameter gradients; also with the residual stream sharded over `tensor`."""
    batch = synthetic.batch(rows=4, encoder=256, decoder=128)
    params = init(DOT)
    gradient = jax.grad(loss, argnums=1, has_aux=True)
    expected = jax.jit(gradient, static_argnums=0)(DOT, params, batch)
    partitioner = Partitioner(
        data=2, fsdp=2, tensor=2, rules=(("activation_norm_length", "tensor"),)
    )
    config = dataclasses.replace(SPLASH, remat_policy="names", remat_saved_names=("context",))
    with partitioner.context():
        boxed = jax.eval_shape(
            lambda: PlugModel(DOT).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        )
        shardings = (partitioner.param_shardings(boxed), partitioner.batch_sharding)
        step = jax.jit(gradient, static_argnums=0, in_shardings=shardings)
        assert '{"data", "fsdp"}, {"tensor"}, {}' in step.lower(config, params, batch).as_text()
        got = step(config, params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)


@pytest.mark.parametrize(
    ("name", "spared"),
    # Called by the encoder's block and the decoder's two attentions.
    [("input", 0), ("qkv", 1 + 3), ("context", 1 + 2), ("out", 1 + 2), ("wi", 1 + 1)],
)
def test_a_saved_name_spares_its_matrix_products(name: str, spared: int) -> None:
    batch = synthetic.batch(rows=1, encoder=8, decoder=8)

    def products(*names: str) -> int:
        config = dataclasses.replace(DOT, remat_policy="names", remat_saved_names=names)
        gradient = jax.grad(lambda params: loss(config, params, batch)[0])
        return str(jax.make_jaxpr(gradient)(jax.eval_shape(lambda: init(DOT)))).count("dot_general")

    assert products() - products(name) == spared


def mesh_of(platform: str) -> jax.sharding.AbstractMesh:
    """A mesh of one device of a kind that need not exist here."""
    device = jax.sharding.AbstractDevice(platform, num_cores=None, platform=platform)
    return jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)


def test_splash_is_for_tpus() -> None:
    params = jax.eval_shape(lambda: init(SPLASH))
    batch = synthetic.batch(rows=1, encoder=128, decoder=128)
    with (
        jax.sharding.use_abstract_mesh(mesh_of("gpu")),
        pytest.raises(PlugError, match=r"attention = 'auto' or 'dot'"),
    ):
        jax.eval_shape(lambda params: loss(SPLASH, params, batch), params)


@pytest.mark.parametrize(
    ("platform", "lengths", "changes", "kernel"),
    [
        ("cpu", (256, 128), {}, "dot"),
        ("tpu", (256, 128), {}, "splash"),
        ("tpu", (256, 100), {}, "dot"),
        ("tpu", (256, 128), {"attention_dropout_rate": 0.1}, "dot"),
        ("tpu", (256, 128), {"attention": "dot"}, "dot"),
        ("gpu", (256, 100), {"dtype": "bfloat16"}, "cudnn"),
        ("gpu", (256, 100), {"dtype": "float32"}, "dot"),
        ("gpu", (256, 101), {"dtype": "bfloat16"}, "dot"),
        ("gpu", (256, 128), {"dtype": "bfloat16", "head_dim": 12}, "dot"),
        ("gpu", (256, 128), {"dtype": "bfloat16", "attention_dropout_rate": 0.1}, "dot"),
    ],
)
def test_what_auto_is(
    platform: str, lengths: tuple[int, int], changes: dict[str, object], kernel: str
) -> None:
    config = dataclasses.replace(DOT, **({"attention": "auto"} | changes))
    with jax.sharding.use_abstract_mesh(mesh_of(platform)):
        assert attention_kernel(config, *lengths) == kernel


def test_auto_on_a_gpu() -> None:
    """The encoder, the decoder and its cross-attention use cuDNN's kernel, per device on a mesh."""
    config = dataclasses.replace(DOT, attention="auto", dtype="bfloat16")
    params = jax.eval_shape(lambda: init(config))
    batch = synthetic.batch(rows=1, encoder=128, decoder=64)
    with (
        jax.sharding.use_abstract_mesh(mesh_of("gpu")),
        mock.patch("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000),
    ):
        traced = str(jax.make_jaxpr(lambda params: loss(config, params, batch))(params))
    assert len(re.findall(r"= dot_product_attention_fwd\w*\[", traced)) == 3
    assert "= shard_map[" in traced


def test_decoding_with_a_cache_needs_no_splash() -> None:
    """A model trained with splash attention decodes rows of any length."""
    params = init(SPLASH)
    encoded = jnp.ones((1, 5, DOT.hidden_size))

    def step(config: PlugConfig) -> jax.Array:
        model = PlugModel(config, unstacked_layers=True)
        variables = {"params": split_layers(params)}
        cache = model.apply(variables, encoded, max_length=3, method="init_cache")
        return model.apply(variables, jnp.array([[7]]), cache, method="decode_step")[0]

    np.testing.assert_array_equal(step(SPLASH), step(DOT))


def compile_for_tpu() -> None:
    """Print a small model's compiled gradient on a v5e 2x2, and the bytes offloaded to the host."""
    from jax.experimental import topologies

    config = PlugConfig(
        vocab_size=1024,
        hidden_size=256,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        head_dim=64,
        mlp_dim=512,
        max_positions=1024,
        attention_dropout_rate=0.0,
        dtype="bfloat16",
        attention="splash",
        remat_policy="offload",
        remat_saved_names=("input", "qkv", "context", "out", "wi"),
    )
    devices = topologies.get_topology_desc("v5e:2x2", "tpu").devices
    partitioner = Partitioner(data=1, fsdp=2, tensor=2, devices=tuple(devices))
    with partitioner.context():
        boxed = jax.eval_shape(
            lambda: PlugModel(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))[
                "params"
            ]
        )
        shardings = partitioner.param_shardings(boxed)
        batch = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
            synthetic.batch(rows=4, encoder=LENGTH, decoder=LENGTH),
        )
        gradient = jax.jit(
            lambda params, batch: jax.grad(loss, argnums=1, has_aux=True)(config, params, batch)[0],
            in_shardings=(shardings, partitioner.batch_sharding),
            out_shardings=shardings,
        )
        compiled = gradient.lower(nn.unbox(boxed), batch).compile()
    print(compiled.as_text())
    print("host bytes:", compiled.memory_analysis().host_temp_size_in_bytes)


LENGTH = 640  # of rows; no parameter dimension is a multiple of 5


@pytest.mark.slow
def test_compiled_for_tpu() -> None:
    """Each device runs kernels on its own heads and rows, forward ones once; offload works."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }
    run = subprocess.run(
        [sys.executable, "-c", "from tests.models import test_attention as t; t.compile_for_tpu()"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    kernels = re.findall(r"%(splash_mha_(?:fwd|dkv))\S* = .* custom-call\(", run.stdout)
    forward, backward = (kernels.count(f"splash_mha_{phase}") for phase in ("fwd", "dkv"))
    assert forward == backward >= 3  # encoder, decoder, cross
    assert re.search(r"bf16\[2,2,640,64\]", run.stdout)  # [B / fsdp, H / tensor, Q, K]
    gathers = re.findall(r" = (.*) all-gather(?:-start)?\(", run.stdout)
    sizes = {int(n) for shape in gathers for n in re.findall(r"\d+(?=[],\d]*])", shape)}
    assert 256 in sizes  # parameters
    assert not [n for n in sizes if n % 5 == 0]  # activations
    assert int(run.stdout.split("host bytes:")[1]) > 0
