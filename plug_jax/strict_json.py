"""Strict JSON (RFC 8259): neither NaN nor infinities."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps` with its options, with null for NaN and infinities.

    As in JavaScript; pandas reads null as NaN.

    Example: {"loss": nan, "step": 3} becomes '{"loss": null, "step": 3}'.
    """
    return json.dumps(_plain(value), allow_nan=False, **options)


def integer(digits: str) -> int:
    """`parse_int` for `json.loads`, with a clear ValueError if Python refuses the integer."""
    try:
        return int(digits)
    except ValueError as error:  # of more than 4,300 digits
        raise ValueError(f"a number of {len(digits):,} digits is more than can be read") from error


def kind_of(value: Any) -> str:
    """The JSON name of a value's type; Python's for a type that JSON does not have."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    kinds |= {int: "a number", float: "a number", type(None): "null"}
    return kinds.get(type(value), type(value).__name__)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
