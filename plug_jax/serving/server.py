"""A worker and its application behind a socket, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import signal
import socket
import ssl
import struct
import sys
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
_HANDSHAKE_SECONDS = 0.2  # at shutdown, for TCP handshakes that have begun

# A classic BPF program. A TCP socket's filter sees segments from the TCP header on, whose byte 13
# holds the flags: a segment with SYN and without ACK asks for a new connection.
_SYN, _ACK = 0x02, 0x10
_DROP_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),  # A = byte 13
    (0x54, 0, 0, _SYN | _ACK),  # A &= SYN | ACK
    (0x15, 0, 1, _SYN),  # if A != SYN, skip one instruction
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)
_SO_ATTACH_FILTER = 26  # Linux; Python's socket module does not name it


class Server(uvicorn.Server):
    """On SIGINT or SIGTERM, refuses new requests, and gives current ones a few seconds.

    A second signal ends the wait.
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
            timeout_graceful_shutdown=int(2 * LAST_SECONDS),  # connections close earlier
        )
        super().__init__(config)
        config.app = limited(app, self.server_state)
        self._worker = worker
        self._grace = grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.should_exit:
            self._worker.stop(0)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called at shutdown.

        It keeps listening until the last text is finished, so that new requests get a response and
        `/health` reports that it is stopping.
        """
        self._worker.stop(self._grace)
        while self._worker.ending(LAST_SECONDS):
            await asyncio.sleep(0.05)
        self._worker.abandon()
        await self._close(sockets or [])
        await super().shutdown(sockets)

    async def _close(self, sockets: list[socket.socket]) -> None:
        """Stop listening without resetting connections that were just made, where possible."""
        for sock in sockets:
            ignore_new_connections(sock)
        await asyncio.sleep(_HANDSHAKE_SECONDS)
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
        """Like uvicorn's, without re-raising the signals: stopping is not a failure."""
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
    """A listening socket; clients that connect before the server runs have to wait.

    Raises:
        PlugError: the port is taken or forbidden, or the address is not available.
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
        # create_server's message repeats the address; getaddrinfo has its own error numbers.
        reason = os.strerror(number) if number and number > 0 else str(error)
        raise PlugError(f"cannot listen on {host} port {port}: {reason}") from error


def ignore_new_connections(sock: socket.socket) -> None:
    """Make a listening socket take no further connections, but keep those it has.

    Closing it resets connections that were made since the last accept. Linux alone can do this:
    clients that connect from now on try again a second later, and are refused once the socket is
    closed. Elsewhere it does nothing, and such a reset remains possible.
    """
    if sys.platform != "linux":
        return
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_NEW_CONNECTIONS)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(_DROP_NEW_CONNECTIONS), ctypes.addressof(buffer))
    with contextlib.suppress(OSError):  # a kernel without it, such as some sandboxes
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def allowed_hosts(sock: socket.socket, host: str) -> list[str]:
    """Accepted Host headers for this socket; "*" beyond loopback."""
    if not is_loopback(sock):
        return ["*"]
    name = f"[{host}]" if ":" in host else host
    return sorted({"localhost", "127.0.0.1", "[::1]", name})


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def url(sock: socket.socket, host: str, *, encrypted: bool = False) -> str:
    """The URL for a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if encrypted else 'http'}://{name}:{sock.getsockname()[1]}/"


def tls_context(certificate: str, key: str | None = None) -> ssl.SSLContext:
    """The TLS context.

    Args:
        certificate: file with the certificate and its chain (PEM).
        key: file with its private key (PEM, unencrypted); None: in the same file.

    Raises:
        PlugError: a file is unreadable or not PEM, or key and certificate do not match.
    """
    for path in (certificate, key or certificate):
        try:
            open(path, "rb").close()
        except OSError as error:  # load_cert_chain does not say which file
            raise PlugError(f"cannot read {path} for TLS: {error.strerror}") from error

    def ask() -> str:  # by default OpenSSL prompts on the terminal
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
