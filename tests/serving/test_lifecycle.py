"""Full queues, clients that go away, a model that fails, and the end of the server."""

import concurrent.futures
import json
import signal
import socket
import threading

import httpx2
import pytest

from tests.serving.running import alone, gated_slots, opened, running


def test_a_full_queue_answers_429_and_takes_more_later():
    slots = gated_slots(1)
    with running(slots, max_queue=2) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        slots.shut()
        first = pool.submit(server.complete, prompt="ABC", max_tokens=8, n=3, seed=1)
        server.wait_for(writing=1, waiting=2)
        assert server.client.get("/health").json()["waiting"] == 2
        for stream in (False, True):
            response = server.post(prompt="A", stream=stream)
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "rate_limit_exceeded"
        slots.let()
        texts = alone("ABC", {"max_new_tokens": 8, "num_samples": 3, "seed": 1})
        assert [c["text"] for c in first.result()["choices"]] == [text.text for text in texts]
        assert server.complete(prompt="A", max_tokens=1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slots_and_places(stream):
    slots = gated_slots(1)
    with running(slots, max_queue=3) as server:
        slots.shut()
        raw = raw_post(server, prompt="ABC", max_tokens=40, n=2, stream=stream)
        server.wait_for(writing=1, waiting=1)
        queued = raw_post(server, prompt="ABC", stream=stream)
        server.wait_for(writing=1, waiting=2)
        queued.close()
        server.wait_for(writing=1, waiting=1)
        raw.close()
        server.wait_for(writing=0, waiting=0)
        slots.let()
        (text,) = alone("HELLO", {"max_new_tokens": 20, "seed": 2})
        answer = server.complete(prompt="HELLO", max_tokens=20, seed=2)
        assert answer["choices"][0]["text"] == text.text
        assert slots.free == 1


def test_a_client_that_goes_away_in_the_middle_of_a_stream_frees_its_slot():
    slots = gated_slots(1)
    slots.shut()
    with running(slots) as server:
        asked = {"prompt": "ABC", "max_tokens": 48, "min_tokens": 48, "stream": True}
        with opened(server, asked, slots) as lines:
            assert json.loads(next(lines))
        server.wait_for(writing=0, waiting=0)
        slots.let()
        assert server.complete(prompt="HELLO", max_tokens=2)
        assert slots.free == 1


def raw_post(server, **body):
    """A socket on which a request was sent."""
    content = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    raw = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    raw.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return raw


def test_a_failing_model_fails_its_requests_and_the_health():
    slots = gated_slots(1)
    with running(slots) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        slots.shut()
        answers = [
            pool.submit(server.post, prompt="ABC", max_tokens=40, stream=stream)
            for stream in (False, True, False)
        ]
        server.wait_for(writing=1, waiting=2)
        slots.failure = RuntimeError("out of memory")
        slots.let()
        for answer in answers:
            assert answer.result().status_code == 500
            assert answer.result().json()["error"]["type"] == "server_error"
            assert "memory" not in answer.result().text
        health = server.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert server.post(prompt="A").status_code == 503


def test_a_stream_that_fails_in_the_middle_says_so():
    slots = gated_slots(1)
    asked = {"prompt": "ABC", "max_tokens": 20, "min_tokens": 20, "stream": True}
    slots.shut()
    with running(slots) as server, opened(server, asked, slots) as lines:
        assert "choices" in json.loads(next(lines))
        slots.failure = RuntimeError("out of memory")
        slots.let(1)
        (last,) = lines
    assert json.loads(last)["error"]["type"] == "server_error"


def test_at_the_end_requests_in_hand_are_finished_and_new_ones_refused():
    slots = gated_slots(1)
    with running(slots) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        kept = httpx2.Client(base_url=server.url)
        kept.get("/health")
        slots.shut()
        answers = [pool.submit(server.complete, prompt="ABC", max_tokens=40) for _ in range(2)]
        server.wait_for(writing=1, waiting=1)
        server.stop()
        while server.engine.state == "ok":
            threading.Event().wait(0.01)
        with pytest.raises(httpx2.HTTPError):
            kept.get("/health")
        slots.let()
        assert all(answer.result()["choices"][0]["text"] for answer in answers)
        server.thread.join(10)
        assert not server.thread.is_alive()


@pytest.mark.parametrize(("grace", "signals"), [(0.2, 1), (60, 2)])
def test_what_is_not_finished_in_time_or_by_the_second_signal_ends_with_an_error(grace, signals):
    slots = gated_slots(1)
    asked = {"prompt": "ABC", "max_tokens": 40, "min_tokens": 40}
    with running(slots, grace=grace) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        slots.shut()
        answers = [pool.submit(server.post, **asked) for _ in range(2)]
        server.wait_for(writing=1, waiting=1)
        for _ in range(signals):
            server.server.handle_exit(signal.SIGINT, None)
        threading.Event().wait(0.5)
        slots.let()
        for answer in answers:
            assert answer.result().status_code == 503
            assert "before the text was complete" in answer.result().json()["error"]["message"]
        server.thread.join(10)
        assert not server.thread.is_alive()
