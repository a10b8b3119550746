"""What is typed after `plug-jax`: its encoding, and options under the names that people try."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

from plug_jax.errors import PlugError

GIN_OVERRIDE = "--gin."


class Parser(argparse.ArgumentParser):
    """argparse's parser, for which --max-new-tokens is --max_new_tokens.

    Options are not abbreviated: `--gin` must not be taken for some option that starts with it. One
    that is not known is a PlugError with the nearest that is; gin overrides (--gin.NAME=VALUE) are
    left to the command, and with `passes_on` all that it does not know.
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
        return super().parse_known_args(args, namespace)

    def _declared(self, argument: str) -> str:
        """An option under the name that it has; what is no option, and gin overrides, as it is."""
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
        raise PlugError(f"unknown argument {name!r}; {self._nearest(declared)}")

    def refuse_settings(self, arguments: Sequence[str]) -> None:
        """PlugError for a gin override, of a command that has options alone."""
        for argument in arguments:
            if argument.startswith(GIN_OVERRIDE):
                setting = argument.removeprefix(GIN_OVERRIDE).partition("=")[0]
                nearest = self._nearest(f"--{setting.rpartition('.')[2].lower()}")
                raise PlugError(
                    f"{argument}: {self.prog} takes options, no gin settings; {nearest}"
                )

    def _nearest(self, option: str) -> str:
        near = difflib.get_close_matches(option, self._option_string_actions, n=1)
        return f"did you mean {near[0]}?" if near else f"see {self.prog} --help"


def finite(text: str) -> float:
    """A float option's value: argparse says which option has another one."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value


def options_of(declared: type) -> dict[str, tuple[Callable[[str], Any], str]]:
    """Kind and help text, with the default, of each field of a dataclass that takes a value."""
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
    """Arguments as the UTF-8 that their bytes are, whatever the locale; PlugError if they are not.

    Python makes half surrogates of the bytes that the locale does not know.
    """
    texts = []
    for number, argument in enumerate(arguments, start=1):
        try:
            texts.append(argument.encode("utf-8", "surrogateescape").decode("utf-8"))
        except UnicodeError as error:
            raise PlugError(
                f"argument {number} is not UTF-8: {argument!r}; set the terminal to UTF-8, put a "
                "text into a file in UTF-8, or rename a file"
            ) from error
    return texts
