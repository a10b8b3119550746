"""JSON that every reader takes: RFC 8259 knows neither NaN nor infinities."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps` with its options, and null for each float that is no number: NaN, an infinity.

    As JavaScript writes them, and pandas reads them (null is NaN there).

    Example: {"loss": nan, "step": 3} becomes '{"loss": null, "step": 3}'.
    """
    return json.dumps(_plain(value), allow_nan=False, **options)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
