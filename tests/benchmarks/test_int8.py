"""`plug-jax bench int8` on models whose figures are known."""

import pytest

from plug_jax.benchmarks import int8
from plug_jax.errors import PlugError
from plug_jax.inference.model import InferenceModel
from plug_jax.inference.quantization import quantize
from tests.inference_model import CONFIG, Letters, lively_model, lively_params


class Source:
    """Documents in memory."""

    def __init__(self, texts):
        self._texts = texts

    def get_dataset(self, split, shuffle):
        assert (split, shuffle) == ("train", False)
        return self

    def as_numpy_iterator(self):
        return ({"text": text.encode()} for text in self._texts)


def pairs(documents, *, target_tokens=4, texts=9):
    return int8.continuations(
        Source(documents),
        Letters(),
        prompt_characters=3,
        target_tokens=target_tokens,
        texts=texts,
    )


def test_pairs_of_beginnings_and_what_follows():
    found = pairs(["ABCDEFGHIJ", "ABCDEF", "ZYXWVUT"])
    assert found == [("ABC", Letters().encode("DEFG")), ("ZYX", Letters().encode("WVUT"))]
    assert pairs(["ABCDEFGHIJ", "ZYXWVUT"], texts=1) == found[:1]
    with pytest.raises(PlugError, match="no document has 40 tokens after 3 characters"):
        pairs(["ABCDEFGHIJ"], target_tokens=40)


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.setattr("plug_jax.benchmarks.writers._PROMPT", "HELLO")
    texts = pairs(["ABCDEFGHIJ", "ZYXWVUTSRQ", "HELLOHELLO"], target_tokens=6)

    def run(load):
        monkeypatch.setattr(InferenceModel, "load", load)
        return int8.measure(
            "checkpoint", texts, batches=[3], new_tokens=6, passes=1, report=lambda line: None
        )

    return run


def test_a_model_agrees_with_itself(measure):
    results = measure(lambda checkpoint, **options: lively_model())
    assert results["texts"] == 3
    assert results["perplexity"]["int8"] == results["perplexity"]["float32"] > 1
    assert results["log_likelihood_difference"] == {"mean": 0, "largest": 0}
    assert results["likeliest_token_agreement"] == 1
    assert results["greedy"] == {"same_texts": 1, "tokens_before_first_difference": 1}


def test_int8_beside_float32(measure):
    def load(checkpoint, *, dtype, int8=False):
        assert (checkpoint, dtype) == ("checkpoint", "float32")
        params = quantize(lively_params(CONFIG)) if int8 else lively_params(CONFIG)
        return InferenceModel(CONFIG, params, Letters())

    results = measure(load)
    sizes = results["parameter_bytes"]
    assert sizes["int8"] < 0.5 * sizes["float32"]
    difference = results["log_likelihood_difference"]
    assert 0 < difference["mean"] < difference["largest"] < 0.5
    assert 0.8 < results["likeliest_token_agreement"] <= 1
    (speed,) = results["speed"]
    assert speed["times_float32"] == pytest.approx(
        speed["int8"]["tokens_per_second"] / speed["float32"]["tokens_per_second"]
    )
