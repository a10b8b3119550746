"""A worker and its application behind a socket, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import ssl
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from plug_jax.errors import PlugError
from plug_jax.serving.connections import LAST_SECONDS, Connection, limited
from plug_jax.serving.worker import Worker

GRACE_SECONDS = 10.0


class Server(uvicorn.Server):
    """Stops at SIGINT and SIGTERM: refuses new requests, and gives those in hand some seconds.

    A second signal ends their time.
    """

    def __init__(
        self,
        app: Starlette,
        worker: Worker[Any],
        *,
        tls: ssl.SSLContext | None = None,
        grace: float = GRACE_SECONDS,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=int(2 * LAST_SECONDS),  # each connection ends before
        )
        super().__init__(config)
        config.app = limited(app, self.server_state)
        self._worker = worker
        self._grace = grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by a signal."""
        if self.should_exit:
            self._worker.stop(0)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called once it is to end.

        Until the last text is written it still listens, so that requests which come meanwhile are
        refused by an answer, and `/health` tells that it is stopping.
        """
        self._worker.stop(self._grace)
        while self._worker.ending(LAST_SECONDS):
            await asyncio.sleep(0.05)
        self._worker.abandon()
        await self._close(sockets or [])
        await super().shutdown(sockets)

    async def _close(self, sockets: list[socket.socket]) -> None:
        """Listen no more, and take what the system has connected already: it would be reset."""
        connected = []
        for sock in sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    connected.append(sock.accept()[0])
        for server in self.servers:
            server.close()
        for sock in sockets:
            sock.close()
        loop = asyncio.get_running_loop()
        handshake = None if self.config.ssl is None else LAST_SECONDS
        handed_over = [
            loop.connect_accepted_socket(
                self._connection, one, ssl=self.config.ssl, ssl_handshake_timeout=handshake
            )
            for one in connected
        ]
        await asyncio.gather(*handed_over, return_exceptions=True)

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)

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


def url(sock: socket.socket, host: str, *, encrypted: bool = False) -> str:
    """Where a browser finds it."""
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if encrypted else 'http'}://{name}:{sock.getsockname()[1]}/"


def tls_context(certificate: str, key: str | None = None) -> ssl.SSLContext:
    """What encrypts connections.

    Args:
        certificate: file of the certificate and those between it and the authority (PEM).
        key: file of its private key (PEM, not encrypted); None: it is in the same file.

    Raises:
        PlugError: a file cannot be read, is no PEM, or the two do not belong together.
    """
    for path in (certificate, key or certificate):
        try:
            open(path, "rb").close()
        except OSError as error:  # load_cert_chain does not say which of them
            raise PlugError(f"cannot read {path} for TLS: {error.strerror}") from error

    def ask() -> str:  # by default OpenSSL asks the terminal
        raise PlugError(f"the private key in {key or certificate} is encrypted; decrypt it first")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=ask)
    except ssl.SSLError as error:
        files = certificate if key is None else f"{certificate} and {key}"
        raise PlugError(
            f"{files} must hold a certificate and its private key as PEM: {error}"
        ) from error
    return context
