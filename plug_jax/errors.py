"""Exceptions for errors that users can fix and for ended commands; formatting for messages."""

from typing import ClassVar


class PlugError(ValueError):
    """Bad input, configuration, path or checkpoint; the message says what is wrong and what to do.

    The command line prints it without a traceback and exits with `status`. Errors that a restarting
    supervisor must distinguish from mistakes have their own class and status, listed in
    docs/reliability.md.
    """

    status: ClassVar[int] = 2


class Interrupted(KeyboardInterrupt):
    """A signal, or a maintenance notice, ended the command."""

    def __init__(
        self, reason: str, status: int, *, step: int | None = None, came: float | None = None
    ) -> None:
        """`step`: the last one of all processes; `came`: the signal's time, if `step` is saved."""
        super().__init__(reason)
        self.status, self.step, self.came = status, step, came


def shown(value: object, most: int = 80) -> str:
    """`repr(value)`, shortened for a message.

    >>> shown("a" * 1000, most=5)
    "'aaaaa'... (1,000 characters)"
    """
    if isinstance(value, str):
        cut = "" if len(value) <= most else f"... ({len(value):,} characters)"
        return repr(value[:most]) + cut
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return "a number of thousands of digits"
    return shortened(text, most)


def shown_path(path: str) -> str:
    """`repr(path)`, in full unless longer than any path, since its end matters most."""
    return shown(path, most=4096)


def shortened(text: str, most: int = 200) -> str:
    """A text, or its beginning with its length."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
