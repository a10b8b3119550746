"""Clients that are slow, send incomplete, oversized or invalid requests: over real sockets."""

import concurrent.futures
import contextlib
import json
import logging
import socket
import threading
import time

import pytest

from plug_jax.serving import connections
from tests.serving.running import answer_of, gated_slots, head, running


@pytest.fixture(scope="module")
def server():
    with running(gated_slots(2), max_queue=8) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE_SECONDS", 0.5)


def wait_until_closed(raw, dripping=b"", within=5):
    """Read to the end, sending a byte now and then; returns the time taken in seconds."""
    started = time.monotonic()
    raw.settimeout(0.05)
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < started + within:
            raw.sendall(dripping)
            try:
                if not raw.recv(1 << 16):
                    return time.monotonic() - started
            except TimeoutError:
                continue
        raise AssertionError("the connection is still open")
    return time.monotonic() - started


@pytest.mark.parametrize("dripping", [b"", b"a"], ids=["silent", "dripping"])
@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/comp", head()[:-2] + b"X-Long: "],
    ids=["nothing", "half a line", "half a head"],
)
def test_a_head_that_does_not_come_ends_the_connection(server, impatient, sent, dripping):
    with server.raw(sent) as raw:
        assert 0.3 < wait_until_closed(raw, dripping) < 3
    assert server.complete(prompt="A", max_tokens=1)


def test_the_next_head_has_to_come_in_the_time_since_the_last_answer(server, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE_SECONDS", 2)
    with server.raw(head("GET", "/health")) as raw:
        assert answer_of(raw)[0] == 200
        threading.Event().wait(1.4)
        raw.sendall(b"GET /hea")
        assert wait_until_closed(raw) < 1.6  # not 2


def test_a_client_does_not_pay_for_a_server_that_is_held_up(server, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE_SECONDS", 0.5)
    before = set(server.server.server_state.connections)
    with server.raw() as raw:
        while not (new := server.server.server_state.connections - before):
            time.sleep(0.01)
        held_up = threading.Event()
        loop = next(iter(new)).loop
        loop.call_soon_threadsafe(lambda: (time.sleep(2), held_up.set()))
        monkeypatch.setattr(connections, "PATIENCE_SECONDS", 20)
        assert held_up.wait(30)
        time.sleep(0.2)  # the loop handles what is due
        raw.sendall(head("GET", "/health"))
        assert answer_of(raw)[0] == 200


@pytest.mark.parametrize("dripping", [False, True])
def test_a_body_that_does_not_come_is_answered_408(server, impatient, dripping):
    with server.raw(head(Content_Length=500) + b'{"prompt": "') as raw:
        for _ in range(8 if dripping else 0):
            raw.sendall(b"A")
            time.sleep(0.1)
        status, _, body = answer_of(raw)
    assert status == 408
    assert body["error"]["type"] == "invalid_request_error"
    assert "did not arrive within" in body["error"]["message"]
    assert server.engine.counts() == (0, 0)


def test_a_large_body_is_refused_before_it_is_sent(server):
    for more in ({}, {"Expect": "100-continue"}):
        with server.raw(head(Content_Length=10_000_000, **more), timeout=5) as raw:
            status, _, body = answer_of(raw)
        assert (status, body["error"]["message"]) == (413, "the body has more than 1048576 bytes")


def test_a_client_that_sends_ten_megabytes_reads_its_413(server):
    """It sends everything before it reads; closing the connection would lose the response."""
    content = json.dumps({"prompt": "A" * 10_000_000}).encode()
    headers = {"Content-Type": "application/json"}
    for body in (content, iter([content])):  # with a declared length, and chunked
        response = server.client.post("/v1/completions", content=body, headers=headers)
        assert response.status_code == 413
    assert server.complete(prompt="A", max_tokens=1)


def test_an_endless_body_is_not_read_for_ever(server, impatient):
    with server.raw(head(Content_Length=1 << 40)) as raw:
        assert wait_until_closed(raw, b"A" * 65536) < 3


def test_who_does_not_read_is_sent_away(impatient):
    """The page, requested so often that no system buffer holds the responses."""
    with running(gated_slots(1)) as server:
        with server.raw() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.sendall(head("GET", "/"))
            assert raw.recv(1)
            raw.settimeout(0.1)
            # A slow machine may reset the connection before the buffers are full.
            with contextlib.suppress(TimeoutError, ConnectionError):
                for _ in range(2000):
                    raw.sendall(head("GET", "/") * 10)
            for _ in range(50):
                if not server.connections():
                    break
                threading.Event().wait(0.1)
            assert server.connections() == 0
        assert server.client.get("/health").status_code == 200


def test_a_stream_that_nobody_reads_frees_its_slot(server):
    asked = json.dumps({"prompt": "A", "max_tokens": 48, "stream": True}).encode()
    server.slots.shut()
    with server.raw(head(Content_Length=len(asked)) + asked):
        server.wait_for(writing=1, waiting=0)
        server.slots.let()
        server.wait_for(writing=0, waiting=0)
        assert server.slots.free == 2


def test_an_answer_that_takes_its_time_is_no_fault_of_the_client(impatient):
    slots = gated_slots(1)
    slots.shut()
    with running(slots) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.complete, prompt="ABC", max_tokens=8, seed=1)
        server.wait_for(writing=1, waiting=0)
        threading.Event().wait(1.2)
        slots.let()
        assert answer.result()["choices"][0]["text"]


def test_too_many_connections_are_answered_503(server, monkeypatch):
    server.client.get("/health")
    for _ in range(100):
        if server.connections() == 1:
            break
        threading.Event().wait(0.01)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    with server.raw(), server.raw(head("GET", "/health")) as raw:
        status, headers, body = answer_of(raw)
        assert (status, headers["retry-after"]) == (503, "1")
        assert body["error"]["message"].startswith("too many connections are open")
        assert wait_until_closed(raw) < 1
        with server.raw(), server.raw(), server.raw() as many:  # of now 5, the last
            assert wait_until_closed(many) < 1
    for _ in range(100):
        if server.connections() == 1:
            break
        threading.Event().wait(0.01)
    assert server.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # the TLS handshake starts
        b"GET / HTTP/1.1\r\n\r\n",
        head()[:-2] + b"A" * 100_000,
        head(Content_Length="x"),
        head(Content_Length="-1"),
        head(Content_Length=3, Transfer_Encoding="chunked") + b"zz\r\n",
    ],
    ids=["TLS", "no host", "long head", "length x", "length -1", "no chunk"],
)
def test_what_is_no_http_is_answered_400(server, caplog, sent):
    with server.raw(sent) as raw:
        status, _, body = answer_of(raw)
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert server.complete(prompt="A", max_tokens=1)


@pytest.mark.parametrize("path", ["/nope", "/v1/completions"])
def test_a_body_that_is_no_http_is_no_error_of_ours(server, caplog, path):
    """It comes with the head, so that the request's task has not begun."""
    for _ in range(20):
        with server.raw(head(path=path, Transfer_Encoding="chunked") + b"zz\r\n", timeout=5) as raw:
            assert answer_of(raw)[0] == 400
    assert server.client.get("/health").status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_nonsense_after_an_answer_ends_the_connection_quietly(server, caplog):
    with server.raw(head(Content_Type="text/plain", Transfer_Encoding="chunked")) as raw:
        assert answer_of(raw)[0] == 415
        raw.sendall(b"no chunk\r\n")
        assert wait_until_closed(raw) < 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
