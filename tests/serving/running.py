"""A server in a thread on a free port, and slots that advance only when permitted."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import signal
import socket
import threading

import httpx2

from plug_jax.inference.generator import generate
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.inference.slots import Slots
from plug_jax.serving import server
from plug_jax.serving.app import make_app
from plug_jax.serving.engine import Engine
from tests.inference_model import lively_model

NAME = "lively"


class GatedSlots(Slots):
    """Advances as often as permitted, and fails on request."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._changed = threading.Condition()
        self._permits = math.inf
        self.failure = None

    def shut(self):
        """Wait from now on."""
        with self._changed:
            self._permits = 0

    def let(self, times=math.inf):
        """Permit this many further steps."""
        with self._changed:
            self._permits += times
            self._changed.notify_all()

    def advance(self, steps):
        with self._changed:
            assert self._changed.wait_for(lambda: self._permits > 0, 30)
            self._permits -= 1
        if self.failure is not None:
            raise self.failure
        return super().advance(steps)


def gated_slots(count, **limits):
    limits = {"max_prompt_tokens": 48, "max_new_tokens": 48, **limits}
    return GatedSlots(lively_model(), count=count, **limits)


class Running:
    """A server's address, engine and a client."""

    def __init__(self, engine, uvicorn_server, sock, thread):
        self.engine = engine
        self.slots = engine.slots
        self.server = uvicorn_server
        self.thread = thread
        self.url = server.url(sock, "127.0.0.1").rstrip("/")
        self.client = httpx2.Client(base_url=self.url, timeout=30)

    def post(self, **body):
        return self.client.post("/v1/completions", json=body)

    def complete(self, **body):
        """The response to a successful request."""
        response = self.post(**body)
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, **body):
        """All events of a successful stream, without the final [DONE]."""
        with self.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as r:
            assert r.status_code == 200
            assert r.headers["content-type"].startswith("text/event-stream")
            text = "".join(r.iter_text())
        *events, done, rest = text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    @contextlib.contextmanager
    def raw(self, content=b"", timeout=30):
        """A socket on which `content` was sent."""
        host, port = self.url.split("//")[1].split(":")
        with socket.create_connection((host, int(port)), timeout=timeout) as raw:
            raw.sendall(content)
            yield raw

    def connections(self):
        """The current number of connections."""
        return len(self.server.server_state.connections)

    def stop(self):
        """Stop as on a signal."""
        self.server.handle_exit(signal.SIGTERM, None)

    def wait_for(self, writing, waiting):
        """Wait until the engine has this many texts."""
        for _ in range(1000):
            if self.engine.counts() == (writing, waiting):
                return
            threading.Event().wait(0.01)
        raise AssertionError(f"{self.engine.counts()}, not {(writing, waiting)}")


def head(method="POST", path="/v1/completions", **fields):
    """The head of a request with a JSON body; "_" in header names becomes "-"."""
    fields = {"Host": "127.0.0.1", "Content_Type": "application/json", **fields}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def answer_of(raw):
    """The first response on a socket: its status, headers and JSON."""
    response = http.client.HTTPResponse(raw)
    response.begin()
    return response.status, response.headers, json.loads(response.read())


@contextlib.contextmanager
def running(slots, *, max_queue=16, steps=4, grace=5.0, host="127.0.0.1", tls=None, **options):
    """`options` are of `make_app`."""
    with server.listen(host, 0) as sock, Engine(slots, max_queue=max_queue, steps=steps) as engine:
        hosts = server.allowed_hosts(sock, host)
        app = make_app(engine, model_name=NAME, allowed_hosts=hosts, **options)
        uvicorn_server = server.Server(app, engine, grace=grace, tls=tls)
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield Running(engine, uvicorn_server, sock, thread)
        finally:
            if isinstance(slots, GatedSlots):
                slots.let()
            uvicorn_server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def alone(prompt, options):
    """The texts that `generate` returns for one prompt."""
    return generate(lively_model(), [prompt], GenerationOptions(**options))[0]


@contextlib.contextmanager
def opened(server, asked, slots):
    """The data of a stream's events, of which the slots have generated the first."""
    slots.let(1)
    with server.client.stream("POST", "/v1/completions", json=asked) as response:
        assert response.status_code == 200
        yield (line.removeprefix("data: ") for line in response.iter_lines() if line)
