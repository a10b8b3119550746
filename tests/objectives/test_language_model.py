"""The GPT-3-style baseline: one text of two, read by a decoder alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.config import PlugConfig
from plug_jax.errors import PlugError
from plug_jax.inference.model import check_decoder
from plug_jax.metrics import add
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import check_objectives, evaluation_metrics
from plug_jax.objectives.continuation import Continuation
from plug_jax.objectives.language_model import LanguageModel, one_text
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.planning.flops import model_flops

CLS, SEP, MASK = 1, 2, 3
ALONE = PlugConfig(
    vocab_size=50,
    vocab_multiple=1,
    hidden_size=8,
    num_encoder_layers=0,
    num_decoder_layers=2,
    num_heads=2,
    head_dim=4,
    mlp_dim=32,
    max_positions=16,
    init_std=0.5,  # so that texts differ noticeably
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
)
FIRST = ([CLS, 10, 11, SEP], [20, SEP])
SECOND = ([CLS, 12, SEP], [21, 22, SEP])


def row(*examples, encoder=8, decoder=6):
    """A batch of one row of packed (text, target) pairs; the encoder's text is masked."""
    features = {
        "encoder_input_tokens": [],
        "encoder_original_tokens": [],
        "encoder_token_types": [],
        "encoder_loss_weights": [],
        "encoder_segment_ids": [],
        "encoder_positions": [],
        "decoder_input_tokens": [],
        "decoder_target_tokens": [],
        "decoder_loss_weights": [],
        "decoder_segment_ids": [],
        "decoder_positions": [],
    }
    for number, (text, target) in enumerate(examples, start=1):
        features["encoder_original_tokens"] += text
        features["encoder_input_tokens"] += [CLS, *[MASK] * (len(text) - 2), SEP]
        features["encoder_token_types"] += [0] * len(text)
        features["encoder_loss_weights"] += [0] * len(text)
        features["decoder_input_tokens"] += [CLS, *target[:-1]]
        features["decoder_target_tokens"] += target
        features["decoder_loss_weights"] += [1] * len(target)
        for side, tokens in (("encoder", text), ("decoder", target)):
            features[f"{side}_segment_ids"] += [number] * len(tokens)
            features[f"{side}_positions"] += range(len(tokens))
    lengths = {"encoder": encoder, "decoder": decoder}
    return {
        name: jnp.array([values + [0] * (lengths[name[:7]] - len(values))], jnp.int32)
        for name, values in features.items()
    }


@pytest.fixture(scope="module")
def params():
    tokens = jnp.ones((1, 1), jnp.int32)
    return nn.unbox(PlugModel(ALONE).init(jax.random.key(0), tokens))["params"]


def scores(params, *examples):
    batch = row(*examples)
    return add([evaluation_metrics((LanguageModel(),), PlugModel(ALONE), params, batch)])


def test_worked_example():
    text = {name: np.asarray(values)[0].tolist() for name, values in one_text(row(FIRST)).items()}
    assert text["input_tokens"] == [CLS, 10, 11, SEP, 0, 0, 0, 0, CLS, 20, 0, 0, 0, 0]
    assert text["segment_ids"] == [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert text["loss_weights"] == [1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    weighted = [t for t, w in zip(text["targets"], text["loss_weights"], strict=True) if w]
    assert weighted == [10, 11, SEP, 20, SEP]
    assert text["positions"][:4] == [0, 1, 2, 3]
    assert text["positions"][8:10] == [4, 5]


def test_a_full_row_does_not_go_on_at_its_beginning():
    weights = one_text(row(FIRST, encoder=4, decoder=2))["loss_weights"]
    assert weights[0].tolist() == [1, 1, 1, 0, 1, 1]


def test_packed_examples_score_what_they_score_alone(params):
    packed = scores(params, FIRST, SECOND)
    alone = [scores(params, one) for one in (FIRST, SECOND)]
    for name in ("language_model_loss", "decoder_loss", "decoder_accuracy"):
        assert packed[name].total == pytest.approx(sum(one[name].total for one in alone), rel=1e-5)
        assert packed[name].weight == sum(one[name].weight for one in alone)
    assert packed["language_model_loss"].weight == 3 + 2 + 2 + 3
    assert packed["decoder_loss"].weight == 2 + 3


def test_padding_of_any_length_has_positions_in_the_table(params):
    """In a row of 24 + 6 tokens, and in the empty one at the end of an evaluation."""
    padded = row(FIRST, encoder=24)
    batch = {name: jnp.concatenate([ids, jnp.zeros_like(ids)]) for name, ids in padded.items()}
    assert int(one_text(batch)["positions"].max()) == 5
    found = add([evaluation_metrics((LanguageModel(),), PlugModel(ALONE), params, batch)])
    expected = scores(params, FIRST)
    for name in ("language_model_loss", "decoder_loss"):
        assert found[name].total == pytest.approx(float(expected[name].total), rel=1e-5)


def test_what_follows_is_predicted_from_the_text_as_it_was_written(params):
    other_text = ([CLS, 13, 11, SEP], FIRST[1])
    assert scores(params, FIRST)["decoder_loss"].total != pytest.approx(
        scores(params, other_text)["decoder_loss"].total, rel=1e-4
    )


def test_no_token_sees_what_comes_after_it(params):
    """Later tokens change; the loss of the first text does not."""
    other_target = (FIRST[0], [30, 31])
    one, other = (scores(params, example) for example in (FIRST, other_target))

    def of_first_text(metrics):
        return metrics["language_model_loss"].total - metrics["decoder_loss"].total

    assert of_first_text(one) == pytest.approx(of_first_text(other), rel=1e-5)


def test_the_model_is_a_decoder_without_cross_attention(params):
    assert set(params) == {"embeddings", "decoder"}
    assert set(params["decoder"]["layers"]) == {
        "self_attention",
        "self_attention_norm",
        "mlp",
        "mlp_norm",
    }


def test_flops_by_hand():
    """M = H K = 8, F = 32, V = 50; 3 rows of 8 + 6 tokens through two layers."""
    flops = model_flops(ALONE, (LanguageModel(),), {"encoder": 8, "decoder": 6}, batch_size=3)
    assert flops.parts["encoder"] == 0
    assert flops.parts["decoder"] == 2 * 2 * (3 * 14) * (4 * 64 + 512)
    assert flops.parts["attention"] == 4 * 8 * 3 * 14 * 14 * 2 // 2
    assert flops.parts["decoder_logits"] == 2 * (3 * 14) * 8 * 50


def test_objectives_and_models_that_do_not_fit_each_other():
    with pytest.raises(PlugError, match="MaskedLM, Continuation read the states of an encoder"):
        check_objectives((MaskedLM(), Continuation()), ALONE)
    with_encoder = PlugConfig(**{**ALONE.to_dict(), "num_encoder_layers": 1})
    with pytest.raises(PlugError, match="LanguageModel is for a decoder-only model"):
        check_objectives((LanguageModel(),), with_encoder)
    check_objectives((LanguageModel(),), ALONE)
    with pytest.raises(PlugError, match="a model needs layers"):
        PlugConfig(**{**ALONE.to_dict(), "num_decoder_layers": 0})


def test_it_writes_no_texts():
    with pytest.raises(PlugError, match="a decoder alone"):
        check_decoder(ALONE)
