"""/v1/embeddings and /v1/classify over real sockets."""

from __future__ import annotations

import base64
import concurrent.futures
import math
import threading

import jax
import numpy as np
import pytest

import plug_jax
from plug_jax.clue.tasks import find_task
from plug_jax.inference.encoder import EncoderModel
from plug_jax.inference.encoding import Embedding
from plug_jax.inference.prediction import Prediction
from plug_jax.inference.request_options import EmbeddingOptions
from plug_jax.serving.reader import Reader, Reading
from plug_jax.tasks.clue import clue_format
from tests.downstream.tiny_encoder import write_fine_tuned
from tests.serving.reading import NAME, reading


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / NAME
    format = clue_format(find_task("afqmc"), 32)
    return plug_jax.load(write_fine_tuned(directory, "clue_afqmc", format))


@pytest.fixture(scope="module")
def client(model):
    with reading(model) as (client, _):
        yield client


def answer(client, path, **body):
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_embeddings_have_openai_s_form(client, model):
    said = answer(client, "embeddings", input="怎么还款", model=NAME)
    assert said.keys() == {"object", "data", "model", "usage"}
    assert (said["object"], said["model"]) == ("list", NAME)
    assert said["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    [one] = said["data"]
    assert (one["object"], one["index"], one.keys()) == (
        "embedding",
        0,
        {"object", "index", "embedding"},
    )
    np.testing.assert_allclose(one["embedding"], model.embed("怎么还款"), atol=1e-5)


def test_embeddings_of_a_list_as_base64(client, model):
    """The request of OpenAI's Python client."""
    texts = ["怎么还款", "还款的方法是什么", "怎"]
    said = answer(client, "embeddings", input=texts, encoding_format="base64", normalize=True)
    assert [one["index"] for one in said["data"]] == [0, 1, 2]
    found = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in said["data"]]
    np.testing.assert_allclose(found, model.embed(texts, normalize=True), atol=1e-5)
    by_cls = answer(client, "embeddings", input="怎么", pooling="cls", dimensions=32, user="u")
    np.testing.assert_allclose(
        by_cls["data"][0]["embedding"], model.embed("怎么", pooling="cls"), atol=1e-5
    )
    cut = answer(client, "embeddings", input="怎" * 40, max_length=12)
    assert cut["data"][0]["left_out"] == 30


def test_labels_are_those_of_classify(client, model):
    said = answer(client, "classify", input="怎么还款")
    expected = model.classify("怎么还款")
    assert said["data"][0]["prediction"] == expected.prediction
    assert said["data"][0]["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert said["usage"]["total_tokens"] == 4
    pairs = [{"text": "怎么还款", "text_pair": "还款的方法"}, {"text": "怎"}]
    said = answer(client, "classify", input=pairs)
    assert [one["object"] for one in said["data"]] == ["classification"] * 2
    expected = model.classify("怎么还款", "还款的方法")
    assert said["data"][0]["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert said["usage"]["total_tokens"] == 4 + 5 + 1


def test_what_is_cut_from_a_text_is_said(client, model):
    """The model was fine-tuned on texts of 32 tokens: [CLS], 29 of a pair, [SEP] twice."""
    long = [{"text": "怎" * 30}, {"text": "怎" * 31}, {"text": "怎" * 40, "text_pair": "怎" * 20}]
    said = answer(client, "classify", input=long)
    assert [one.get("left_out", 0) for one in said["data"]] == [0, 1, 60 - 29]
    assert said["usage"]["total_tokens"] == 30 + 30 + 29
    assert model.classify("怎" * 40, "怎" * 20).left_out == 31
    assert model.classify("怎" * 20, "怎" * 20).left_out == 11  # of both, which are equal


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("embeddings", {}, 400, "input is missing"),
        ("embeddings", {"input": []}, 400, "input is an empty list"),
        ("embeddings", {"input": [1, 2]}, 400, "token ids are not supported"),
        ("embeddings", {"input": "a", "model": "gpt"}, 404, "there is no model 'gpt' here"),
        ("embeddings", {"input": "a", "encoding_format": "hex"}, 400, "one of float, base64"),
        ("embeddings", {"input": "a", "dimensions": 8}, 400, "vectors of this model have 32"),
        ("embeddings", {"input": "a", "pooling": "max"}, 400, "one of 'mean', 'cls'"),
        ("embeddings", {"input": "a", "max_length": 999}, 400, "between 3 and 128"),
        ("embeddings", {"input": "a", "temperature": 1}, 400, "unknown field 'temperature'"),
        ("embeddings", {"input": ["a", " "]}, 400, "input 1: the text has no tokens"),
        ("embeddings", {"input": "怎" * 200}, 400, "the text has 200 tokens"),
        ("embeddings", {"input": ["a"] * 13}, 400, "has 13 texts; at most 12 here"),
        ("classify", {"input": {"text_pair": "a"}}, 400, "input must be a string"),
        ("classify", {"input": "a", "labels": ["b"]}, 400, "unknown field 'labels'"),
        ("completions", {"prompt": "a"}, 404, "Not Found"),
    ],
)
def test_a_bad_request_is_answered_with_what_is_wrong(client, path, body, status, message):
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("embeddings", {"pooling": "max"}, "pooling", "pooling must be one of 'mean', 'cls'"),
        ("embeddings", {"pooling": 1}, "pooling", "pooling must be one of 'mean', 'cls'"),
        ("embeddings", {"normalize": 1}, "normalize", "normalize must be true or false"),
        ("embeddings", {"max_length": 2}, "max_length", "max_length is 2; it must be between 3"),
        ("embeddings", {"max_length": 3.0}, "max_length", "max_length must be an integer"),
        ("embeddings", {"max_length": True}, "max_length", "max_length must be an integer"),
        ("embeddings", {"max_length": 10**4000}, "max_length", "0... (4,001 characters); it must"),
        ("embeddings", {"dimensions": 32.0}, "dimensions", "dimensions must be an integer"),
        ("embeddings", {"dimensions": 10**4000}, "dimensions", "... (4,001 characters); vectors"),
        ("embeddings", {"encoding_format": []}, "encoding_format", "must be a string"),
        ("embeddings", {"user": 1}, "user", "user must be a string"),
        ("embeddings", {"a" * 5000: 1}, f"{'a' * 200}... (5,000 characters)", "unknown field 'aaa"),
        ("embeddings", {"input": {}}, "input", "input must be a string"),
        ("embeddings", {"model": "x" * 5000}, "model", "x'... (5,000 characters) here, only"),
        ("classify", {"user": 1}, "user", "user must be a string"),
        ("classify", {"model": 1}, "model", "model must be a string"),
        ("classify", {"input": [{"text": 1}]}, "input", "input must be a string"),
    ],
)
def test_the_wrong_field_is_the_error_s_param(client, path, body, param, message):
    error = client.post(f"/v1/{path}", json={"input": "怎", **body}).json()["error"]
    assert error["param"] == param
    assert message in error["message"] and len(error["message"]) < 400


def test_a_number_too_long_to_be_read_is_said_to_be_so(client):
    body = b'{"input": "a", "max_length": %s}' % (b"9" * 10_000)
    headers = {"Content-Type": "application/json"}
    error = client.post("/v1/embeddings", content=body, headers=headers).json()["error"]
    assert error["message"] == (
        "the body is not JSON: a number of 10,000 digits is more than can be read"
    )


def test_the_other_routes(client, model):
    [described] = client.get("/v1/models").json()["data"]
    assert described["id"] == NAME
    assert (described["embedding_size"], described["max_prompt_tokens"]) == (32, 126)
    assert described["labels"] == ["0", "1"]
    assert client.get(f"/v1/models/{NAME}").json() == described
    assert client.get("/health").json()["status"] == "ok"
    page = client.get("/")
    assert page.status_code == 200 and "{{" not in page.text
    assert page.headers["content-security-policy"].count("'sha256-") == 2
    with reading(model, labels=False) as (other, _):
        assert "labels" not in other.get("/v1/models").json()["data"][0]
        assert other.post("/v1/classify", json={"input": "a"}).status_code == 404


def test_those_that_wait_are_read_together(model):
    with (
        reading(model, max_queue=4) as (client, reader),
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        reader.open.clear()
        texts = ["怎么还款", "还款", "怎", "么", "款"]
        asked = [pool.submit(answer, client, "embeddings", input=text) for text in texts]
        labels = pool.submit(answer, client, "classify", input=["还", "款"])
        while sum(reader.counts()) < 7:
            threading.Event().wait(0.01)
        full = client.post("/v1/embeddings", json={"input": ["a", "b"]})
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        reader.open.set()
        for text, one in zip(texts, asked, strict=True):
            found = one.result()["data"][0]["embedding"]
            np.testing.assert_allclose(found, model.embed(text), atol=1e-5)
        assert len(labels.result()["data"]) == 2
        assert max(reader.batches) > 1


def test_one_that_fails_fails_alone(model, monkeypatch):
    vectors = EncoderModel.vectors

    def failing(self, texts, pooling):
        if any(len(text) == 5 for text in texts):
            raise RuntimeError("a device is out of memory")
        return vectors(self, texts, pooling)

    monkeypatch.setattr(EncoderModel, "vectors", failing)
    with reading(model) as (client, reader), concurrent.futures.ThreadPoolExecutor(8) as pool:
        reader.open.clear()
        asked = [
            pool.submit(client.post, "/v1/embeddings", json={"input": "怎" * n}) for n in (2, 3, 4)
        ]
        while sum(reader.counts()) < 3:
            threading.Event().wait(0.01)
        reader.open.set()
        assert sorted(one.result().status_code for one in asked) == [200, 200, 500]
        assert client.get("/health").json()["status"] == "ok"
        monkeypatch.setattr(EncoderModel, "vectors", lambda *args: 1 / 0)
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 500
        assert client.get("/health").status_code == 503
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 503


def test_a_model_without_numbers_says_so(model):
    broken = jax.tree.map(lambda leaf: leaf * math.nan, model._placed.params)
    encoder = EncoderModel(model.config, broken, model.vocabulary)
    with reading(plug_jax.Model(model._saved, encoder), labels=False) as (client, _):
        response = client.post("/v1/embeddings", json={"input": "怎"})
    assert response.status_code == 500
    assert "the model gives no numbers" in response.json()["error"]["message"]


def test_keys_are_asked_for(model):
    with reading(model, keys=["a-key-of-some-length"]) as (client, _):
        assert client.post("/v1/embeddings", json={"input": "怎"}).status_code == 401
        headers = {"Authorization": "Bearer a-key-of-some-length"}
        response = client.post("/v1/embeddings", json={"input": "怎"}, headers=headers)
        assert response.status_code == 200


def test_after_the_warm_up_nothing_compiles(model):
    reader = Reader(batch_size=2, max_queue=0)
    found = Reading(model._encoder, Embedding(options=EmbeddingOptions()))
    notes = list(reader.warm_up([found, Reading(model._placed, Prediction())]))
    assert notes == [f"texts of up to {length} tokens" for length in (32, 64, 128, 32)]
    rows = model._placed._predict._cache_size()
    programs = model._encoder._vectors._cache_size()
    with reading(model, batch_size=2) as (client, _):
        for count, length in ((1, 3), (2, 30), (2, 31), (1, 126)):
            for pooling in ("mean", "cls"):
                answer(client, "embeddings", input=["怎" * length] * count, pooling=pooling)
            answer(client, "classify", input=["怎" * length] * count)
    assert model._encoder._vectors._cache_size() == programs
    assert model._placed._predict._cache_size() == rows
