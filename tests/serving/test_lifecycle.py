"""Full queues, disconnecting clients, a failing model, and shutdown."""

import concurrent.futures
import contextlib
import errno
import json
import queue
import select
import signal
import socket
import sys
import threading
import time

import httpx2
import jax
import pytest

from plug_jax.inference.slots import Slots
from plug_jax.serving.server import ignore_new_connections, listen
from plug_jax.serving.worker import WorkerStoppedError
from tests.inference_model import broken_model, lively_model
from tests.serving.running import (
    GatedSlots,
    alone,
    answer_of,
    gated_slots,
    head,
    opened,
    running,
)


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


class FailingSlots(GatedSlots):
    """The prompt BAD raises on admission, or while it is in a slot; state is lost."""

    def __init__(self, where):
        self.where, self.bad = where, []
        super().__init__(lively_model(), count=3, max_prompt_tokens=48, max_new_tokens=48)

    def admit(self, prompt, options, *, sample=0):
        if prompt == "BAD" and self.where == "admission":
            raise RuntimeError("a number that no array holds")
        slot = super().admit(prompt, options, sample=sample)
        if prompt == "BAD":
            self.bad.append(slot)
            self.fail_if("insertion")
        return slot

    def advance(self, steps):
        if self.bad:
            self.fail_if("step")
        return super().advance(steps)

    def release(self, slot):
        self.bad = [other for other in self.bad if other != slot]
        super().release(slot)

    def fail_if(self, where):
        if self.where == where:
            jax.tree.map(lambda leaf: leaf.delete(), self._decoding)
            raise RuntimeError("out of memory")


@pytest.mark.parametrize("where", ["admission", "insertion", "step"])
def test_what_one_request_raises_fails_no_other(where):
    slots = FailingSlots(where)
    options = {"max_new_tokens": 30, "min_new_tokens": 30, "seed": 3}
    asked = {"max_tokens": 30, "min_tokens": 30, "seed": 3}
    with running(slots) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        slots.shut()
        opened_before = {"prompt": "ABC", "stream": True, **asked}
        with opened(server, opened_before, slots) as lines:
            parts = [json.loads(next(lines))["choices"][0]["text"]]  # some of it has been sent
            bad = [pool.submit(server.post, prompt="BAD", **asked, stream=s) for s in (False, True)]
            server.wait_for(writing=1, waiting=2)
            good = [pool.submit(server.complete, prompt=p, **asked) for p in ("HELLO", "XY")]
            slots.let()
            *rest, done = lines
        parts += [json.loads(part)["choices"][0]["text"] for part in rest]
        assert done == "[DONE]"
        assert "".join(parts) == alone("ABC", options)[0].text
        for prompt, answer in zip(("HELLO", "XY"), good, strict=True):
            assert answer.result()["choices"][0]["text"] == alone(prompt, options)[0].text
        for answer in bad:
            assert answer.result().status_code == 500
            assert answer.result().json()["error"]["type"] == "server_error"
        assert server.client.get("/health").json()["status"] == "ok"
        assert server.complete(prompt="HELLO", **asked)["choices"] == good[0].result()["choices"]
        assert (slots.free, server.engine.counts()) == (3, (0, 0))


def test_a_text_that_cannot_be_read_fails_alone():
    slots = gated_slots(2)
    with running(slots) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        server.engine.decode = raising
        stopped = pool.submit(server.post, prompt="ABC", max_tokens=8, temperature=0, stop="X")
        good = pool.submit(server.complete, prompt="ABC", max_tokens=8, temperature=0)
        (text,) = alone("ABC", {"max_new_tokens": 8, "temperature": 0})
        assert "X" in text.text
        assert good.result()["choices"][0]["text"] == text.text
        assert stopped.result().status_code == 500
        assert server.client.get("/health").json()["status"] == "ok"


def raising(ids):
    raise RuntimeError("no such id")


@pytest.mark.parametrize("body", [{}, {"logprobs": 0}, {"temperature": 0}, {"stop": "X"}])
def test_a_model_without_numbers_says_so_and_the_server_lives(broken_server, body):
    for stream in (False, True):
        response = broken_server.post(prompt="ABC", max_tokens=8, stream=stream, **body)
        assert response.status_code == 500
        assert "the model gives no numbers" in response.json()["error"]["message"]
    assert broken_server.client.get("/health").json()["status"] == "ok"
    assert broken_server.slots.free == 1


@pytest.fixture(scope="module")
def broken_server():
    slots = Slots(broken_model(), count=1, max_prompt_tokens=48, max_new_tokens=48)
    with running(slots) as server:
        yield server


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
        asked = {"prompt": "ABC", "max_tokens": 40, "seed": 1}
        answers = [pool.submit(server.complete, **asked) for _ in range(2)]
        server.wait_for(writing=1, waiting=1)
        server.stop()
        while server.engine.state == "ok":
            threading.Event().wait(0.01)
        for client in (kept, server.client):  # on an existing connection, and on a new one
            refused = client.post("/v1/completions", json={"prompt": "A"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["message"] == "the server is stopping"
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "stopping")
        slots.let()
        assert all(answer.result()["choices"][0]["text"] for answer in answers)
        server.thread.join(10)
        assert not server.thread.is_alive()
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.url}/health")


def test_half_a_request_does_not_keep_the_server_and_one_that_comes_is_answered():
    body = b'{"prompt": "A"}'
    with (
        running(gated_slots(1)) as server,
        server.raw() as fresh,
        server.raw(head(Content_Length=len(body))) as coming,
        server.raw(head(Content_Length=len(body)) + body[:5]) as half,
    ):
        for _ in range(500):
            if server.connections() == 3:
                break
            threading.Event().wait(0.01)
        started = time.monotonic()
        server.stop()
        while server.engine.state == "ok":
            threading.Event().wait(0.01)
        threading.Event().wait(0.3)
        fresh.sendall(head(Content_Length=len(body)) + body)
        coming.sendall(body)
        assert answer_of(fresh)[0] == 503
        assert answer_of(coming)[0] == 503
        assert half.recv(10) == b""
        server.thread.join(10)
        assert time.monotonic() - started < 4


def test_who_connected_in_the_last_moment_is_answered():
    """The system has accepted the connection, and the server's loop has not handled it yet."""
    late = queue.SimpleQueue()
    with running(gated_slots(1)) as server, contextlib.ExitStack() as clients:

        def ending(overtime):  # called by the loop just before it closes
            late.put(clients.enter_context(server.raw(head(Content_Length=2) + b"{}")))
            return False

        server.engine.ending = ending
        server.stop()
        status, _, body = answer_of(late.get(timeout=10))
        assert (status, body["error"]["message"]) == (503, "the server is stopping")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no filter of segments")
def test_a_socket_about_to_close_takes_no_connection_that_closing_would_reset():
    with (
        listen("127.0.0.1", 0) as sock,
        socket.create_connection(sock.getsockname()) as early,
        socket.socket() as late,
    ):
        ignore_new_connections(sock)
        late.setblocking(False)
        assert late.connect_ex(sock.getsockname()) == errno.EINPROGRESS
        assert select.select([], [late], [], 0.1)[1] == []  # in vain so far
        early.sendall(b"before")
        accepted, _ = sock.accept()
        with accepted:
            assert accepted.recv(10) == b"before"
            early.sendall(b"after")
            assert accepted.recv(10) == b"after"
        sock.close()
        assert select.select([], [late], [], 10)[1] == [late]
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def test_a_model_that_does_not_come_back_keeps_neither_server_nor_clients():
    slots = gated_slots(1)
    with running(slots, grace=0.2) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        slots.shut()
        asked = {"prompt": "ABC", "max_tokens": 40}
        answers = [pool.submit(server.post, **asked, stream=stream) for stream in (False, True)]
        server.wait_for(writing=1, waiting=1)
        server.stop()
        for answer in answers:
            assert answer.result().status_code == 503
            assert "before the text was complete" in answer.result().json()["error"]["message"]
        server.thread.join(10)
        assert not server.thread.is_alive()


def test_refusals_hold_nothing_of_who_was_refused():
    """An exception that is raised repeatedly grows by a traceback each time."""
    with running(gated_slots(1)) as server:
        server.engine.stop(0)
        depths = []
        for _ in range(3):
            with pytest.raises(WorkerStoppedError) as caught:
                server.engine.ensure_room(1)
            depths.append(len(caught.traceback))
        assert depths == depths[:1] * 3


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
