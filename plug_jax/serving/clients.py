"""Client authentication and limits: API keys and shares."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import hmac
import os
from collections.abc import Generator, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from plug_jax.errors import PlugError
from plug_jax.serving.api import ApiError

KEY_VARIABLE = "PLUG_JAX_API_KEY"
MIN_KEY_LENGTH = 16
_MAKE_ONE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
_CLIENT = "plug_jax.client"  # in a request's scope: its key


def read_keys(path: str | None) -> tuple[str, ...]:
    """The keys of a file, one per line, or that of the environment variable PLUG_JAX_API_KEY.

    They are not arguments, because everybody on a machine can read command lines.

    Returns:
        Empty without a file or the variable: then no key is needed.

    Raises:
        PlugError: both are given, the file is unreadable or empty, or a key is easily guessed.
    """
    given = os.environ.get(KEY_VARIABLE)
    if path is None and given is None:
        return ()
    if path is None:
        where, lines = f"the environment variable {KEY_VARIABLE}", [given or ""]
    elif given is None:
        where, lines = path, _lines(path)
    else:
        raise PlugError(f"api_keys is {path}, and {KEY_VARIABLE} is set too; keep one of them")
    keys = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not keys:
        raise PlugError(f"{where} has no key; {_MAKE_ONE}")
    for number, key in enumerate(keys, start=1):
        if len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()) or " " in key:
            raise PlugError(
                f"key {number} of {where} must be {MIN_KEY_LENGTH} or more ASCII characters "
                f"without a space; {_MAKE_ONE}"
            )
    return keys


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise PlugError(f"cannot read the API keys in {path}: {reason}") from error


class RequireKey:
    """Middleware that passes only requests with a key to `app`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; ApiError with status 401 before its body is read."""
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            message = "an API key is needed; send the header 'Authorization: Bearer KEY'"
            raise ApiError(401, message, code="invalid_api_key")
        digest = _digest(key.strip())
        # Compare all, each in constant time, so that timing reveals nothing about keys.
        equal = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(equal):
            raise ApiError(401, "the API key is not valid here", code="invalid_api_key")
        await self._app({**scope, _CLIENT: f"key {equal.index(True)}"}, receive, send)


def _digest(key: str) -> bytes:
    """A digest, so that lengths are equal."""
    return hashlib.sha256(key.encode()).digest()


def client_of(scope: Scope) -> str:
    """The client: its key, or without keys its address."""
    address = scope.get("client") or ("",)
    return str(scope.get(_CLIENT, address[0]))


class Shares:
    """The number of texts per client, and its limit."""

    def __init__(self, most: int | None) -> None:
        """`most` texts per client at a time; None: as many as the server takes.

        Raises:
            PlugError: it is less than 1.
        """
        if most is not None and most < 1:
            raise PlugError(f"max_client_texts is {most}; it must be at least 1")
        self.most = most
        self._held: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def taken(self, client: str, texts: int) -> Generator[None]:
        """Count this many more texts for the client within the context.

        Raises:
            ApiError: 429, if that would exceed the limit.
        """
        if self.most is not None and self._held[client] + texts > self.most:
            message = f"a client may have {self.most} texts at a time; wait for those in progress"
            raise ApiError(429, message, code="rate_limit_exceeded")
        self._held[client] += texts
        try:
            yield
        finally:
            self._held[client] -= texts
            self._held += collections.Counter()  # drop clients without texts
