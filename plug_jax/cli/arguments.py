"""Command-line arguments: their encoding, and lenient option names."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

from plug_jax.errors import PlugError, shortened, shown

GIN_OVERRIDE = "--gin."


class Parser(argparse.ArgumentParser):
    """argparse's parser, which accepts --max-new-tokens for --max_new_tokens.

    Options cannot be abbreviated: `--gin` must not match an option that starts with it. An unknown
    option is a PlugError with the nearest known one; gin overrides (--gin.NAME=VALUE), and with
    `passes_on` all unknown options, are left to the command.
    """

    def __init__(self, *, passes_on: bool = False, **settings: Any) -> None:
        self._passes_on = passes_on
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **{**settings, "allow_abbrev": False},
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, with the arguments of a command in `args`."""
        if self._subparsers is None:  # else each of them has its own options, and comes here
            end = args.index("--") if "--" in args else len(args)
            args = [*(self._declared(argument) for argument in args[:end]), *args[end:]]
            self._refuse_repetition(args[:end])
        return super().parse_known_args(args, namespace)

    def _declared(self, argument: str) -> str:
        """An option under its declared name; other arguments and gin overrides unchanged."""
        name, equals, value = argument.partition("=")
        options = self._option_string_actions
        is_option = name.startswith("--") and " " not in name
        if not is_option or name in options or argument.startswith(GIN_OVERRIDE):
            return argument
        declared = "--" + name[2:].replace("-", "_")
        if declared in options:
            return declared + equals + value
        if self._passes_on:
            return argument
        raise PlugError(f"unknown argument {shown(name)}; {self._nearest(declared)}")

    def _refuse_repetition(self, arguments: Sequence[str]) -> None:
        """PlugError for an option given twice, of which argparse would keep only the last value."""
        seen = set()
        for name in (argument.partition("=")[0] for argument in arguments):
            action = self._option_string_actions.get(name)
            if not isinstance(action, argparse._StoreAction):
                continue
            if action in seen:
                several = (
                    "write all its values after one"
                    if action.nargs in ("+", "*")
                    else "leave one out"
                )
                raise PlugError(f"{name} is given twice; {several}")
            seen.add(action)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Like argparse's, which would print all of an invalid value."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            message = str(error.message).replace(repr(arg_string), shown(arg_string))
            raise argparse.ArgumentError(action, message) from error

    def refuse_settings(self, arguments: Sequence[str]) -> None:
        """PlugError for a gin override, in a command that has only options."""
        for argument in arguments:
            if argument.startswith(GIN_OVERRIDE):
                setting = argument.removeprefix(GIN_OVERRIDE).partition("=")[0]
                nearest = self._nearest(f"--{setting.rpartition('.')[2].lower()}")
                raise PlugError(
                    f"{shortened(argument)}: {self.prog} takes options, not gin settings; {nearest}"
                )

    def _nearest(self, option: str) -> str:
        near = difflib.get_close_matches(option, self._option_string_actions, n=1)
        return f"did you mean {near[0]}?" if near else f"see {self.prog} --help"


def finite(text: str) -> float:
    """The value of a finite float option; for others argparse names the option."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a finite number")
    return value


_MOST = 2**31 - 1  # what JAX and TensorFlow count in 32 bits


def positive(text: str) -> int:
    """The value of an option that counts or measures something, from 1 on."""
    value = int(text)
    if not 1 <= value <= _MOST:
        raise argparse.ArgumentTypeError(
            f"{shortened(text)} is not a whole number from 1 to {_MOST:,}"
        )
    return value


def options_of(declared: type) -> dict[str, tuple[Callable[[str], Any], str]]:
    """Type and help text, including the default, of each dataclass field that takes a value."""
    return {
        field.name: (_KINDS.get(str(field.type), str), _help(field))
        for field in dataclasses.fields(declared)
        if field.type != "bool"
    }


def help_of(declared: type, name: str) -> str:
    """The help text of one field, such as a switch."""
    return next(_help(field) for field in dataclasses.fields(declared) if field.name == name)


def _help(field: dataclasses.Field[Any]) -> str:
    unset = field.default is None or field.default is False or field.default == ""
    return field.metadata["help"] + ("" if unset else f" ({field.default})")


_KINDS: dict[str, Callable[[str], Any]] = {"int": int, "int | None": int, "float": finite}


def decoded(arguments: Sequence[str]) -> list[str]:
    """Arguments decoded as UTF-8, whatever the locale; PlugError for other bytes.

    Python turns bytes that the locale cannot decode into lone surrogates.
    """
    texts = []
    for number, argument in enumerate(arguments, start=1):
        try:
            texts.append(argument.encode("utf-8", "surrogateescape").decode("utf-8"))
        except UnicodeError as error:
            raise PlugError(
                f"argument {number} is not UTF-8: {shown(argument)}; set the terminal to UTF-8, "
                "put a text into a file in UTF-8, or rename a file"
            ) from error
    return texts
