"""Parsing of request fields, and errors for invalid ones."""

import dataclasses

import pytest

from plug_jax.inference.request_options import GenerationOptions
from plug_jax.serving.api import ApiError, parse


def parsed(**body):
    return parse({"prompt": "p", **body}, model_name="m", max_tokens=64)


def test_what_is_not_set_is_as_in_generate():
    request = parsed()
    assert request.options == GenerationOptions(max_new_tokens=64, seed=request.options.seed)
    assert (request.prompts, request.n, request.stop) == (("p",), 1, ())
    assert not (request.stream or request.include_usage or request.logprobs)
    assert parsed().options.seed != request.options.seed
    assert parse({"prompt": "p"}, model_name="m", max_tokens=4096).options.max_new_tokens == 128


def test_null_is_as_if_it_were_not_set():
    nothing = dict.fromkeys(["model", "stop", "suffix", "logit_bias", "temperature", "logprobs"])
    assert dataclasses.replace(parsed(seed=1)) == parsed(**nothing, seed=1)


def test_every_field_arrives():
    request = parse(
        {
            "model": "m",
            "prompt": ["a", "b"],
            "max_tokens": 9,
            "min_tokens": 2,
            "temperature": 1,
            "top_k": 0,
            "top_p": 0.5,
            "repetition_penalty": 1.5,
            "no_repeat_ngram": 3,
            "seed": 7,
            "n": 2,
            "best_of": 2,
            "stop": "。",
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": 0,
            "user": "somebody",
            "echo": False,
            "suffix": "",
            "logit_bias": {},
            "frequency_penalty": 0,
            "presence_penalty": 0.0,
        },
        model_name="m",
        max_tokens=64,
    )
    assert request.options == GenerationOptions(
        max_new_tokens=9,
        min_new_tokens=2,
        temperature=1,
        top_k=0,
        top_p=0.5,
        repetition_penalty=1.5,
        no_repeat_ngram=3,
        seed=7,
    )
    assert (request.prompts, request.n, request.stop) == (("a", "b"), 2, ("。",))
    assert request.stream and request.include_usage and request.logprobs


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": None}, "prompt", "prompt is missing"),
        ({"prompt": []}, "prompt", "empty list"),
        ({"prompt": [1, 2]}, "prompt", "token ids are not supported"),
        ({"prompt": "\ud800"}, "prompt", "not valid Unicode"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; it must be at least 1"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens", "at most max_tokens"),
        ({"max_tokens": "9"}, "max_tokens", "must be an integer"),
        ({"max_tokens": 9.0}, "max_tokens", "must be an integer"),
        ({"max_tokens": True}, "max_tokens", "must be an integer"),
        ({"temperature": -1}, "temperature", "0 (greedy) or positive"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"temperature": 10**400}, "temperature", "too large"),
        ({"temperature": float("inf")}, "temperature", "must be a finite number"),
        ({"temperature": True}, "temperature", "must be a number"),
        ({"max_tokens": 2**63}, "max_tokens", "at least 1, below 2147483648"),
        ({"min_tokens": -(2**31) - 1}, "min_tokens", "0 or more"),
        ({"top_k": -(2**31) - 1}, "top_k", "0 (every token) or positive"),
        ({"top_k": "5"}, "top_k", "must be an integer"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty", "between 0.001 and 1000.0"),
        ({"no_repeat_ngram": 2**63}, "no_repeat_ngram", "between 0 (none) and 8"),
        ({"seed": 2**32}, "seed", "below 2**32"),
        ({"seed": True}, "seed", "must be an integer"),
        ({"n": 2**63}, "n", "between 1 and 128"),
        ({"n": True}, "n", "must be an integer"),
        ({"logprobs": 2**63}, "logprobs", "between 0 and 5"),
        ({"model": 5}, "model", "must be a string"),
        ({"frequency_penalty": False}, "frequency_penalty", "use repetition_penalty"),
        ({"best_of": True}, "best_of", "ask for n texts"),
        ({"stop": "\udfff"}, "stop", "not valid Unicode"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"seed": -1}, "seed", "0 or more"),
        ({"n": 0}, "n", "between 1 and 128"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ["a", ""]}, "stop", "empty string"),
        ({"stop": [1]}, "stop", "must be a string"),
        ({"stream": 1}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "include_usage"),
        ({"logprobs": 6}, "logprobs", "between 0 and 5"),
        ({"logprobs": True}, "logprobs", "must be an integer"),
        ({"echo": True}, "echo", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"frequency_penalty": 0.1}, "frequency_penalty", "use repetition_penalty"),
        ({"presence_penalty": 1}, "presence_penalty", "use repetition_penalty"),
        ({"best_of": 3}, "best_of", "ask for n texts"),
        ({"seed": 10**4000}, "seed", "0... (4,001 characters); it must be"),
        ({"n": 10**4000}, "n", "0... (4,001 characters); it must be"),
        ({"tempreature": 1}, "tempreature", "unknown field 'tempreature'; there are: "),
    ],
)
def test_a_wrong_field_is_named(body, param, message):
    with pytest.raises(ApiError) as caught:
        parsed(**body)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert message in caught.value.message
    assert "new_tokens" not in caught.value.message
    assert caught.value.body()["error"]["type"] == "invalid_request_error"


def test_another_model_is_not_found():
    with pytest.raises(ApiError) as caught:
        parsed(model="gpt")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


@pytest.mark.parametrize("body", [[], "text", None, 3])
def test_a_body_must_be_an_object(body):
    with pytest.raises(ApiError, match="JSON object"):
        parse(body, model_name="m", max_tokens=64)
