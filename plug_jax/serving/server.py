"""The engine and its application behind a socket, until a signal ends it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Generator
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from plug_jax.errors import PlugError
from plug_jax.serving.engine import Engine

GRACE_SECONDS = 10.0
_LATEST = 2.0  # after the grace, for what has failed to be sent


class Server(uvicorn.Server):
    """Stops at SIGINT and SIGTERM: takes no new requests, and gives those in hand some seconds.

    A second signal ends their time.
    """

    def __init__(self, app: Starlette, engine: Engine, *, grace: float = GRACE_SECONDS) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=int(grace + _LATEST),
        )
        super().__init__(config)
        self._engine = engine
        self._grace = grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by a signal."""
        if self.should_exit:
            self._engine.stop(0)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called once it is to end."""
        self._engine.stop(self._grace)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """As uvicorn's, which also raises the signals once more: to be stopped is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; clients that come before the server runs are kept waiting.

    Raises:
        PlugError: the port is taken or forbidden, or there is no such address here.
    """
    if not 0 <= port < 1 << 16:  # getaddrinfo would take it modulo 2**16
        raise PlugError(f"port is {port}; it must be between 0 (a free one) and 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        # What create_server says has the address once more; getaddrinfo's numbers are its own.
        reason = os.strerror(number) if number and number > 0 else str(error)
        raise PlugError(f"cannot listen on {host} port {port}: {reason}") from error


def allowed_hosts(sock: socket.socket, host: str) -> list[str]:
    """Names in the Host header that a browser may use for this socket; "*" beyond loopback."""
    if not is_loopback(sock):
        return ["*"]
    name = f"[{host}]" if ":" in host else host
    return sorted({"localhost", "127.0.0.1", "[::1]", name})


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def url(sock: socket.socket, host: str) -> str:
    """Where a browser finds it."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{sock.getsockname()[1]}/"
