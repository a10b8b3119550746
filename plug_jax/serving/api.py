"""The fields of POST /v1/completions: parsing of requests, and errors.

They are OpenAI's, plus our own for other options. Defaults are those of `plug-jax generate`. A
field that should change the text but would be ignored is an error.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from plug_jax.errors import PlugError, shortened, shown
from plug_jax.field_types import FieldTypeError
from plug_jax.inference.request_options import GenerationOptions

MAX_SAMPLES = 128
MAX_STOPS = 4
_MAX_LOG_PROBS = 5  # OpenAI's limit

_RENAMED = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
# Options that differ from the command's: `n` sampled texts per prompt.
_NOT_SERVED = (
    *("num_samples", "num_beams", "length_penalty", "length_offset"),
    *("forced_text", "forbidden_text"),
)
# Field -> (option of GenerationOptions, type).
_OPTIONS: dict[str, tuple[str, type]] = {
    _RENAMED.get(field.name, field.name): (field.name, type(field.default))
    for field in dataclasses.fields(GenerationOptions)
    if field.name not in _NOT_SERVED
}
_OTHERS = ("model", "prompt", "n", "stop", "stream", "stream_options", "logprobs", "user")
# Unsupported fields accepted with a neutral value -> neutral values, what to do instead.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "echo": ((False,), "put the prompt before the text yourself"),
    "suffix": (("",), "the model writes forward only"),
    "logit_bias": (({},), "leave it out"),
    "frequency_penalty": ((0, 0.0), "use repetition_penalty or no_repeat_ngram"),
    "presence_penalty": ((0, 0.0), "use repetition_penalty or no_repeat_ngram"),
    "best_of": ((1,), "ask for n texts and choose with logprobs"),
}
_KINDS = {"int": int, "int | None": int, "float": float, "bool": bool, "str": str}
_TYPE_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


class ApiError(Exception):
    """An error response: its status and OpenAI's error fields."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = shortened(message, _LONGEST_MESSAGE)
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kinds = {429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else _INVALID)
        error = {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


_INVALID = "invalid_request_error"
_LONGEST_MESSAGE = 2000  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A valid request; whether the prompts fit the model is not checked yet."""

    prompts: tuple[str, ...]
    options: GenerationOptions  # of one text
    n: int  # texts per prompt
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool  # a stream ends with the usage
    logprobs: bool


def parse(body: Any, *, model_name: str, max_tokens: int) -> CompletionRequest:
    """Read the JSON of a request.

    Args:
        body: from `json.loads`.
        model_name: required value of "model", if set.
        max_tokens: the server's limit, which also bounds the default of "max_tokens".

    Raises:
        ApiError: 400 with the name of the invalid field; 404 for another model.
    """
    if not isinstance(body, Mapping):
        raise ApiError(400, "the body must be a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    _check_names(given)
    check_model(given, model_name)
    value_of(given, "user", str, "")  # accepted, not used
    n = value_of(given, "n", int, 1)
    if not 1 <= n <= MAX_SAMPLES:
        raise ApiError(400, f"n is {shown(n)}; it must be between 1 and {MAX_SAMPLES}", param="n")
    log_probs = value_of(given, "logprobs", int, -1)
    if "logprobs" in given and not 0 <= log_probs <= _MAX_LOG_PROBS:
        message = f"logprobs is {shown(log_probs)}; it must be between 0 and {_MAX_LOG_PROBS}"
        raise ApiError(400, message, param="logprobs")
    stream = value_of(given, "stream", bool, False)
    return CompletionRequest(
        prompts=_prompts(given),
        options=_options(given, max_tokens),
        n=n,
        stop=_stops(given),
        stream=stream,
        include_usage=_include_usage(given, stream),
        logprobs="logprobs" in given,
    )


def check_model(given: Mapping[str, Any], model_name: str) -> None:
    """ApiError, 404, if a request is for another model."""
    if value_of(given, "model", str, model_name) != model_name:
        message = f"there is no model {shown(given['model'])} here, only {model_name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def api_message(error: PlugError) -> str:
    """The message with the API's names for options."""
    message = str(error)
    for field, (option, _) in _OPTIONS.items():
        message = message.replace(option, field)
    return message


def _check_names(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _NEUTRAL:
            harmless, advice = _NEUTRAL[name]
            if name == "best_of":
                harmless = (given.get("n", 1),)
            if not any(type(value) is type(h) and value == h for h in harmless):
                raise ApiError(400, f"{name} is not supported here; {advice}", param=name)
        elif name not in _OPTIONS and name not in _OTHERS:
            raise unknown_field(name, [*_OPTIONS, *_OTHERS])


def unknown_field(name: str, known: Iterable[str]) -> ApiError:
    """The error for an unknown field."""
    param = shortened(name.encode("utf-8", "backslashreplace").decode())  # maybe invalid Unicode
    message = f"unknown field {shown(name)}; there are: {', '.join(sorted(known))}"
    return ApiError(400, message, param=param)


def value_of(given: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """A field of the required type; an integer counts as a number, true as neither."""
    value = given.get(name, default)
    accepted: Any = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ApiError(400, f"{name} must be {_TYPE_NAMES[kind]}", param=name)
    if kind is not float:
        return value
    try:
        number = float(value)
    except OverflowError as error:
        raise ApiError(400, f"{name} is too large", param=name) from error
    if not math.isfinite(number):  # JSON can spell 1e400
        raise ApiError(400, f"{name} must be a finite number", param=name)
    return number


def text_of(value: Any, name: str, what: str) -> str:
    """A text field. ApiError that it must be `what` for anything else."""
    if not isinstance(value, str):
        raise ApiError(400, f"{name} must be {what}", param=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ApiError(400, f"{name} is not valid Unicode: {error.reason}", param=name) from error
    return value


def _prompts(given: Mapping[str, Any]) -> tuple[str, ...]:
    if "prompt" not in given:
        raise ApiError(400, "prompt is missing", param="prompt")
    value = given["prompt"]
    prompts = value if isinstance(value, list) else [value]
    if not prompts:
        raise ApiError(400, "prompt is an empty list", param="prompt")
    what = "a string or a list of strings (token ids are not supported)"
    return tuple(text_of(prompt, "prompt", what) for prompt in prompts)


def _stops(given: Mapping[str, Any]) -> tuple[str, ...]:
    value = given.get("stop", [])
    stops = value if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS:
        raise ApiError(400, f"stop has {len(stops)} strings, at most {MAX_STOPS}", param="stop")
    if "" in stops:
        raise ApiError(400, "stop has an empty string", param="stop")
    return tuple(text_of(stop, "stop", "a string or a list of strings") for stop in stops)


def _options(given: Mapping[str, Any], max_tokens: int) -> GenerationOptions:
    defaults = GenerationOptions()
    options = {
        option: value_of(given, field, kind, getattr(defaults, option))
        for field, (option, kind) in _OPTIONS.items()
    }
    if "max_tokens" not in given:
        options["max_new_tokens"] = min(defaults.max_new_tokens, max_tokens)
    if "seed" not in given:
        options["seed"] = secrets.randbelow(2**32)
    try:
        return GenerationOptions(**options)
    except PlugError as error:
        raise option_error(error, _OPTIONS) from error


def check_types(given: Mapping[str, Any], declared: type) -> None:
    """ApiError for a field that is an option of `declared` but of another JSON type.

    `declared` itself would accept 3.0 for an integer, as gin files may have it.
    """
    for field in dataclasses.fields(declared):
        kind = _KINDS.get(str(field.type))
        if kind is not None and field.name in given:
            value_of(given, field.name, kind, None)


def option_error(error: PlugError, fields: Iterable[str]) -> ApiError:
    """The error for options that their dataclass refused, with the field's name."""
    message = api_message(error)
    if isinstance(error, FieldTypeError):
        message = message.removeprefix(f"{error.owner}: ")
    named = message.partition(" ")[0]  # these messages begin with the name
    return ApiError(400, message, param=named if named in fields else None)


def _include_usage(given: Mapping[str, Any], stream: bool) -> bool:
    if "stream_options" not in given:
        return False
    options = given["stream_options"]
    if not stream or not isinstance(options, Mapping) or options.keys() - {"include_usage"}:
        message = 'stream_options is {"include_usage": true or false}, and needs stream'
        raise ApiError(400, message, param="stream_options")
    include: bool = value_of(options, "include_usage", bool, False)
    return include
