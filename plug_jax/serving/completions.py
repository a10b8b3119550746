"""POST /v1/completions: from a request's body to its texts; clients may disconnect at any time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from plug_jax.errors import PlugError
from plug_jax.serving import api
from plug_jax.serving.api import ApiError, CompletionRequest
from plug_jax.serving.choices import Choice, usage
from plug_jax.serving.clients import Shares, client_of
from plug_jax.serving.engine import Engine, TextTask
from plug_jax.serving.requests import from_thread, read_json, refusals, updates_of

_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # tell reverse proxies not to buffer events
]


class Completions:
    """The endpoint, a raw ASGI application in order to notice disconnects."""

    def __init__(self, engine: Engine, *, model_name: str, max_tokens: int, shares: Shares) -> None:
        self._engine = engine
        self._shares = shares
        self._most = min(engine.capacity, shares.most or engine.capacity)
        self._model_name = model_name
        self._max_tokens = max_tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        with refusals():  # before doing any work
            self._engine.ensure_room(1)
        try:
            body = await read_json(Request(scope, receive))
        except ClientDisconnect:
            return
        asked = api.parse(body, model_name=self._model_name, max_tokens=self._max_tokens)
        prompt_tokens = await run_in_threadpool(self._check, asked)
        changed = asyncio.Event()
        answer = _Answer(
            asked,
            prompt_tokens=prompt_tokens,
            choices=self._choices(asked, from_thread(changed.set)),
            header={
                "id": f"cmpl-{secrets.token_hex(12)}",
                "object": "text_completion",
                "created": int(time.time()),
                "model": self._model_name,
                "seed": asked.options.seed,
            },
        )
        jobs = [choice.job for choice in answer.choices]
        updates = updates_of(self._engine, jobs, changed, receive)
        send_answer = answer.stream if asked.stream else answer.whole
        with self._shares.taken(client_of(scope), len(answer.choices)):
            async with contextlib.aclosing(updates):
                await send_answer(updates, scope, receive, send)

    def _check(self, asked: CompletionRequest) -> int:
        """Tokens of all prompts. ApiError for a request that can never succeed."""
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
            TextTask(
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


@dataclasses.dataclass
class _Answer:
    """The response, in one piece or as events."""

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
        if all(choice.job.finished for choice in self.choices):  # else the client disconnected
            # In another thread: log-probabilities of many texts take seconds.
            parts = await run_in_threadpool(lambda: [choice.more() for choice in self.choices])
            body = {**self.header, "choices": parts, "usage": self._usage()}
            await JSONResponse(body)(scope, receive, send)

    async def stream(
        self, updates: AsyncIterator[None], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """An event per part of a text. An error before the first one sets the status."""
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
                # Clear before reading the parts: later ones trigger the next update.
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


def _dumps(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
