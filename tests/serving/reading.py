"""A server for an encoder in a thread on a free port, which processes only when permitted."""

from __future__ import annotations

import contextlib
import threading

import httpx2

from plug_jax.serving import server
from plug_jax.serving.app import make_reading_app
from plug_jax.serving.reader import Reader

NAME = "afqmc"


class Gated(Reader):
    """Processes only while permitted."""

    def __init__(self, **options):
        super().__init__(**options)
        self.open = threading.Event()
        self.open.set()
        self.batches = []

    def _next(self):
        assert self.open.wait(30)
        jobs = super()._next()
        self.batches.append(len(jobs))
        return jobs


@contextlib.contextmanager
def reading(model, *, batch_size=4, max_queue=8, labels=True, **options):
    """A client of a server for the model, and its reader."""
    with (
        server.listen("127.0.0.1", 0) as sock,
        Gated(batch_size=batch_size, max_queue=max_queue) as reader,
    ):
        labeler = model._placed if labels else None
        app = make_reading_app(reader, model._encoder, labeler, model_name=NAME, **options)
        uvicorn_server = server.Server(app, reader, grace=5)
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            url = server.url(sock, "127.0.0.1")
            with httpx2.Client(base_url=url, timeout=30) as client:
                client.url = url  # for browsers
                yield client, reader
        finally:
            reader.open.set()
            uvicorn_server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
