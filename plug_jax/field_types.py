"""Run-time checks of configuration fields against their type annotations.

Values that gin and JSON cannot express are converted: a list to a tuple, a whole float such as 1e5
to an integer, an integer to a float, and a single value to a sequence of one. Nothing else is
converted; a bool is not a number.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from typing import (
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

from plug_jax.errors import PlugError, shown

P = ParamSpec("P")
T = TypeVar("T")


class FieldTypeError(PlugError):
    """Values of the wrong type; `fields` names them, `owner` their class or function."""

    def __init__(self, owner: str, problems: Mapping[str, str]) -> None:
        self.owner, self.fields = owner, tuple(problems)
        super().__init__(
            f"{owner}: " + "; ".join(f"{name} must be {text}" for name, text in problems.items())
        )


def check_fields(config: Any, names: Mapping[str, Any] | None = None) -> None:
    """Convert each field of a dataclass to its annotated type; called by `__post_init__`.

    `names`: annotation names that the module imports only for type checkers.

    Raises:
        FieldTypeError: names every field with a value of another type.
    """
    owner = type(config)
    hints = get_type_hints(owner, localns=dict(names) if names else None)
    declared = {field.name: hints[field.name] for field in dataclasses.fields(config) if field.init}
    values = {name: getattr(config, name) for name in declared}
    for name, value in _converted(owner.__name__, values, declared).items():
        object.__setattr__(config, name, value)


def typed(function: Callable[P, T]) -> Callable[P, T]:
    """The function with its arguments converted to their annotated types, as `check_fields`."""
    signature = inspect.signature(function)
    untyped: Callable[..., T] = function

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        values = dict(zip(signature.parameters, args, strict=False)) | kwargs
        signature.bind(**values)  # TypeError for missing and unknown names
        types = parameter_types(function)
        if unknown := sorted(values.keys() - types.keys()):  # that **options would take
            raise TypeError(f"{function.__name__} has no parameter {', '.join(unknown)}")
        return untyped(**_converted(function.__name__, values, types))

    checked.__signature__ = signature  # type: ignore[attr-defined] # gin reads the defaults there
    return checked


def parameter_types(function: Callable[..., Any]) -> dict[str, Any]:
    """The type of each parameter, including those of `**options: Unpack[...]`."""
    hints = get_type_hints(function)
    types: dict[str, Any] = {}
    for name in inspect.signature(function).parameters:
        hint = hints.get(name, Any)
        unpacked = get_origin(hint) is Unpack
        types |= get_type_hints(get_args(hint)[0]) if unpacked else {name: hint}
    return types


class _Unfit(Exception):
    """The value does not fit the type."""


def _converted(owner: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    converted, problems = {}, {}
    for name, value in values.items():
        try:
            converted[name] = _convert(value, hints[name])
        except _Unfit:
            problems[name] = f"{_describe(hints[name])}, not {shown(value)}"
    if problems:
        raise FieldTypeError(owner, problems)
    return converted


def _convert(value: Any, hint: Any) -> Any:
    """The value converted to `hint`. Raises _Unfit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_to_any(value, arguments)
    if origin is Literal:
        return _accept(value, any(value == a and type(value) is type(a) for a in arguments))
    if hint in (int, float):
        return _convert_number(value, hint)
    if origin is not None and issubclass(origin, Mapping):
        _accept(value, isinstance(value, Mapping))
        key, item = arguments
        return {_convert(k, key): _convert(v, item) for k, v in value.items()}
    if origin is not None and issubclass(origin, Sequence):
        return _convert_sequence(value, origin, arguments)
    expected = hint if origin is None else origin  # of list[int] and the like: what it is of
    if not isinstance(expected, type):
        return value  # callables, type variables
    return _accept(value, isinstance(value, expected))


def _convert_to_any(value: Any, hints: Sequence[Any]) -> Any:
    """The value as the first type that it fits unchanged, else the first that it can convert to."""
    found = []
    for hint in hints:
        try:
            found.append(_convert(value, type(None) if hint is None else hint))
        except _Unfit:
            continue
    if not found:
        raise _Unfit
    return next((one for one in found if type(one) is type(value)), found[0])


def _convert_number(value: Any, hint: type) -> int | float:
    _accept(value, isinstance(value, numbers.Real) and not isinstance(value, bool))
    try:
        number: int | float = hint(value)
    except (ValueError, OverflowError) as error:  # nan, inf; an integer beyond all floats
        raise _Unfit from error
    return _accept(number, math.isfinite(number) if hint is float else number == value)


def _convert_sequence(value: Any, origin: type, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """A tuple, which is immutable, from a tuple, a list or a single item."""
    if not isinstance(value, list | tuple):
        _accept(value, Any not in arguments)  # which would take whatever it is
        value = (value,)
    if origin is tuple and arguments[-1] is not Ellipsis:
        _accept(value, len(value) == len(arguments))
        return tuple(_convert(item, hint) for item, hint in zip(value, arguments, strict=True))
    return tuple(_convert(item, arguments[0]) for item in value)


def _accept(value: Any, is_fit: bool) -> Any:
    if not is_fit:
        raise _Unfit
    return value


_NAMES = {
    int: "a whole number",
    float: "a finite number",
    str: "a text in quotes",
    bool: "True or False",
    type(None): "None",
    None: "None",
}


def _describe(hint: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _NAMES:
        return _NAMES[hint]
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is not None and issubclass(origin, Mapping):
        key, item = map(_describe, arguments)
        return f"a dict {{...}} from {key} to {item}"
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"({', '.join(map(_describe, arguments))})"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list, each item {_describe(arguments[0])}"
    name = str(getattr(hint, "__name__", hint))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
