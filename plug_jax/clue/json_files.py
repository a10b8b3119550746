"""Strict reading of external JSON: each mistake is a PlugError with file, line and expectation."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from plug_jax.errors import PlugError, shortened
from plug_jax.strict_json import integer

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_KINDS = {str: "a string", int: "an integer", list: "a list", dict: "an object"}


@dataclasses.dataclass(frozen=True)
class JsonFile:
    """The bytes of a file, and its path."""

    path: str
    content: bytes

    def lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The position and object of each line; blank lines are skipped."""
        lines = self.content.removeprefix(BYTE_ORDER_MARK).split(b"\n")
        found = False
        for number, line in enumerate(lines, start=1):  # no other character ends a line
            if line.strip():
                where, found = f"{self.path}, line {number}", True
                value = parse(line, where, "one JSON object per line")
                yield where, checked(value, dict, where, "the line")
        if not found:
            raise PlugError(f"{self.path} is empty; expected one JSON object per line")

    def document(self) -> Any:
        """The one JSON value of the file."""
        content = self.content.removeprefix(BYTE_ORDER_MARK)
        return parse(content, self.path, "one JSON value in the whole file")


def parse(content: bytes, where: str, expected: str) -> Any:
    """The JSON value in `content`; PlugError if invalid, truncated, or with a duplicate key."""
    try:
        return json.loads(
            content.decode(),
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_int=integer,
        )
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        place = where if b"\n" not in content else f"{where}, line {line}"
        kind = "is cut off in a character" if error.end == len(content) else "is not UTF-8"
        raise PlugError(f"{place} {kind}: {error.reason}; expected {expected}") from error
    except json.JSONDecodeError as error:
        place = where if error.lineno == 1 else f"{where}, line {error.lineno}"
        cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        kind = "is cut off" if cut and content.strip() else "is not JSON"
        raise PlugError(
            f"{place} {kind}: {error.msg} at column {error.colno}; expected {expected}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PlugError(f"{where} is not JSON: {error}; expected {expected}") from error


def field(fields: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value of a key; PlugError if it is missing or of another type."""
    if key not in fields:
        keys = shortened(", ".join(map(repr, fields))) or "no key at all"
        raise PlugError(f"{where} has no {key!r}; it has {keys}")
    return checked(fields[key], kind, where, repr(key))


def checked(value: Any, kind: type | tuple[type, ...], where: str, name: str) -> Any:
    """`value`; PlugError if it is of another type."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, kinds) and not isinstance(value, bool):
        if isinstance(value, str) and _HALF_PAIR.search(value):
            raise PlugError(f"{where}: {name} holds half of a surrogate pair, which is no text")
        return value
    expected = " or ".join(_KINDS[one] for one in kinds)
    raise PlugError(f"{where}: {name} is {shown(value)}; expected {expected}")


def strings(value: Any, where: str, name: str) -> tuple[str, ...]:
    """A list of strings as a tuple; PlugError for anything else."""
    items = checked(value, list, where, name)
    return tuple(checked(item, str, where, f"an item of {name}") for item in items)


def shown(value: Any) -> str:
    """A value as JSON, shortened for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        double = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {double!r} comes twice in one object")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")
