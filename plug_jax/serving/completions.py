"""POST /v1/completions: from the body of a request to its texts, which may end at any time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from plug_jax.errors import PlugError
from plug_jax.inference.model import NoNumbersError
from plug_jax.serving import api, connections
from plug_jax.serving.api import ApiError, CompletionRequest
from plug_jax.serving.choices import Choice, usage
from plug_jax.serving.clients import Shares, client_of
from plug_jax.serving.engine import (
    Engine,
    EngineFailedError,
    EngineStoppedError,
    Job,
    QueueFullError,
)

MAX_BODY_BYTES = 1 << 20
_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a reverse proxy is to pass each event on at once
]


class Completions:
    """The endpoint, an ASGI application: it has to hear of a client that goes away."""

    def __init__(self, engine: Engine, *, model_name: str, max_tokens: int, shares: Shares) -> None:
        self._engine = engine
        self._shares = shares
        self._most = min(engine.capacity, shares.most or engine.capacity)
        self._model_name = model_name
        self._max_tokens = max_tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        with _refusals():  # before work is done for it
            self._engine.ensure_room(1)
        try:
            body = await _json(Request(scope, receive))
        except ClientDisconnect:
            return
        asked = api.parse(body, model_name=self._model_name, max_tokens=self._max_tokens)
        prompt_tokens = await run_in_threadpool(self._check, asked)
        changed = asyncio.Event()
        answer = _Answer(
            asked,
            prompt_tokens=prompt_tokens,
            choices=self._choices(asked, _from_thread(changed.set)),
            header={
                "id": f"cmpl-{secrets.token_hex(12)}",
                "object": "text_completion",
                "created": int(time.time()),
                "model": self._model_name,
                "seed": asked.options.seed,
            },
        )
        updates = self._updates([choice.job for choice in answer.choices], changed, receive)
        send_answer = answer.stream if asked.stream else answer.whole
        with self._shares.taken(client_of(scope), len(answer.choices)):
            async with contextlib.aclosing(updates):
                await send_answer(updates, scope, receive, send)

    def _check(self, asked: CompletionRequest) -> int:
        """Tokens of all prompts. ApiError for a request that can never be answered."""
        texts = len(asked.prompts) * asked.n
        if texts > self._most:
            raise ApiError(
                400,
                f"the request is for {texts} texts; at most {self._most} here",
                param="n" if asked.n > 1 else "prompt",
            )
        try:
            return sum(self._engine.check(prompt, asked.options) for prompt in asked.prompts)
        except PlugError as error:
            message = api.api_message(error)
            param = "max_tokens" if message.startswith("max_tokens") else "prompt"
            raise ApiError(400, message, param=param) from error

    def _choices(self, asked: CompletionRequest, notify: Callable[[], None]) -> list[Choice]:
        jobs = [
            Job(
                prompt=prompt,
                options=asked.options,
                sample=sample,
                stop=asked.stop,
                notify=notify,
            )
            for prompt in asked.prompts
            for sample in range(asked.n)
        ]
        decode = self._engine.decode
        return [Choice(i, job, decode, logprobs=asked.logprobs) for i, job in enumerate(jobs)]

    async def _updates(
        self, jobs: list[Job], changed: asyncio.Event, receive: Receive
    ) -> AsyncGenerator[None]:
        """Submit jobs and yield whenever there is more of them, until all are finished.

        It ends early when the client has gone. However it ends, the engine is rid of the jobs.

        Raises:
            ApiError: the queue is full, the server is stopping, or the model failed.
        """
        gone = asyncio.create_task(_disconnected(receive))
        gone.add_done_callback(lambda _: changed.set())
        try:
            with _refusals():
                self._engine.submit(jobs)
            finished = False
            while not finished:
                await changed.wait()
                changed.clear()
                if gone.done():
                    return
                for job in jobs:
                    if job.error is not None:
                        raise _api_error(job.error)
                finished = all(job.finished for job in jobs)
                yield
        finally:
            gone.cancel()
            self._engine.cancel(jobs)


@dataclasses.dataclass
class _Answer:
    """What goes back, in one piece or as events."""

    asked: CompletionRequest
    prompt_tokens: int
    choices: list[Choice]
    header: dict[str, Any]

    async def whole(
        self, updates: AsyncIterator[None], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """All texts in one JSON object."""
        async for _ in updates:
            pass
        if all(choice.job.finished for choice in self.choices):  # else the client has gone
            # Elsewhere: with log-probabilities of many texts it takes seconds.
            parts = await run_in_threadpool(lambda: [choice.more() for choice in self.choices])
            body = {**self.header, "choices": parts, "usage": self._usage()}
            await JSONResponse(body)(scope, receive, send)

    async def stream(
        self, updates: AsyncIterator[None], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """An event for each part of a text. An error before the first has a status of its own."""
        started = False

        async def event(data: str) -> None:
            nonlocal started
            if not started:
                started = True
                start = {"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS}
                await send(start)
            body = f"data: {data}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        finished = False
        try:
            async for _ in updates:
                # Before the parts are read: what comes in the meantime is for the next update.
                finished = all(choice.job.finished for choice in self.choices)
                for choice in self.choices:
                    if part := choice.more():
                        await event(self._chunk([part]))
        except ApiError as error:
            if not started:
                raise
            await event(_dumps(error.body()))
        if finished:
            if self.asked.include_usage:
                await event(self._chunk([], usage=self._usage()))
            await event("[DONE]")
        if started:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        empty = {"usage": None} if self.asked.include_usage else {}
        return _dumps({**self.header, "choices": choices, **empty, **more})

    def _usage(self) -> dict[str, int]:
        progress = [choice.job.progress for choice in self.choices]
        return usage(self.prompt_tokens, [p.text for p in progress if p is not None])


@contextlib.contextmanager
def _refusals() -> Generator[None]:
    """What the engine raises when it takes no text, as an ApiError."""
    try:
        yield
    except QueueFullError as error:
        message = "too many requests are waiting; try again in a moment"
        raise ApiError(429, message, code="rate_limit_exceeded") from error
    except EngineStoppedError as error:
        raise _api_error(error) from error


def _api_error(error: Exception) -> ApiError:
    if isinstance(error, NoNumbersError):
        return ApiError(500, str(error))
    if isinstance(error, PlugError):
        return ApiError(400, api.api_message(error))
    status = 500 if isinstance(error, EngineFailedError) else 503
    return ApiError(status, str(error))


async def _json(request: Request) -> Any:
    """The body. ApiError if it is too large or too slow, is not JSON, or is not said to be.

    A page of another site can post any other content type without asking the browser's leave.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Content-Type must be application/json")
    too_large = ApiError(413, f"the body has more than {MAX_BODY_BYTES} bytes")
    if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
        raise too_large  # none of it is read
    body = bytearray()
    try:
        async with asyncio.timeout(connections.PATIENCE_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError as error:
        seconds = connections.PATIENCE_SECONDS
        raise ApiError(408, f"the body did not come within {seconds:.0f} seconds") from error
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _from_thread(function: Callable[[], None]) -> Callable[[], None]:
    """Have the running event loop call `function`, from any thread; nothing once it is closed."""
    loop = asyncio.get_running_loop()

    def call() -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(function)

    return call


def _dumps(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
