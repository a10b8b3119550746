"""The settings of a seqio task, read from its preprocessors."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import seqio

Preprocessor = Callable[..., Any]


class AskedLengths(NamedTuple):
    """How many tokens the examples of a side should have; None if unspecified."""

    shortest: int | None = None
    longest: int | None = None
    uniform: bool = False  # whether lengths are drawn uniformly from shortest to longest


class TaskSettings:
    """The arguments of a task's preprocessors; of a mixture, those on which its tasks agree."""

    def __init__(self, arguments: Mapping[Preprocessor, Mapping[str, Any]] | None = None) -> None:
        """`arguments` by preprocessor and name."""
        self._arguments = dict(arguments or {})

    def uses(self, preprocessor: Preprocessor) -> bool:
        """Whether the task (every task of a mixture) makes its examples with this function."""
        return preprocessor in self._arguments

    def get(self, preprocessor: Preprocessor, name: str) -> Any:
        """The argument with this name; None if it is not used, or tasks differ."""
        return self._arguments.get(preprocessor, {}).get(name)

    @classmethod
    def of(cls, provider: seqio.Task | seqio.Mixture, split: str) -> TaskSettings:
        """Reads the settings of a task or mixture.

        Only plain functions and `functools.partial`s are read, including default arguments.
        """
        found = [
            dict(filter(None, map(_arguments, task.preprocessors)))
            for task in seqio.get_subtasks(provider)
            if split in task.splits
        ]
        if not found:
            return cls()
        first, *others = found
        return cls(
            {
                function: {
                    name: value
                    for name, value in arguments.items()
                    if all(other[function].get(name) == value for other in others)
                }
                for function, arguments in first.items()
                if all(function in other for other in others)
            }
        )


def _arguments(preprocessor: Preprocessor) -> tuple[Preprocessor, dict[str, Any]] | None:
    """The function of a partial and its arguments, including defaults; None: unreadable."""
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(preprocessor, functools.partial):
        arguments, keywords = preprocessor.args, preprocessor.keywords
        preprocessor = preprocessor.func
    try:
        bound = inspect.signature(preprocessor).bind_partial(None, *arguments, **keywords)
        bound.apply_defaults()
        hash(preprocessor)
    except (TypeError, ValueError):
        return None
    return preprocessor, dict(bound.arguments)
