"""The statements of gin files and the command line, each with its position.

gin's own parser reads them. gin itself does not record where a value came from, which
`plug_jax.cli.gin_reading` needs for messages about settings that nothing reads.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gin import config_parser

from plug_jax.errors import PlugError

MACRO = "gin.macro"  # gin treats a macro as the parameter `value` of this, with its name as scope
_DYNAMIC_REGISTRATION = "__gin__.dynamic_registration"
_BINDING = re.compile(r"\s*([\w./]+)\s*=\s*(.*?)\s*(?:#.*)?$", re.DOTALL)
_TOKEN = re.compile(r"Failed to parse token '(.+)'")
_CONSTANTS = {"true": "True", "false": "False", "none": "None", "null": "None"}
_QUOTES = "'\"‘’“”"


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scopes/name` or `@scopes/name()`; a macro is `gin.macro` in a scope with its name."""

    scopes: tuple[str, ...]
    name: str
    called: bool = dataclasses.field(default=True, compare=False)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where statements come from: a file, or the command line."""

    name: str
    ours: bool  # it ships with plug-jax, or a command sets it
    rank: int  # origins of a higher rank may replace its settings
    imports: Mapping[str, config_parser.ImportStatement]  # by the names they define
    names_imports: bool = True  # its selectors begin with those names (dynamic registration)

    def place(self, line: int, setting: str, value: str) -> str:
        """A statement's position, for messages."""
        return f"{self.name}:{line}"


@dataclasses.dataclass(frozen=True)
class CommandLine(Origin):
    """The settings of one command line."""

    def place(self, line: int, setting: str, value: str) -> str:
        """The argument as typed."""
        return f"--gin.{setting}={value}"


@dataclasses.dataclass(frozen=True)
class Statement:
    """`scope/selector.parameter = value`; the value holds a `Reference` for each of gin's."""

    scope: tuple[str, ...]
    selector: str
    parameter: str
    value: Any
    origin: Origin
    place: str

    @property
    def setting(self) -> str:
        """What is set, as written."""
        if self.selector == MACRO:
            return "/".join(self.scope)
        return "/".join((*self.scope, f"{self.selector}.{self.parameter}"))

    @property
    def references(self) -> Iterator[Reference]:
        """The references in the value, at any depth."""
        return _references(self.value)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A gin file, or the part of one between two includes; its imports are in every part."""

    origin: Origin
    text: str
    statements: tuple[Statement, ...]

    def stream(self) -> io.StringIO:
        """For gin to parse, so that its messages have the file's name and line numbers."""
        return _Named(self.text, self.origin.name)


class _Named(io.StringIO):
    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


class _Delegate(config_parser.ParserDelegate):
    """Keeps references symbolic; gin's own delegate would import and register their targets."""

    def configurable_reference(self, scoped_name: str, evaluate: bool) -> Reference:
        *scopes, name = scoped_name.split("/")
        return Reference(tuple(scopes), name, evaluate)

    def macro(self, name: str) -> Reference:
        return Reference(tuple(name.split("/")), MACRO)


def read_files(names: Sequence[str], search_paths: Sequence[Path]) -> list[Piece]:
    """The files and their includes, in gin's order; the last of `search_paths` has our own.

    Raises:
        PlugError: a file that is not found, not UTF-8, includes itself, or that gin cannot parse.
    """
    return [piece for name in names for piece in _read_file(name, search_paths, ())]


def read_bindings(
    bindings: Iterable[str],
    imports: Mapping[str, config_parser.ImportStatement],
    *,
    rank: int,
    ours: bool = False,
) -> Piece:
    """The statements of `NAME = VALUE` texts, with names defined by `imports`."""
    origin = CommandLine("the command line", ours, rank, imports)
    statements = []
    for binding in bindings:
        setting, _, value = (part.strip() for part in binding.partition("="))
        place = origin.place(1, setting, value)
        parsed = _parse(binding, place, command_line=True)
        if len(parsed) != 1 or not isinstance(parsed[0], config_parser.BindingStatement):
            raise PlugError(f"{place}: this sets nothing; --gin.NAME=VALUE does")
        statements.append(_statement(parsed[0], origin, place))
    _check_repetitions(statements)
    # References use imported names; other settings use names that gin knows from the files.
    named = {r.name for statement in statements for r in statement.references} - {MACRO}
    head = ["from __gin__ import dynamic_registration"] if named else []
    head += [statement.format() for statement in imports.values() if named]
    return Piece(origin, "\n".join([*head, *bindings]) + "\n", tuple(statements))


def near(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean ...?` with the most similar name, ignoring case; else an empty string."""
    by_lower = {known.lower(): known for known in sorted(names)}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def _read_file(
    name: str, search_paths: Sequence[Path], includers: tuple[Path, ...]
) -> Iterator[Piece]:
    path = next((p for p in (d / name for d in search_paths) if p.is_file()), None)
    if path is None:
        ours = search_paths[-1]
        known = [str(p.relative_to(ours)) for p in ours.rglob("*.gin")]
        raise PlugError(f"no gin file {name!r}{near(name, known)}")
    if path.resolve() in includers:
        raise PlugError(f"the gin file {name} includes itself")
    text = _decode(path, name)
    parsed = _parse(text, name)
    imported = [s for s in parsed if isinstance(s, config_parser.ImportStatement)]
    names = {s.bound_name(): s for s in imported if s.module != _DYNAMIC_REGISTRATION}
    dynamic = any(s.module == _DYNAMIC_REGISTRATION for s in imported)
    origin = Origin(name, search_paths[-1] in path.parents, 0, names, dynamic)
    lines = text.splitlines()
    import_lines = {s.location.line_num for s in imported}
    statements: list[Statement] = []
    begin = 1

    def piece(end: int) -> Piece:
        # Blank lines instead of the others preserve line numbers.
        kept = (
            line if begin <= number < end or number in import_lines else ""
            for number, line in enumerate(lines, start=1)
        )
        return Piece(origin, "\n".join(kept) + "\n", tuple(statements))

    everything: list[Statement] = []
    for statement in parsed:
        line = statement.location.line_num
        if isinstance(statement, config_parser.BindingStatement):
            place = origin.place(line, "", "")
            statements.append(_statement(statement, origin, place))
            everything.append(statements[-1])
        elif isinstance(statement, config_parser.IncludeStatement):
            yield piece(line)
            yield from _read_file(statement.filename, search_paths, (*includers, path.resolve()))
            statements, begin = [], line + 1
    _check_repetitions(everything)
    yield piece(len(lines) + 1)


def _decode(path: Path, name: str) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PlugError(
            f"{name}:{line}: byte {error.start + 1} of the file, {data[error.start]:#04x}, is not "
            "UTF-8; save the file in that encoding"
        ) from error


def _statement(parsed: config_parser.BindingStatement, origin: Origin, place: str) -> Statement:
    scope = tuple(filter(None, parsed.scope.split("/")))
    if parsed.arg_name:
        return Statement(scope, parsed.selector, parsed.arg_name, parsed.value, origin, place)
    return Statement((*scope, parsed.selector), MACRO, "value", parsed.value, origin, place)


def _check_repetitions(statements: Sequence[Statement]) -> None:
    """PlugError for a setting that occurs twice in one place: nothing would read the first."""
    places: dict[str, str] = {}
    for statement in statements:
        if statement.setting in places:
            first, again = places[statement.setting], statement.place
            raise PlugError(f"{statement.setting} is set twice: {first} and {again}; leave one out")
        places[statement.setting] = statement.place


def _parse(text: str, name: str, *, command_line: bool = False) -> list[Any]:
    """gin's statements. PlugError with the position of a syntax error."""
    try:
        return list(config_parser.ConfigParser(text, _Delegate()))
    except (SyntaxError, tokenize.TokenError) as error:
        message = error.args[0]
        if isinstance(error, tokenize.TokenError):
            raise PlugError(f"{name}: a bracket or a quote is not closed") from error
        if command_line:
            raise PlugError(f"{name}: {_advice(text, message, command_line=True)}") from error
        line = error.lineno or 1
        shown = "".join(text.splitlines()[line - 1 : line])
        advice = _advice(shown, message, command_line=False)
        raise PlugError(f"{name}:{line}: {shown.strip()}: {advice}") from error


def _advice(text: str, message: str, *, command_line: bool) -> str:
    """What to do about a statement that gin's parser rejects."""
    match = _BINDING.match(text)
    if match is None:
        return "this is not NAME = VALUE"
    setting, value = match.groups()
    if not value:
        return "the value is missing"
    if value.lower() in _CONSTANTS:
        return f"did you mean {_CONSTANTS[value.lower()]}?"
    if value[0] in "'\"" and value[-1] != value[0]:
        return "the quotes do not close"
    if token := _TOKEN.search(message):
        inner = token[1]
        if inner.lower() in _CONSTANTS:
            return f"{inner}: did you mean {_CONSTANTS[inner.lower()]}?"
        if value[0] in "([{":
            return f"strings need quotes: '{inner}'"
    if value[0] in "([{@%":
        return " ".join(message.split("\n")[0].split())
    plain = value.strip(_QUOTES)
    if command_line:
        return f"strings need quotes: --gin.{setting}=\"'{plain}'\""
    return f"strings need quotes: {setting} = '{plain}'"


def _references(value: Any) -> Iterator[Reference]:
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _references(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)
