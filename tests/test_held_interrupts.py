"""Ctrl-C during an import, and during the start of the command."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plug_jax import held_interrupts
from plug_jax.held_interrupts import hold_interrupts

# What some packages do: treat an interrupt as a failure, and continue.
SLOW = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep({seconds})
    whole = True
except BaseException:
    whole = False
"""
# An interrupt while it loads has no effect. Its first use takes time, during which one can come.
TENSORFLOW = (
    SLOW.format(seconds=0.15)
    + """
import types
config = types.SimpleNamespace(set_visible_devices=lambda *_: time.sleep(20))
"""
)
# Sends Ctrl-C when a module is looked up.
PRESSED = """
import os, signal, sys

def press(event, arguments):
    if event == "import" and arguments[0] == {module!r}:
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(press)
from plug_jax.__main__ import run
sys.exit(run())
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that is interrupted while it is imported."""
    (tmp_path / "slow_module.py").write_text(SLOW.format(seconds=0.15))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "slow_module", raising=False)
    return "slow_module"


def test_an_interrupt_waits_until_a_module_is_imported(slow: str) -> None:
    hold_interrupts()
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(slow)
        time.sleep(5)
    assert sys.modules[slow].whole
    time.sleep(0.1)  # and it comes only once


def test_an_import_without_end_is_interrupted(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_interrupts, "_LONGEST", 0.05)
    hold_interrupts()
    importlib.import_module(slow)
    assert not sys.modules[slow].whole


class Ends:
    """Is interrupted while it ends."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)


def test_one_that_python_would_forget_comes_again() -> None:
    hold_interrupts()
    with pytest.raises(KeyboardInterrupt):
        _ = Ends()
        del _
        time.sleep(5)


def test_other_errors_that_python_forgets_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError("broken")

    sys.unraisablehook = sys.__unraisablehook__
    hold_interrupts()
    Broken()
    assert "ValueError: broken" in capsys.readouterr().err


def test_outside_of_imports_it_is_as_ever() -> None:
    hold_interrupts()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hold_interrupts()
    held_interrupts.let_interrupts_end()
    signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_one_that_was_blocked_comes_when_they_are_held() -> None:
    """So a program that replaces itself by exec, and is interrupted in between, still ends."""
    held_interrupts.block_interrupts()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        hold_interrupts()
        time.sleep(5)


@pytest.mark.parametrize("module", ["platform", "traceback", "argparse", "tensorflow"])
def test_the_command_ends_with_a_line_however_early_it_is(module: str, tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text(TENSORFLOW)
    ended = subprocess.run(
        [sys.executable, "-c", PRESSED.format(module=module), "train", "--gin_file=none.gin"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (130, "plug-jax: interrupted\n")
