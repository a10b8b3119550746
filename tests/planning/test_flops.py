"""Model FLOPs by hand and against jax's trace; executed FLOPs of loops, remat and kernels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.config import PlugConfig
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.continuation import Continuation
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.sentence_structural import SentenceStructural
from plug_jax.planning.flops import dot_flops, executed_flops, model_flops
from tests import synthetic

SMALL = PlugConfig(
    vocab_size=60,
    vocab_multiple=1,
    hidden_size=8,
    num_encoder_layers=3,
    num_decoder_layers=2,
    num_heads=2,
    head_dim=4,
    mlp_dim=32,
    max_positions=64,
)
MASKED_LM = MaskedLM(capacity=0.25)
STAGE1, STAGE2 = (MASKED_LM, SentenceStructural()), (MASKED_LM, Continuation())


def traced_flops(function, *args):
    return executed_flops(jax.make_jaxpr(function)(*args).jaxpr)


def test_worked_example_of_stage_2():
    """M = H K = 8, F = 32, V = 60; 2 rows of E = 16 and D = 4; P = 4 predictions a row."""
    flops = model_flops(SMALL, STAGE2, {"encoder": 16, "decoder": 4}, batch_size=2)
    # A matmul parameter costs 2 FLOPs a token. Encoder layer: qkv 3 x 64, out 64, MLP 2 x 256.
    assert flops.parts["encoder"] == 2 * (2 * 16) * 3 * (4 * 64 + 512)
    # Decoder layer: self 4 x 64, cross query and out 2 x 64, MLP; cross keys and values of E.
    assert flops.parts["decoder"] == 2 * 2 * ((2 * 4) * (6 * 64 + 512) + (2 * 16) * 2 * 64)
    # Scores and values: 2 x 2 x 8 a pair; 16 x 16 pairs; half of 4 x 4 and all of 4 x 16.
    assert flops.parts["attention"] == 32 * 2 * (3 * 256 + 2 * (8 + 64))
    assert flops.parts["mlm_head"] == 2 * (2 * 4) * (64 + 8 * 60)
    assert flops.parts["decoder_logits"] == 2 * (2 * 4) * 8 * 60
    assert "sentence_head" not in flops.parts
    assert flops.train_step == 3 * flops.forward


def test_six_times_parameters_times_tokens():
    """The 27B model, stage 1: 6 N per token, N the parameters of its layers, without attention."""
    config = synthetic.plug_27b(num_decoder_layers=0)
    flops = model_flops(config, STAGE1, {"encoder": 512}, batch_size=4)
    layers = 24 * (4 * 8192 * 8192 + 2 * 8192 * 32768)
    assert 3 * flops.parts["encoder"] == 6 * layers * 4 * 512
    assert (
        3 * flops.parts["attention"] == 12 * 24 * 8192 * 512 * 4 * 512
    )  # 12 L H K a pair of tokens
    assert set(flops.parts) == {"encoder", "attention", "mlm_head", "sentence_head"}
    assert flops.parts["sentence_head"] == 2 * 8192 * 3 * 4 * 512


@pytest.mark.parametrize("pooler", [False, True])
def test_the_formula_is_what_jax_traces(pooler):
    """Forward passes without remat; the trace has the decoder's causal squares in full."""
    config = PlugConfig(**{**SMALL.to_dict(), "use_pooler": pooler})
    model = PlugModel(config)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nn.unbox(abstract_params(model)))
    rows, length, short, predictions = 2, 16, 4, 4

    def apply(method, *args):
        return model.apply({"params": params}, *args, method=method)

    tokens = jnp.zeros((rows, length), jnp.int32)
    encoded = jnp.zeros((rows, length, 8))
    stage1 = model_flops(config, STAGE1, {"encoder": length}, rows)
    assert (
        traced_flops(lambda t: apply("encode", t), tokens)
        == stage1.parts["encoder"] + stage1.parts["attention"]
    )
    assert (
        traced_flops(lambda e: apply("mlm_logits", e[:, :predictions]), encoded)
        == stage1.parts["mlm_head"]
    )
    assert (
        traced_flops(lambda e: apply("sentence_logits", e), encoded)
        == stage1.parts["sentence_head"]
    )

    stage2 = model_flops(config, STAGE2, {"encoder": length, "decoder": short}, rows)
    causal = 2 * 4 * 8 * rows * short * short // 2  # the masked half, of 2 layers
    assert traced_flops(lambda t, e: apply("decode", t, e), tokens[:, :short], encoded) == (
        stage2.parts["decoder"]
        + (stage2.parts["attention"] - stage1.parts["attention"])
        + causal
        + stage2.parts["decoder_logits"]
    )


def test_dot_flops():
    # "bij,bkj->bik": 2 x 5 batch x 3 rows x 7 columns x 11 contracted
    assert dot_flops((5, 3, 11), (5, 7, 11), (((2,), (2,)), ((0,), (0,)))) == 2 * 5 * 3 * 7 * 11


X = jnp.zeros((4, 4))
DOT = 2 * 4 * 4 * 4


def test_a_scan_counts_as_often_as_it_runs():
    def inner(x, _):
        return x @ x, None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, length=5)[0], None

    assert traced_flops(lambda x: jax.lax.scan(outer, x, None, length=3)[0], X) == 15 * DOT


def test_remat_counts_again():
    def layers(x):
        return jnp.sum(jnp.sin(jnp.sin(x @ x) @ x))

    # Backward: two derivatives per matmul. Remat: the first matmul again, for its sine.
    plain = traced_flops(jax.grad(layers), X)
    assert plain == 6 * DOT
    assert traced_flops(jax.grad(jax.checkpoint(layers)), X) > plain


def test_of_branches_the_costliest():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert traced_flops(either, X) == 2 * DOT


def test_a_kernel_counts_its_grid_or_what_it_says():
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...] @ x_ref[...]

    def call(**options):
        shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
        return pl.pallas_call(kernel, out_shape=shape, grid=(2, 3), **options)

    assert traced_flops(call(), X) == 6 * DOT
    estimate = pl.CostEstimate(flops=77, transcendentals=0, bytes_accessed=0)
    assert traced_flops(call(cost_estimate=estimate), X) == 77


def test_shard_map_counts_every_device():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows = jax.P("a")
    product = jax.shard_map(
        lambda x: x @ x.T, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
    )
    # [1, 4] x [4, 1] on each of 8 devices: rows are over a, and b computes the same twice.
    assert traced_flops(product, X) == 8 * 2 * 4
