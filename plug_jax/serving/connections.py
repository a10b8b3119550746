"""Connections: how many there may be, and how long a client may keep the server waiting."""

from __future__ import annotations

import asyncio
import json

import h11
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from plug_jax.serving.api import ApiError

MAX_CONNECTIONS = 512
PATIENCE_SECONDS = 20.0  # for the head of a request, for its body, for the reading of an answer
LAST_SECONDS = 2.0  # at the server's end, for what is left to be sent
_LATE_SECONDS = 1.0


class Connection(H11Protocol):
    """uvicorn's, but its client has to go on: else it is closed after some seconds.

    The server waits for the head of the next request, and for the client to read what was written.
    uvicorn waits for ever for a head of which a byte has come, and for a client that stopped
    reading. (For the body of a request the application waits, which can answer.)
    """

    _clock: asyncio.TimerHandle | None = None  # runs while the client is waited for

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came. Of far too many, some are not even listened to."""
        super().connection_made(transport)
        if len(self.connections) > 2 * MAX_CONNECTIONS:
            transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or was sent away."""
        super().connection_lost(exc)
        self._stop_clock()

    def data_received(self, data: bytes) -> None:
        """The client sent something."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The answer was handed to the transport."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """What was written is not read."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """It was read."""
        super().resume_writing()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP. If an answer has begun, there can be no other."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ApiError(400, msg).body()).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            start = h11.Response(status_code=400, reason=b"Bad Request", headers=headers)
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def shutdown(self) -> None:
        """The server ends: there is a moment left for answers, and for requests that are coming.

        uvicorn closes a new connection at once, whose first request would get no answer.
        """
        if self.cycle is not None:
            super().shutdown()
        self.loop.call_later(LAST_SECONDS, self.transport.abort)

    def _watch(self) -> None:
        """Start or stop the clock: it is not set back by a client that goes on slowly."""
        in_hand = self.cycle is not None and not self.cycle.response_complete
        if in_hand and not self.flow.write_paused:
            self._stop_clock()
        elif self._clock is None:
            end = self.loop.time() + PATIENCE_SECONDS
            self._clock = self.loop.call_at(end, self._lose_patience, end)

    def _lose_patience(self, end: float) -> None:
        self._clock = None
        if self.loop.time() > end + _LATE_SECONDS:
            self._watch()  # the server itself was held up, and may not have seen what has come
        else:
            self.transport.abort()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def limited(app: ASGIApp, state: ServerState) -> ASGIApp:
    """The application, which while there are too many connections refuses requests."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if len(state.connections) <= MAX_CONNECTIONS:
            await app(scope, receive, send)
            return
        error = ApiError(503, "too many connections are open; try again in a moment")
        headers = {"Retry-After": "1", "Connection": "close"}
        await JSONResponse(error.body(), error.status, headers)(scope, receive, send)

    return answer
