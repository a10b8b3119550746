"""POST /v1/embeddings and /v1/classify: from a request's body to its results."""

from __future__ import annotations

import abc
import asyncio
import base64
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from plug_jax.downstream.text_format import TextFormat
from plug_jax.errors import PlugError, shown
from plug_jax.inference.encoder import EncoderModel
from plug_jax.inference.encoding import Embedding, check_max_length
from plug_jax.inference.fine_tuned import FineTunedModel
from plug_jax.inference.prediction import Prediction
from plug_jax.inference.request_options import EmbeddingOptions
from plug_jax.inference.rows import Row
from plug_jax.serving.api import (
    ApiError,
    check_model,
    check_types,
    option_error,
    text_of,
    unknown_field,
    value_of,
)
from plug_jax.serving.clients import Shares, client_of
from plug_jax.serving.reader import Reader, Reading, ReadJob
from plug_jax.serving.requests import from_thread, read_json, refusals, updates_of

_FORMATS = ("float", "base64")


@dataclasses.dataclass(frozen=True)
class ReadRequest:
    """A valid request; whether the texts fit the model is not checked yet."""

    reading: Reading
    rows: Sequence[Row]
    body: Mapping[str, Any]  # without null


class ReadingEndpoint(abc.ABC):
    """An endpoint, a raw ASGI application in order to notice disconnects."""

    def __init__(self, reader: Reader, *, model_name: str, shares: Shares) -> None:
        self._reader = reader
        self._model_name = model_name
        self._shares = shares
        self._most = min(reader.capacity, shares.most or reader.capacity)

    @abc.abstractmethod
    def parse(self, body: Mapping[str, Any]) -> ReadRequest:
        """Parse a body without nulls. ApiError for an invalid one."""

    @abc.abstractmethod
    def data(self, asked: ReadRequest, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON of one text, from the fields of its answer."""

    def special_tokens(self, asked: ReadRequest) -> int:
        """Number of special tokens in an answer's token count."""
        return 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        with refusals():  # before doing any work
            self._reader.ensure_room(1)
        try:
            body = await read_json(Request(scope, receive))
        except ClientDisconnect:
            return
        if not isinstance(body, Mapping):
            raise ApiError(400, "the body must be a JSON object")
        given = {name: value for name, value in body.items() if value is not None}
        check_model(given, self._model_name)
        asked = self.parse(given)
        if len(asked.rows) > self._most:
            message = f"the request has {len(asked.rows)} texts; at most {self._most} here"
            raise ApiError(400, message, param="input")
        changed = asyncio.Event()
        jobs = await run_in_threadpool(_jobs, asked, from_thread(changed.set))
        updates = updates_of(self._reader, jobs, changed, receive)
        with self._shares.taken(client_of(scope), len(jobs)):
            async with contextlib.aclosing(updates):
                async for _ in updates:
                    pass
        if all(job.finished for job in jobs):  # else the client disconnected
            answer = await run_in_threadpool(self._answer, asked, jobs)
            await JSONResponse(answer)(scope, receive, send)

    def _answer(self, asked: ReadRequest, jobs: Sequence[ReadJob]) -> dict[str, Any]:
        answers = [job.answer for job in jobs if job.answer is not None]
        tokens = sum(answer.tokens for answer in answers) - self.special_tokens(asked)
        return {
            "object": "list",
            "data": [
                {"index": index, **self.data(asked, answer.fields)}
                for index, answer in enumerate(answers)
            ],
            "model": self._model_name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


class Embeddings(ReadingEndpoint):
    """OpenAI's /v1/embeddings, plus our fields `pooling`, `normalize` and `max_length`."""

    def __init__(
        self, reader: Reader, encoder: EncoderModel, *, model_name: str, shares: Shares
    ) -> None:
        super().__init__(reader, model_name=model_name, shares=shares)
        self._encoder = encoder

    def parse(self, body: Mapping[str, Any]) -> ReadRequest:
        """See `ReadingEndpoint.parse`."""
        options = {field.name for field in dataclasses.fields(EmbeddingOptions)}
        _check_names(body, {"input", "encoding_format", "dimensions", *options})
        if value_of(body, "encoding_format", str, "float") not in _FORMATS:
            message = f"encoding_format must be one of {', '.join(_FORMATS)}"
            raise ApiError(400, message, param="encoding_format")
        size = self._encoder.config.hidden_size
        if value_of(body, "dimensions", int, size) != size:
            message = (
                f"dimensions is {shown(body['dimensions'])}; vectors of this model have {size}"
            )
            raise ApiError(400, message, param="dimensions")
        texts = _inputs(body)
        rows = [Row({"text": text_of(text, "input", _TEXTS)}) for text in texts]
        check_types(body, EmbeddingOptions)
        try:
            chosen = EmbeddingOptions(**{name: body[name] for name in options & body.keys()})
            check_max_length(chosen.max_length, self._encoder.longest)
        except PlugError as error:
            raise option_error(error, options) from error
        return ReadRequest(Reading(self._encoder, Embedding(options=chosen)), rows, body)

    def data(self, asked: ReadRequest, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The vector: numbers, or base64 of little-endian float32."""
        vector, left_out = fields["embedding"], fields.get("left_out")
        if asked.body.get("encoding_format") == "base64":
            vector = base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
        return {
            "object": "embedding",
            "embedding": vector,
            **({"left_out": left_out} if left_out else {}),
        }


class Classify(ReadingEndpoint):
    """Labels of texts and pairs from a fine-tuned model."""

    def __init__(
        self, reader: Reader, labeler: FineTunedModel, *, model_name: str, shares: Shares
    ) -> None:
        super().__init__(reader, model_name=model_name, shares=shares)
        self._reading = Reading(labeler, Prediction())

    def parse(self, body: Mapping[str, Any]) -> ReadRequest:
        """See `ReadingEndpoint.parse`."""
        _check_names(body, {"input"})
        return ReadRequest(self._reading, [_row(one) for one in _inputs(body)], body)

    def data(self, asked: ReadRequest, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The likeliest label, all labels' probabilities, and the number of characters cut."""
        names = ("prediction", "probabilities", "left_out")
        return {"object": "classification", **{n: fields[n] for n in names if n in fields}}

    def special_tokens(self, asked: ReadRequest) -> int:
        """[CLS], and a [SEP] after each text."""
        return sum(1 + len(row.fields) for row in asked.rows)


def labels_of(model: FineTunedModel) -> list[str] | None:
    """The labels of a text classification model; None for other models."""
    return list(model.format.labels) if isinstance(model.format, TextFormat) else None


_TEXTS = "a string or a list of strings (token ids are not supported)"
_PAIRS = 'a string, {"text": ..., "text_pair": ...}, or a list of these'


def _inputs(body: Mapping[str, Any]) -> list[Any]:
    if "input" not in body:
        raise ApiError(400, "input is missing", param="input")
    given = body["input"]
    inputs = given if isinstance(given, list) else [given]
    if not inputs:
        raise ApiError(400, "input is an empty list", param="input")
    return inputs


def _row(given: Any) -> Row:
    if not isinstance(given, Mapping):
        return Row({"text": text_of(given, "input", _PAIRS)})
    if not given.keys() <= {"text", "text_pair"} or "text" not in given:
        raise ApiError(400, f"input must be {_PAIRS}", param="input")
    return Row({name: text_of(text, "input", _PAIRS) for name, text in given.items()})


def _check_names(body: Mapping[str, Any], known: set[str]) -> None:
    value_of(body, "user", str, "")  # accepted, not used
    names = {*known, "model", "user"}
    for name in body:
        if name not in names:
            raise unknown_field(name, names)


def _jobs(asked: ReadRequest, notify: Callable[[], None]) -> list[ReadJob]:
    """The jobs of a request. ApiError for a text that cannot be read."""
    jobs = []
    for number, row in enumerate(asked.rows):
        try:
            item = asked.reading.prepare(row)
        except PlugError as error:
            which = f"input {number}: " if len(asked.rows) > 1 else ""
            raise ApiError(400, f"{which}{error}", param="input") from error
        jobs.append(ReadJob(reading=asked.reading, item=item, notify=notify))
    return jobs
