"""The exception types for what the user can mend, and for what ended a command early."""

from typing import ClassVar


class PlugError(ValueError):
    """Bad input, configuration, path or checkpoint; the message says what is wrong and what to do.

    The command line prints it without a traceback and exits with `status`. A kind that whoever
    restarts runs has to tell from a mistake has a class and a status of its own, which
    docs/reliability.md lists.
    """

    status: ClassVar[int] = 2


class Interrupted(KeyboardInterrupt):
    """A signal, or a notice of maintenance, ended the command."""

    def __init__(
        self, reason: str, status: int, *, step: int | None = None, came: float | None = None
    ) -> None:
        """`step`: all processes stopped after it; `came`: when, if its checkpoint is saved."""
        super().__init__(reason)
        self.status, self.step, self.came = status, step, came
