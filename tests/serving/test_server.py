"""The server over real sockets: every text equals that of the prompt alone, and nothing leaks."""

import concurrent.futures
import itertools
import json
import time

import jax
import pytest

from plug_jax.inference.request_options import GenerationOptions
from tests.inference_model import CONFIG, lively_model
from tests.serving.running import NAME, alone, gated_slots, opened, running

FIELDS = {  # of GenerationOptions -> of the API
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_samples": "n",
}
REQUESTS = [
    ("ABC", {"max_new_tokens": 40, "temperature": 0.0}),
    ("HELLO", {"max_new_tokens": 30, "seed": 5}),
    ("A" * 40, {"max_new_tokens": 48, "seed": 6, "top_k": 0, "temperature": 2.0}),
    ("", {"max_new_tokens": 7, "seed": 7, "top_p": 0.5}),
    ("XYZ", {"max_new_tokens": 33, "seed": 8, "repetition_penalty": 1.7}),
    ("B", {"max_new_tokens": 25, "temperature": 0.0, "no_repeat_ngram": 2}),
    ("QRS", {"max_new_tokens": 40, "min_new_tokens": 39, "seed": 2**32 - 1}),
    ("MORE", {"max_new_tokens": 12, "num_samples": 3, "seed": 9}),
]


def body_of(prompt, options):
    return {"prompt": prompt, **{FIELDS.get(name, name): v for name, v in options.items()}}


@pytest.fixture(scope="module")
def server():
    """Three slots, so that requests queue and join."""
    slots = gated_slots(3)
    assert [note for note in slots.warm_up() if "prompts" in note]
    with running(slots, max_queue=64) as server:
        yield server


def test_many_requests_at_once_get_what_each_gets_alone(server):
    expected = [alone(*request) for request in REQUESTS]
    compiled = []

    def listen(name, seconds, **kwargs):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(kwargs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    sizes = (lively_model()._advance._cache_size(), lively_model()._start._cache_size())
    try:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            whole = pool.map(lambda r: server.complete(**body_of(*r)), REQUESTS * 2)
            parts = pool.map(lambda r: server.events(**body_of(*r)), REQUESTS * 2)
            whole, parts = list(whole), list(parts)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
    assert (lively_model()._advance._cache_size(), lively_model()._start._cache_size()) == sizes
    for texts, answer, events in zip(expected * 2, whole, parts, strict=True):
        found = [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]]
        assert found == [(text.text, text.finish_reason) for text in texts]
        assert answer["usage"]["completion_tokens"] == sum(len(text.ids) for text in texts)
        assert joined(events) == found
    assert server.engine.counts() == (0, 0)
    assert {text.finish_reason for texts in expected for text in texts} == {"stop", "length"}


def joined(events):
    """(text, finish reason) of each choice of a stream."""
    choices = [event["choices"][0] for event in events if event["choices"]]
    found = []
    for index in range(max(choice["index"] for choice in choices) + 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert all(choice["finish_reason"] is None for choice in own[:-1])
        found.append(("".join(c["text"] for c in own), own[-1]["finish_reason"]))
    return found


def test_the_answer_has_openai_s_form(server):
    answer = server.complete(prompt="ABC", max_tokens=5, temperature=0, model=NAME)
    (text,) = alone("ABC", {"max_new_tokens": 5, "temperature": 0.0})
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", NAME)
    assert abs(answer["created"] - time.time()) < 60
    assert answer["choices"] == [
        {"index": 0, "text": text.text, "logprobs": None, "finish_reason": "length"}
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def test_a_stream_shows_tokens_as_they_are_written():
    slots = gated_slots(1)
    (text,) = alone("ABC", {"max_new_tokens": 20, "min_new_tokens": 20, "seed": 1})
    asked = {"prompt": "ABC", "max_tokens": 20, "min_tokens": 20, "seed": 1, "stream": True}
    asked["stream_options"] = {"include_usage": True}
    slots.shut()
    with running(slots) as server, opened(server, asked, slots) as lines:
        parts = [json.loads(next(lines))]
        for _ in range(4):
            slots.let(1)
            parts.append(json.loads(next(lines)))
        last, done = lines
    assert [p["choices"][0]["text"] for p in parts] == [
        text.text[i : i + 4] for i in range(0, 20, 4)
    ]
    assert [p["choices"][0]["finish_reason"] for p in parts] == [None] * 4 + ["length"]
    assert {p["id"] for p in parts} == {json.loads(last)["id"]}
    assert all(part["usage"] is None and part["object"] == "text_completion" for part in parts)
    assert json.loads(last)["choices"] == []
    assert json.loads(last)["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 20,
        "total_tokens": 23,
    }
    assert done == "[DONE]"


def test_a_list_of_prompts_and_several_texts_of_each(server):
    answer = server.complete(prompt=["ABC", "XY"], n=2, max_tokens=10, seed=4)
    options = {"max_new_tokens": 10, "num_samples": 2, "seed": 4}
    expected = [text.text for prompt in ("ABC", "XY") for text in alone(prompt, options)]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert len(set(expected)) == 4
    assert answer["usage"]["prompt_tokens"] == 5


def test_the_seed_of_an_answer_writes_it_again(server):
    first = server.complete(prompt="ABC", max_tokens=20)
    again = server.complete(prompt="ABC", max_tokens=20, seed=first["seed"])
    assert again["choices"] == first["choices"]


def test_log_probabilities_are_the_model_s_own(server):
    options = {"max_new_tokens": 12, "seed": 3}
    (text,) = alone("HELLO", options)
    asked = {**body_of("HELLO", options), "logprobs": 1}
    (choice,) = server.complete(**asked)["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == text.text
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(
        text.log_probs[: len(text.ids)], abs=1e-4
    )
    assert choice["logprobs"]["text_offset"] == list(range(len(text.ids)))
    assert choice["logprobs"]["top_logprobs"] is None
    parts = [event["choices"][0]["logprobs"] for event in server.events(**asked)]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert list(itertools.chain(*(p[name] for p in parts))) == choice["logprobs"][name]


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_stop_string_ends_the_text_wherever_it_lies(steps):
    options = {"max_new_tokens": 40, "temperature": 0.0, "min_new_tokens": 40}
    (text,) = alone("ABC", options)
    asked = body_of("ABC", options)
    with running(gated_slots(1), steps=steps) as server:
        for place in (0, 1, 5, 6, 7):
            stop = text.text[place : place + 3]
            cut = text.text.index(stop)
            for stops in (stop, ["zz", stop], [stop, text.text[place : place + 2] + "!"]):
                (choice,) = server.complete(**asked, stop=stops, logprobs=0)["choices"]
                assert (choice["text"], choice["finish_reason"]) == (text.text[:cut], "stop")
                assert "".join(choice["logprobs"]["tokens"]) in (
                    text.text[:cut],
                    text.text[: cut + 3],
                )
                assert joined(server.events(**asked, stop=stops)) == [(text.text[:cut], "stop")]
        (choice,) = server.complete(**asked, stop="never")["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text.text, "length")
        assert server.slots.free == 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompt": "A" * 47}, 400, "a prompt has 47 tokens; this model reads at most 46"),
        ({"prompt": "A", "max_tokens": 49}, 400, "max_tokens is 49; at most 48 here"),
        ({"prompt": "A", "n": 68}, 400, "the request is for 68 texts; at most 67 here"),
        ({"prompt": "A", "model": "gpt"}, 404, "there is no model 'gpt' here, only 'lively'"),
        ({"prompt": "A", "echo": True}, 400, "echo is not supported"),
        ({}, 400, "prompt is missing"),
    ],
)
def test_a_bad_request_is_answered_with_what_is_wrong(server, body, status, message):
    for stream in (False, True):
        response = server.post(**body, stream=stream)
        assert response.status_code == status
        assert message in response.json()["error"]["message"]
    assert server.engine.counts() == (0, 0)


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"prompt": "A", "temperature": NaN}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"prompt": "A"}', "text/plain", 415),
        (b'{"prompt": "A"}', "application/x-www-form-urlencoded", 415),
        (b'{"prompt": "' + b"A" * (1 << 20) + b'"}', "application/json", 413),
    ],
)
def test_a_body_must_be_json_of_moderate_size(server, content, content_type, status):
    headers = {"Content-Type": content_type}
    response = server.client.post("/v1/completions", content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("top_k", [2**31 - 1, 2**31, 2**63, 10**400])
def test_a_top_k_that_no_integer_of_the_model_holds_is_every_token(server, top_k):
    options = {"max_new_tokens": 12, "seed": 5}
    (text,) = alone("HELLO", {**options, "top_k": 0})
    answer = server.complete(**body_of("HELLO", options), top_k=top_k)
    assert answer["choices"][0]["text"] == text.text


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"prompt": "A", "model": "\\ud800"}', 404),
        (b'{"prompt": "A", "\\ud800": 1}', 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "A", "temperature": 1e400}', 400),
        (b'{"prompt": "A", "temperature": -Infinity}', 400),
        (b'{"prompt": "A", "seed": ' + b"9" * 5000 + b"}", 400),
    ],
)
def test_json_that_no_text_or_number_is_of_gets_an_answer(server, content, status):
    headers = {"Content-Type": "application/json"}
    response = server.client.post("/v1/completions", content=content, headers=headers)
    assert response.status_code == status, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert server.client.get("/health").json()["status"] == "ok"


def test_the_other_routes(server):
    client = server.client
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == NAME
    assert (model["max_prompt_tokens"], model["max_tokens"]) == (46, CONFIG.max_positions)
    assert client.get(f"/v1/models/{NAME}").json() == model
    assert client.get("/v1/models/gpt").status_code == 404
    health = client.get("/health")
    assert health.json() == {"status": "ok", "slots": 3, "writing": 0, "waiting": 0}
    assert client.get("/nothing").status_code == 404
    assert client.get("/nothing").json()["error"]["message"] == "GET /nothing: Not Found"
    assert client.get("/v1/completions").status_code == 405


def test_pages_of_other_sites_cannot_use_it(server):
    for host in ("evil.example", "evil.example:80"):
        assert server.client.get("/health", headers={"Host": host}).status_code == 400
    for host in ("localhost:1234", "127.0.0.1", "[::1]:80"):
        assert server.client.get("/health", headers={"Host": host}).status_code == 200
    origin = {"Origin": "http://evil.example"}
    asks = {**origin, "Access-Control-Request-Method": "POST"}
    for response in (
        server.client.options("/v1/completions", headers=asks),
        server.client.get("/v1/models", headers=origin),
    ):
        assert not any(name.startswith("access-control") for name in response.headers)


def test_the_page_may_run_only_its_own_script(server):
    page = server.client.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    defaults = GenerationOptions()
    for field, value in [
        ("max_tokens", defaults.max_new_tokens),
        ("temperature", defaults.temperature),
        ("top_k", defaults.top_k),
        ("top_p", 1),
        ("repetition_penalty", 1),
        ("n", defaults.num_samples),
    ]:
        (tag,) = [part for part in page.text.split("<input")[1:] if f'id="{field}"' in part]
        assert f'value="{value}"' in tag
