"""Shared by endpoints: request bodies, and cancellation on disconnect."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from plug_jax.errors import PlugError
from plug_jax.inference.model import NoNumbersError
from plug_jax.serving import api, connections
from plug_jax.serving.api import ApiError
from plug_jax.serving.worker import (
    QueueFullError,
    Task,
    Worker,
    WorkerFailedError,
    WorkerStoppedError,
)
from plug_jax.strict_json import integer

MAX_BODY_BYTES = 1 << 20
T = TypeVar("T", bound=Task)


async def updates_of(
    worker: Worker[T], jobs: Sequence[T], changed: asyncio.Event, receive: Receive
) -> AsyncGenerator[None]:
    """Submit jobs and yield whenever they have made progress, until all are finished.

    Ends early if the client disconnects. In any case the worker drops the jobs at the end.

    Raises:
        ApiError: the queue is full, the server is stopping, or the model failed.
    """
    gone = asyncio.create_task(_disconnected(receive))
    gone.add_done_callback(lambda _: changed.set())
    try:
        with refusals():
            worker.submit(jobs)
        finished = False
        while not finished:
            await changed.wait()
            changed.clear()
            if gone.done():
                return
            for job in jobs:
                if job.error is not None:
                    raise api_error(job.error)
            finished = all(job.finished for job in jobs)
            yield
    finally:
        gone.cancel()
        worker.cancel(jobs)


@contextlib.contextmanager
def refusals() -> Generator[None]:
    """Turn a worker's refusal into an ApiError."""
    try:
        yield
    except QueueFullError as error:
        message = "too many requests are waiting; try again in a moment"
        raise ApiError(429, message, code="rate_limit_exceeded") from error
    except WorkerStoppedError as error:
        raise api_error(error) from error


def api_error(error: Exception) -> ApiError:
    """The client's error for a worker's exception."""
    if isinstance(error, NoNumbersError):
        return ApiError(500, str(error))
    if isinstance(error, PlugError):
        return ApiError(400, api.api_message(error))
    status = 500 if isinstance(error, WorkerFailedError) else 503
    return ApiError(status, str(error))


async def read_json(request: Request) -> Any:
    """The body. ApiError if it is too large or too slow, is not JSON, or has another content type.

    Pages of other sites can post other content types without the browser's permission.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Content-Type must be application/json")
    too_large = ApiError(413, f"the body has more than {MAX_BODY_BYTES} bytes")
    if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
        raise too_large  # without reading it
    body = bytearray()
    try:
        async with asyncio.timeout(connections.PATIENCE_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError as error:
        seconds = connections.PATIENCE_SECONDS
        raise ApiError(408, f"the body did not arrive within {seconds:.0f} seconds") from error
    try:
        return json.loads(body, parse_constant=_no_constant, parse_int=integer)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


async def _disconnected(receive: Receive) -> None:
    """Return when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


def from_thread(function: Callable[[], None]) -> Callable[[], None]:
    """A thread-safe way to call `function` in the running event loop, until it is closed."""
    loop = asyncio.get_running_loop()

    def call() -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(function)

    return call
