"""Messages on a standard error that takes nothing."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest

from plug_jax.cli.main import report
from plug_jax.errors import Interrupted, PlugError
from plug_jax.standard_error import flush_output, say
from plug_jax.training.writers import ProgressReport


@pytest.fixture(params=["full", "closed", "left"])
def refusing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard error is on a full disk, closed, or a pipe that nobody reads."""
    with Refusing(request.param) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with pytest.raises((OSError, ValueError)):
            print("a line", file=sys.stderr, flush=True)
        yield


class Refusing(io.StringIO):
    """A stream that takes nothing, for a reason."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self._error = {
            "full": OSError(28, "No space left on device"),
            "closed": ValueError("I/O operation on closed file."),
            "left": BrokenPipeError(32, "Broken pipe"),
        }[reason]

    def write(self, text: str) -> int:
        raise self._error

    def flush(self) -> None:
        raise self._error


def test_what_is_said_is_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("a line")
    assert capsys.readouterr() == ("", "a line\n")


@pytest.mark.usefixtures("refusing")
def test_a_line_is_dropped() -> None:
    say("a line")
    flush_output()


@pytest.mark.usefixtures("refusing")
def test_progress_is_dropped() -> None:
    with ProgressReport("train", total=1) as progress:
        progress.say("training step compiled")
        progress.update(1, {"loss": 1.0, "tokens_per_second": 1.0})


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PlugError("bad data"), 2),
        (Interrupted("SIGTERM", 143), 143),
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(2, "No such file", "a"), 2),
        (RuntimeError("a bug"), 1),
    ],
)
def test_an_error_keeps_its_status(error: BaseException, status: int) -> None:
    assert report(error) == status
