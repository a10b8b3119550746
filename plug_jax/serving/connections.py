"""Limits on connections, and timeouts for slow clients."""

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
PATIENCE_SECONDS = 20.0  # each for a request's head, its body, and reading the response
LAST_SECONDS = 2.0  # at shutdown, for remaining sends
_LATE_SECONDS = 1.0


class Connection(H11Protocol):
    """uvicorn's connection, with timeouts for slow clients.

    They apply to the head of the next request, and to a client that does not read. uvicorn waits
    forever for the rest of a head, and for a client that stopped reading. (The application itself
    waits for request bodies, and can respond.)
    """

    _clock: asyncio.TimerHandle | None = None  # runs while waiting for the client

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected; far beyond the limit it is closed at once."""
        super().connection_made(transport)
        if len(self.connections) > 2 * MAX_CONNECTIONS:
            transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection was closed."""
        super().connection_lost(exc)
        self._stop_clock()

    def data_received(self, data: bytes) -> None:
        """The client sent data."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The response was passed to the transport."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client is not reading."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client is reading again."""
        super().resume_writing()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """The data are not HTTP. If a response has started, there can be no other."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ApiError(400, msg).body()).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            start = h11.Response(status_code=400, reason=b"Bad Request", headers=headers)
            if self.cycle is not None:  # its request has not been answered, and will not be
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def shutdown(self) -> None:
        """Shutdown: there is a moment left for responses and for incoming requests.

        uvicorn would close a new connection at once, without a response to its first request.
        """
        if self.cycle is not None:
            super().shutdown()
        self.loop.call_later(LAST_SECONDS, self.transport.abort)

    def _watch(self) -> None:
        """Start or stop the clock; a client that continues slowly does not reset it."""
        in_hand = self.cycle is not None and not self.cycle.response_complete
        if in_hand and not self.flow.write_paused:
            self._stop_clock()
        elif self._clock is None:
            end = self.loop.time() + PATIENCE_SECONDS
            self._clock = self.loop.call_at(end, self._lose_patience, end)

    def _lose_patience(self, end: float) -> None:
        self._clock = None
        if self.loop.time() > end + _LATE_SECONDS:
            self._watch()  # the server itself was delayed, and may have unread data
        else:
            self.transport.abort()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def limited(app: ASGIApp, state: ServerState) -> ASGIApp:
    """The application, refusing requests while there are too many connections."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if len(state.connections) <= MAX_CONNECTIONS:
            await app(scope, receive, send)
            return
        error = ApiError(503, "too many connections are open; try again in a moment")
        headers = {"Retry-After": "1", "Connection": "close"}
        await JSONResponse(error.body(), error.status, headers)(scope, receive, send)

    return answer
