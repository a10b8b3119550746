"""int8 kernels: the integers, rounding bounds, and their use by models."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.errors import PlugError
from plug_jax.inference.generator import generate
from plug_jax.inference.model import InferenceModel
from plug_jax.inference.quantization import quantize
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.models.decoder import split_layers
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner
from tests.inference_model import CONFIG, Letters, lively_model, lively_params

GREEDY = GenerationOptions(max_new_tokens=24, temperature=0.0)
PROMPTS = ["HELLO", "ABC", "PQRSTUV", "ZEBRA"]


def is_quantized(leaf):
    return hasattr(leaf, "qvalue")


def kernels(params):
    """The int8 kernels of a tree, by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_quantized)
        if is_quantized(leaf)
    }


def dequantized(params):
    """The float parameters of an int8 tree, dequantized by hand."""

    def floats(leaf):
        if is_quantized(leaf):
            return np.asarray(leaf.qvalue) * np.asarray(leaf.scale)
        return leaf

    return jax.tree.map(floats, params, is_leaf=is_quantized)


def int8_model(config=CONFIG):
    return InferenceModel(config, quantize(lively_params(config)), Letters())


def texts(model):
    return [text for (text,) in generate(model, PROMPTS, GREEDY)]


def test_a_kernel_by_hand():
    kernel = np.array([[1.0, -0.5], [-0.5, 0.1]], np.float32)
    projection = {"kernel": kernel, "bias": np.zeros(2, np.float32)}
    quantized = quantize({"encoder": {"wi": projection}})["encoder"]["wi"]["kernel"]
    np.testing.assert_allclose(quantized.scale, [[1 / 127.5, 0.5 / 127.5]], rtol=1e-6)
    np.testing.assert_array_equal(quantized.qvalue, [[127, -127], [-64, 25]])


def test_every_projection_of_encoder_and_decoder_has_int8_and_nothing_else():
    params = lively_params(CONFIG)
    quantized = quantize(params)
    found = kernels(quantized)
    assert found.keys() == {
        f"{layers}/{projection}/kernel"
        for layers, projections in (
            ("encoder/layers", ("attention/qkv", "attention/out", "mlp/wi", "mlp/wo")),
            (
                "decoder/layers",
                (
                    "self_attention/qkv",
                    "self_attention/out",
                    "cross_attention/query",
                    "cross_attention/key_value",
                    "cross_attention/out",
                    "mlp/wi",
                    "mlp/wo",
                ),
            ),
        )
        for projection in projections
    }
    assert all(leaf.qvalue.dtype == jnp.int8 for leaf in found.values())
    # A scale for each layer and output channel, over all inputs.
    layers, model, heads, head = 2, CONFIG.hidden_size, CONFIG.num_heads, CONFIG.head_dim
    qkv = found["decoder/layers/self_attention/qkv/kernel"]
    assert qkv.scale.shape == (layers, 1, 3, heads, head)
    assert found["decoder/layers/self_attention/out/kernel"].scale.shape == (layers, 1, 1, model)
    for name in ("embeddings", "mlm_head", "sentence_head"):
        assert quantized[name] is params[name]


def test_no_weight_is_off_by_more_than_half_a_scale():
    params = lively_params(CONFIG)
    quantized = quantize(params)
    for path, leaf in kernels(quantized).items():
        kernel = params
        for name in path.split("/"):
            kernel = kernel[name]
        scale = np.asarray(leaf.scale)
        error = np.abs(np.asarray(leaf.qvalue) * scale - kernel)
        # The largest weight of a channel would be 127.5, and is 127.
        assert np.all(error <= 0.5001 * scale), path


@pytest.mark.parametrize("norm_placement", ["pre", "post"])
def test_the_model_computes_with_what_the_integers_mean(norm_placement):
    config = dataclasses.replace(CONFIG, norm_placement=norm_placement)
    quantized = quantize(lively_params(config))
    meant = InferenceModel(config, dequantized(quantized), Letters())
    for text, expected in zip(
        texts(InferenceModel(config, quantized, Letters())), texts(meant), strict=True
    ):
        assert text.ids == expected.ids
        np.testing.assert_allclose(text.log_probs, expected.log_probs, rtol=1e-4, atol=1e-5)


def test_the_texts_are_much_like_those_of_floats():
    prompts = [lively_model().prompt_ids(prompt) for prompt in PROMPTS]
    targets = [[text.ids] for text in texts(lively_model())]
    expected, scores = (
        np.concatenate([of for (of,) in model.log_likelihoods(prompts, targets)])
        for model in (lively_model(), int8_model())
    )
    assert len(scores) > 60
    assert 0 < np.mean(np.abs(scores - expected)) < 0.05


def test_kernels_lie_in_memory_as_int8():
    floats, integers = lively_model().params, int8_model().params
    numbers = sum(leaf.qvalue.size for leaf in kernels(integers).values())
    scales = sum(leaf.scale.size for leaf in kernels(integers).values())
    assert numbers > 30_000
    assert _bytes(floats) - _bytes(integers) == 4 * numbers - (numbers + 4 * scales)


def test_the_floats_are_given_back_one_by_one():
    params = jax.tree.map(jnp.asarray, lively_params(CONFIG))
    bias = params["encoder"]["layers"]["mlp"]["wi"]["bias"]
    kernel = params["encoder"]["layers"]["mlp"]["wi"]["kernel"]
    quantize(params)
    assert kernel.is_deleted()
    assert not bias.is_deleted()


def test_on_a_mesh_it_is_the_same_model():
    partitioner = Partitioner(data=2, fsdp=2, tensor=2)
    shardings = partitioner.param_shardings(abstract_params(PlugModel(CONFIG)))
    params = jax.tree.map(jax.device_put, lively_params(CONFIG), shardings)
    quantized = quantize(params)
    for path, leaf in kernels(quantized).items():
        sharding = shardings
        for name in path.split("/"):
            sharding = sharding[name]
        assert leaf.qvalue.sharding.is_equivalent_to(sharding, leaf.ndim), path
        assert leaf.scale.sharding.device_set == sharding.device_set, path
    single = split_layers(quantize(lively_params(CONFIG)))
    jax.tree.map(np.testing.assert_array_equal, split_layers(quantized), single)
    sharded = InferenceModel(CONFIG, quantized, Letters(), partitioner)
    for text, expected in zip(texts(sharded), texts(int8_model()), strict=True):
        assert text.ids == expected.ids
        np.testing.assert_allclose(text.log_probs, expected.log_probs, rtol=1e-4, atol=1e-5)


def test_beams_and_scores_read_it_too():
    model = int8_model()
    options = GenerationOptions(max_new_tokens=8, num_beams=3)
    ((best,),) = generate(model, ["HELLO"], options)
    ids = [*best.ids, *([Letters.sep_id] if best.stopped else [])]
    ((scores,),) = model.log_likelihoods([model.prompt_ids("HELLO")], [[ids]])
    np.testing.assert_allclose(sum(scores), best.log_prob, rtol=1e-4)


def test_without_qwix_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(PlugError, match=r"pip install 'plug-jax\[int8\]'"):
        quantize(lively_params(CONFIG))


def _bytes(params):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
