"""Finds settings that a run does not read, in its gin files and on the command line.

gin calls the functions and classes that build the run with the parameters bound to them; values may
refer to macros and to other calls. So what is read follows from the statements alone.
"""

from __future__ import annotations

import collections
import inspect
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import gin
from gin import config_parser

from plug_jax.cli.gin_statements import MACRO, Origin, Reference, Statement, near
from plug_jax.errors import PlugError
from plug_jax.field_types import parameter_types
from plug_jax.named_modules import import_named

Key = tuple[tuple[str, ...], int, str]  # scope, id of the configured object, parameter

_REQUIRED = Reference(("gin.REQUIRED",), MACRO)


class Settings:
    """The statements of a run and their targets."""

    def __init__(self, statements: Sequence[Statement], root: Any) -> None:
        """`root` builds the run.

        Raises:
            PlugError: an import that fails, an unknown name.
        """
        self._statements, self._root = statements, root
        self._named: dict[str, Any] = {}  # everything imported, by full name
        for origin in {id(s.origin): s.origin for s in statements}.values():
            for imported in origin.imports.values():
                _imported(imported, origin)
        for statement in statements:
            for name in _names(statement):
                self._resolve(name, statement)
        self._targets = [self._target(s.selector, s) for s in statements]
        self._of_target: dict[int, list[Statement]] = collections.defaultdict(list)
        for statement, target in zip(statements, self._targets, strict=True):
            self._of_target[id(target)].append(statement)

    def check(self, set_by: dict[str, str], run: str) -> None:
        """PlugError for settings that nothing reads, and for required ones that are not set.

        `set_by` says what sets some macros and classes if not the command line; `run` is the name
        of the run in messages.
        """
        read, used, missing = self._walk(self._statements)
        problems = list(self._unread(read, used, run))
        if missing:
            hints = {name: set_by.get(name.partition("(")[0]) for name in sorted(missing)}
            shown = [f"{name} ({hint or f'--gin.{name}=...'})" for name, hint in hints.items()]
            problems.append(f"required, but not set: {', '.join(shown)}")
        if problems:
            raise PlugError("\n".join(problems))

    def macros_behind(self, owner: str, parameters: Iterable[str]) -> list[str]:
        """The macros that set parameters of `owner`, the bare name of a class or function."""
        return [
            "/".join(statement.value.scopes)
            for statement, target in zip(self._statements, self._targets, strict=True)
            if getattr(target, "__name__", None) == owner
            and statement.parameter in parameters
            and isinstance(statement.value, Reference)
            and statement.value.name == MACRO
        ]

    def _walk(self, statements: Iterable[Statement]) -> tuple[set[Key], list[Any], set[str]]:
        """The keys read when the run is built, the objects called, and required names not set."""
        chosen_from = set(map(id, statements))
        read: set[Key] = set()
        missing: set[str] = set()
        visited: dict[tuple[int, tuple[str, ...]], Any] = {}

        def visit(target: Any, scopes: tuple[str, ...], called: bool = True) -> None:
            if (id(target), scopes) in visited:
                return
            visited[id(target), scopes] = target
            values: dict[str, Statement] = {}
            for statement in self._of_target[id(target)]:
                in_scope = scopes[: len(statement.scope)] == statement.scope
                if id(statement) in chosen_from and in_scope and _takes(target, statement):
                    before = values.get(statement.parameter)
                    if before is None or len(before.scope) <= len(statement.scope):
                        values[statement.parameter] = statement
            if target is MACRO and not values:
                missing.add("/".join(scopes))
            if called and (needed := _needed(target, values)):
                missing.add(f"{target.__name__}({', '.join(needed)})")
            for statement in values.values():
                read.add(_key(statement, target))
                if statement.value == _REQUIRED:
                    missing.add(statement.setting)
                for reference in statement.references:
                    if reference.name != MACRO:
                        named = self._target(reference.name, statement)
                        visit(named, reference.scopes or scopes, reference.called)
                    elif "." not in reference.scopes[-1]:  # a module's constant has dots
                        visit(MACRO, reference.scopes)

        visit(self._root, ())
        return read, list(visited.values()), missing

    def _unread(self, read: set[Key], used: Sequence[Any], run: str) -> Iterator[str]:
        """A line for each user's setting that nothing reads."""
        ranks = {statement.origin.rank for statement in self._statements}
        # A statement that a later origin replaced may have read an earlier one's settings.
        by_rank = {
            rank: self._walk([s for s in self._statements if s.origin.rank <= rank])[0]
            for rank in sorted(ranks)
        }
        for statement, target in zip(self._statements, self._targets, strict=True):
            key = _key(statement, target)
            if statement.origin.ours or key in read | by_rank[statement.origin.rank]:
                continue
            if target is not MACRO and _is_decorated(target):
                continue  # any code may call it, at any time
            name = statement.setting
            good = self._good_names(read, used)
            hint = self._reader(statement) or near(name, good) or near(name.split("/")[-1], good)
            yield f"{statement.place}: nothing in {run} reads {name}{hint}"

    def _good_names(self, read: set[Key], used: Sequence[Any]) -> set[str]:
        """The valid names: all that is read, and every parameter of everything called."""
        names = set()
        for statement, target in zip(self._statements, self._targets, strict=True):
            if _key(statement, target) in read:
                names.add(statement.setting)
            if target is not MACRO and any(target is one for one in used):
                names |= {f"{statement.selector}.{name}" for name in _parameters(target)[0]}
        return names

    def _reader(self, statement: Statement) -> str:
        """What would read a macro if it were called."""
        reference = Reference(statement.scope, MACRO)
        readers = [s.setting for s in self._statements if reference in s.references]
        if statement.selector != MACRO or not readers:
            return ""
        return f": it is for {readers[0]}, which this run does not use"

    def _target(self, selector: str, statement: Statement) -> Any:
        """The function or class of this name; MACRO for a macro."""
        if selector == MACRO:
            return MACRO
        if _is_imported(selector, statement.origin):
            return self._resolve(selector, statement)
        # Without an import gin matches the end of a full name.
        found = {
            id(target): target
            for full, target in self._named.items()
            if f".{full}".endswith(f".{selector}")
        }
        if len(found) == 1:
            return next(iter(found.values()))
        try:
            return gin.get_configurable(selector)
        except (ValueError, KeyError) as error:
            imported = [s for s in self._statements if _is_imported(s.selector, s.origin)]
            if selector == statement.selector:
                known = {f"{s.selector}.{s.parameter}" for s in imported}
                hint = near(f"{selector}.{statement.parameter}", known)
            else:  # a reference
                hint = near(selector, {s.selector for s in imported}, cutoff=0.75)
                hint = hint or "; its module must be imported, by a gin file"
            raise PlugError(f"{statement.place}: there is no {selector}{hint}") from error

    def _resolve(self, selector: str, statement: Statement) -> Any:
        """What a name refers to, by its file's imports."""
        head, *rest = selector.split(".")
        imported = statement.origin.imports[head]
        target = _imported(imported, statement.origin)
        full = imported.module if imported.is_from or imported.alias else head
        for name in rest:
            if not hasattr(target, name):
                hint = near(name, vars(target)) if hasattr(target, "__dict__") else ""
                raise PlugError(f"{statement.place}: {selector}: {full} has no {name}{hint}")
            target, full = getattr(target, name), f"{full}.{name}"
        self._named[full] = target
        return target


def _names(statement: Statement) -> Iterator[str]:
    """The imported names that a statement uses."""
    for name in (statement.selector, *(r.name for r in statement.references)):
        if name != MACRO and _is_imported(name, statement.origin):
            yield name


def _is_imported(name: str, origin: Origin) -> bool:
    return origin.names_imports and name.split(".")[0] in origin.imports


def _imported(statement: config_parser.ImportStatement, origin: Origin) -> Any:
    try:
        module = import_named(statement.module)
    except PlugError as error:
        line = statement.location.line_num
        ours = statement.module.startswith("tasks.")
        hint = "; the tasks of plug-jax are plug_jax.tasks" if ours else ""
        raise PlugError(f"{origin.name}:{line}: {statement.format()}: {error}{hint}") from error
    whole = statement.is_from or statement.alias
    return module if whole else sys.modules[statement.module.split(".")[0]]


def _key(statement: Statement, target: Any) -> Key:
    return statement.scope, id(target), statement.parameter


def _takes(target: Any, statement: Statement) -> bool:
    """Whether a function or class has the parameter that is set."""
    if target is MACRO:
        return True
    names, others = _parameters(target)
    return others or statement.parameter in names


def _needed(target: Any, given: Container[str]) -> list[str]:
    """Parameters without a default that are not given."""
    if target is MACRO or _parameters(target) == (set(), True):
        return []
    parameters = inspect.signature(target).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in several and p.name not in given
    ]


def _parameters(target: Any) -> tuple[set[str], bool]:
    """The names of a function's or class's parameters, and whether it takes others too."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some C functions have no signature
        return set(), True
    options = [p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    if not options:
        return set(parameters), False
    try:
        names = set(parameter_types(target))  # **options may be typed
    except NameError:  # annotations only for type checkers
        names = set(parameters)
    return names, options[0] in names


def _is_decorated(target: Any) -> bool:
    """Whether its own module made it configurable, with @gin.configurable."""
    function = target.__init__ if inspect.isclass(target) else target
    return getattr(function, "__globals__", None) is vars(gin.config)
