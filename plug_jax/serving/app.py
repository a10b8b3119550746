"""The server's routes, and responses to unknown ones."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from plug_jax.errors import shortened
from plug_jax.inference.encoder import EncoderModel
from plug_jax.inference.fine_tuned import FineTunedModel
from plug_jax.serving.api import ApiError, check_model
from plug_jax.serving.clients import RequireKey, Shares
from plug_jax.serving.completions import Completions
from plug_jax.serving.engine import Engine
from plug_jax.serving.reader import Reader
from plug_jax.serving.readings import Classify, Embeddings, labels_of
from plug_jax.serving.worker import Worker

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
_SHARED = re.compile(r"\{\{([\w.]+)\}\}\n")
_HEADERS = {  # of errors
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "1"},
    503: {"Retry-After": "1"},
}


def make_app(
    engine: Engine,
    *,
    model_name: str,
    allowed_hosts: Sequence[str] = ("*",),
    keys: Sequence[str] = (),
    shares: Shares | None = None,
) -> Starlette:
    """The application for a running engine.

    Args:
        engine: with its context entered.
        model_name: the model's name for clients.
        allowed_hosts: accepted Host headers. On a loopback address others come from a web page
            whose name resolves to it (DNS rebinding).
        keys: one of them is required under /v1; empty: no key is needed.
        shares: limits per client; None: as much as the engine takes.
    """
    slots = engine.slots
    completions = Completions(
        engine,
        model_name=model_name,
        max_tokens=slots.max_new_tokens,
        shares=shares or Shares(None),
    )
    limits = {
        "max_prompt_tokens": slots.max_prompt_tokens - 2,  # less [CLS] and [SEP]
        "max_tokens": slots.max_new_tokens,
    }
    return _app(
        engine,
        {"/completions": completions},
        model={"id": model_name, **limits},
        page="page.html",
        at_a_time=slots.count,
        allowed_hosts=allowed_hosts,
        keys=keys,
    )


def make_reading_app(
    reader: Reader,
    encoder: EncoderModel,
    labeler: FineTunedModel | None,
    *,
    model_name: str,
    allowed_hosts: Sequence[str] = ("*",),
    keys: Sequence[str] = (),
    shares: Shares | None = None,
) -> Starlette:
    """The application for a running reader: embeddings, and labels with a `labeler`.

    Other arguments as for `make_app`.
    """
    shares = shares or Shares(None)
    endpoints: dict[str, ASGIApp] = {
        "/embeddings": Embeddings(reader, encoder, model_name=model_name, shares=shares)
    }
    model: dict[str, Any] = {
        "id": model_name,
        "max_prompt_tokens": encoder.longest - 2,
        "embedding_size": encoder.config.hidden_size,
    }
    if labeler is not None:
        endpoints["/classify"] = Classify(reader, labeler, model_name=model_name, shares=shares)
        model["labels"] = labels_of(labeler)
    return _app(
        reader,
        endpoints,
        model=model,
        page="reading.html",
        at_a_time=reader.batch_size,
        allowed_hosts=allowed_hosts,
        keys=keys,
    )


def _app(
    worker: Worker[Any],
    endpoints: Mapping[str, ASGIApp],
    *,
    model: Mapping[str, Any],
    page: str,
    at_a_time: int,
    allowed_hosts: Sequence[str],
    keys: Sequence[str],
) -> Starlette:
    described = {"object": "model", "created": int(time.time()), "owned_by": "plug-jax", **model}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described]})

    async def one_model(request: Request) -> Response:
        check_model({"model": request.path_params["name"]}, described["id"])
        return JSONResponse(described)

    async def health(request: Request) -> Response:
        working, waiting = worker.counts()
        body = {
            "status": worker.state,
            "slots": at_a_time,
            "writing": working,
            "waiting": waiting,
        }
        return JSONResponse(body, status_code=200 if worker.state == "ok" else 503)

    return Starlette(
        routes=[
            Route("/", _page(page)),
            Mount(
                "/v1",
                routes=[
                    *(Route(path, one, methods=["POST"]) for path, one in endpoints.items()),
                    Route("/models", models),
                    Route("/models/{name:path}", one_model),
                ],
                middleware=[Middleware(RequireKey, keys)] if keys else [],
            ),
            Route("/health", health),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _bug},
    )


def _page(name: str) -> Any:
    """The handler of a page. It may run its own script and style, and talk to this server.

    {{file}} in a page includes a shared file.
    """
    files = importlib.resources.files("plug_jax.serving")
    html = _SHARED.sub(
        lambda found: files.joinpath(found[1]).read_text("utf-8"),
        files.joinpath(name).read_text("utf-8"),
    )
    inline = {kind: _hash(content) for kind, content in _INLINE.findall(html)}
    policy = (
        f"default-src 'none'; script-src '{inline['script']}'; style-src '{inline['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    return page


def _hash(content: str) -> str:
    """The Content-Security-Policy hash of an inline element."""
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"sha256-{digest}"


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, _HEADERS.get(error.status))


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's 404 and 405, in the common error format."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {shortened(request.url.path)}: {error.detail}"
    body = ApiError(error.status_code, message).body()
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    body = ApiError(500, "the server failed; its log says why").body()
    return JSONResponse(body, status_code=500)
