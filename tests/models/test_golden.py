"""The JAX model and the NumPy reference against outputs of the original PyTorch code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.models.plug import PlugModel
from tests import golden_weights, reference_model

TOLERANCE = 1e-4


def run_jax(config, params, inputs):
    """The outputs in a golden file, from our model."""
    model = PlugModel(config)

    @jax.jit
    def run(params, inputs):
        variables = {"params": params}
        segments = inputs["attention_mask"]
        hidden = model.apply(
            variables,
            inputs["input_ids"],
            token_types=inputs["token_type_ids"],
            segment_ids=segments,
            method="encode",
        )
        outputs = {
            "encoder_hidden": hidden,
            "mlm_logits": model.apply(variables, hidden, method="mlm_logits"),
            "sentence_logits": model.apply(variables, hidden[:, 0], method="sentence_logits"),
        }
        if "decoder_input_ids" in inputs:
            outputs["decoder_logits"] = model.apply(
                variables,
                inputs["decoder_input_ids"],
                hidden,
                encoder_segment_ids=segments,
                method="decode",
            )
        return outputs

    return run(params, jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), inputs))


def run_reference(config, params, inputs):
    """The same from the reference."""
    segments = inputs["attention_mask"]
    hidden = reference_model.encode(
        params,
        config,
        inputs["input_ids"],
        token_types=inputs["token_type_ids"],
        segment_ids=segments,
    )
    outputs = {
        "encoder_hidden": hidden,
        "mlm_logits": reference_model.mlm_logits(params, config, hidden),
        "sentence_logits": reference_model.sentence_logits(params, config, hidden[:, 0]),
    }
    if "decoder_input_ids" in inputs:
        outputs["decoder_logits"] = reference_model.decode(
            params, config, inputs["decoder_input_ids"], hidden, encoder_segment_ids=segments
        )
    return outputs


INPUTS = ("input_ids", "token_type_ids", "attention_mask", "decoder_input_ids")


def read_golden(path):
    with np.load(path) as file:
        arrays = dict(file)
    return {name: arrays.pop(name) for name in INPUTS if name in arrays}, arrays


def assert_matches(outputs, golden, attention_mask):
    """Every golden output, at positions that are not padding."""
    assert golden.keys() == outputs.keys()
    for name, expected in golden.items():
        found = np.asarray(outputs[name])[..., : expected.shape[-1]]
        if name in ("encoder_hidden", "mlm_logits"):
            found, expected = found[attention_mask == 1], expected[attention_mask == 1]
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parity
@pytest.mark.parametrize("run", [run_jax, run_reference])
@pytest.mark.parametrize(
    ("variant", "outputs", "final_norm_repeats"),
    [
        ("full", "golden.npz", 2),
        ("mp2", "golden.npz", 2),
        ("full", "golden_train.npz", 1),
        ("mp2_fp16", "golden_fp16weights.npz", 2),
    ],
)
def test_released_plug(golden_dir, run, variant, outputs, final_norm_repeats):
    directory = golden_dir / "plug_tiny"
    config, params = golden_weights.load_plug_tiny(
        directory, variant, final_norm_repeats=final_norm_repeats
    )
    inputs, golden = read_golden(directory / outputs)
    assert_matches(run(config, params, inputs), golden, inputs["attention_mask"])


@pytest.mark.parity
def test_merged_ranks_equal_the_whole_checkpoint(golden_dir):
    # Outputs do not depend on key biases, so the parameters themselves are compared.
    directory = golden_dir / "plug_tiny"
    _, whole = golden_weights.load_plug_tiny(directory, "full", final_norm_repeats=1)
    _, merged = golden_weights.load_plug_tiny(directory, "mp2", final_norm_repeats=1)
    jax.tree.map(np.testing.assert_array_equal, merged, whole)


@pytest.mark.parametrize("run", [run_jax, run_reference])
def test_hugging_face_structbert(golden_dir, run):
    directory = golden_dir / "structbert_hf"
    config, params = golden_weights.load_structbert(directory)
    inputs, golden = read_golden(directory / "golden.npz")
    outputs = {
        "encoder_hidden": golden["last_hidden_state"],
        "mlm_logits": golden["mlm_logits"],
        "sentence_logits": golden["seq_relationship_logits"],
    }
    assert_matches(run(config, params, inputs), outputs, inputs["attention_mask"])
