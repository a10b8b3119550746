"""`plug-jax bench decode` and `bench int8` on minimal models."""

import json

import numpy as np
import pytest

from plug_jax.benchmarks import decode
from plug_jax.benchmarks.writers import Cached, Uncached, Way
from plug_jax.cli import bench_decode, main
from plug_jax.errors import PlugError
from tests.inference_model import CONFIG, lively_model


class Scripted(Way):
    """Writes a fixed text, and records its calls."""

    def __init__(self, name, text, calls):
        self.name, self.tokens, self._text, self._calls = name, 4, text, calls

    def write(self):
        self._calls.append(self.name)
        return np.array([self._text])


@pytest.fixture(autouse=True)
def letters_of_the_prompt(monkeypatch):
    monkeypatch.setattr("plug_jax.benchmarks.writers._PROMPT", "HELLO")


def test_with_and_without_a_cache_the_same_is_written():
    batch = 2
    cached = Cached(lively_model(), batch, 12, None).write()
    uncached = Uncached(lively_model(), batch, 12)
    written = uncached.write()
    assert cached.shape == (batch, 12)
    assert uncached.tokens == written.size == batch * 4
    np.testing.assert_array_equal(written, cached[:, :4])
    assert len(set(cached[0].tolist())) > 3


def test_passes_are_interleaved_after_a_first_call_of_each():
    calls = []
    ways = [Scripted("a", [1], calls), Scripted("b", [1], calls)]
    speeds = decode.timed(ways, passes=2, report=lambda line: None)
    assert "".join(calls) == "ab" + "ab" * 2
    assert [(speed.name, speed.tokens, len(speed.seconds)) for speed in speeds] == [
        ("a", 4, 2),
        ("b", 4, 2),
    ]


def test_medians_and_ranges():
    speed = decode.DecodeSpeed("a", 60, (1.0, 6.0, 2.0), (4.0, 5.0, 9.0), 7.0)
    assert speed.to_json() == {
        "tokens_per_second": 30.0,
        "tokens_per_second_range": [10.0, 60.0],
        "tokens_per_core_second": 12.0,
        "first_call_seconds": 7.0,
    }


def test_nothing_is_timed_when_the_texts_differ(monkeypatch):
    calls = []
    monkeypatch.setattr(decode, "Cached", lambda *args: Scripted("cached", [1, 2, 3, 4], calls))
    monkeypatch.setattr(decode, "Uncached", lambda *args: Scripted("uncached", [1, 9], calls))
    monkeypatch.setattr(decode, "pytorch_is_installed", lambda: False)
    with pytest.raises(PlugError, match=r"writes \[\[1, 2\]\], without the cache it is \[\[1, 9"):
        decode.measure(
            lively_model(), batch=1, new_tokens=4, top_k=None, passes=3, report=lambda line: None
        )
    assert calls == ["cached", "uncached"]


def test_sizes():
    config = decode.config_of("128x3", vocab_size=500, max_positions=64)
    assert (config.hidden_size, config.num_encoder_layers, config.num_decoder_layers) == (128, 3, 3)
    assert (config.num_heads, config.head_dim, config.mlp_dim) == (2, 64, 512)
    for wrong in ("100x2", "128", "128x0", "0x2", "large"):
        with pytest.raises(PlugError, match=f"not '{wrong}'"):
            decode.config_of(wrong, vocab_size=500, max_positions=64)


def test_the_command_without_pytorch(monkeypatch, capsys):
    monkeypatch.setattr(decode, "pytorch_is_installed", lambda: False)
    monkeypatch.setattr(decode, "random_model", lambda config, vocabulary: lively_model())
    command = ["bench", "decode", "64x1", "--batches", "2", "--new_tokens", "12", "--passes", "1"]
    assert main.main([*command, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    greedy, drawn = results["runs"]
    assert (greedy["size"], greedy["batch"], greedy["draw"]) == ("64x1", 2, "greedy")
    assert greedy["times_uncached"] == pytest.approx(
        greedy["cached"]["tokens_per_second"] / greedy["uncached"]["tokens_per_second"]
    )
    assert drawn["draw"] == "top-k 20"
    assert "uncached" not in drawn
    assert "pip install 'plug-jax[parity]'" in results["hugging_face"]
    bench_decode._print_table(results)
    assert "not measured" in capsys.readouterr().out


def test_wrong_options(capsys):
    assert main.main(["bench", "decode", "--new_tokens", "0"]) == 2
    assert "--new_tokens must be at least 1, not 0" in capsys.readouterr().err


@pytest.mark.parity
def test_hugging_face_writes_as_many_tokens():
    from plug_jax.benchmarks.writers import HuggingFace

    for top_k in (None, 20):
        way = HuggingFace(lively_model(), 2, 8, top_k)
        texts = way.write()
        assert texts.shape == (2, 8)
        assert way.tokens == 16
        config = way._model.config
        assert config.d_model == CONFIG.hidden_size
        assert config.decoder_layers == CONFIG.num_decoder_layers
