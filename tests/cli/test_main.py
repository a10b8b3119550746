"""The dispatcher: help, errors, exit statuses, and the arguments of commands."""

import errno
import importlib
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import tensorflow as tf

import plug_jax
from plug_jax.cli import main as dispatcher
from plug_jax.errors import Interrupted, PlugError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(monkeypatch):
    """The only command, `greet`; a test sets its `run`."""
    module = types.ModuleType("greet_command")
    module.SUMMARY = "Greet somebody."
    module.EXAMPLE = "example:\n  plug-jax greet --name 小明 --discount 100%"
    module.add_arguments = lambda parser: parser.add_argument("--name", default="world")
    module.run = lambda args: 0
    monkeypatch.setitem(sys.modules, "greet_command", module)
    monkeypatch.setattr(dispatcher, "COMMANDS", {"greet": "greet_command"})
    return module


def raising(error):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_commands_with_their_summaries(command, capsys, arguments):
    if arguments:
        with pytest.raises(SystemExit) as exit_info:
            dispatcher.main(arguments)
        assert exit_info.value.code == 0
    else:
        assert dispatcher.main(arguments) == 0
    assert "  greet  Greet somebody.\n" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_info:
        dispatcher.main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"plug-jax {plug_jax.__version__}\n"


def test_a_command_gets_its_options_and_its_status_is_returned(command):
    seen = []
    command.run = lambda args: seen.append(args) or 7
    assert dispatcher.main(["greet", "--name", "小明"]) == 7
    assert vars(seen[0]) == {"name": "小明"}


def test_arguments_default_to_the_command_line(command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plug-jax", "greet"])
    seen = []
    command.run = lambda args: seen.append(args.name) or 0
    assert dispatcher.main() == 0
    assert seen == ["world"]


def test_command_help_ends_with_its_example(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        dispatcher.main(["greet", "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: plug-jax greet ")
    assert "Greet somebody." in out
    assert out.rstrip().endswith(command.EXAMPLE)


def test_an_unknown_command_names_the_nearest(command, capsys):
    assert dispatcher.main(["great"]) == 2
    said = "plug-jax: error: there is no command 'great'; did you mean 'greet'?\n"
    assert capsys.readouterr().err == said


def test_an_unknown_command_unlike_any_lists_them(command, capsys):
    assert dispatcher.main(["xyzzy"]) == 2
    said = "plug-jax: error: there is no command 'xyzzy'; there are: greet.\n"
    assert capsys.readouterr().err == said


def test_an_unknown_option_before_the_command_is_an_error(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        dispatcher.main(["--bogus", "greet"])
    assert exit_info.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["--bogus"], "see plug-jax greet --help"), (["--nam", "x"], "did you mean --name?")],
)
def test_an_unknown_option_is_an_error(command, capsys, arguments, hint):
    assert dispatcher.main(["greet", *arguments]) == 2
    expected = f"plug-jax: error: unknown argument {arguments[0]!r}; {hint}\n"
    assert capsys.readouterr().err == expected


def test_gin_overrides_reach_a_command_that_takes_them(command):
    command.UNKNOWN_ARGUMENTS = True
    seen = []
    command.run = lambda args: seen.append(args) or 0
    overrides = ["--gin.TRAIN_STEPS=3", "--gin.MODEL_DIR='/x y'"]
    assert dispatcher.main(["greet", overrides[0], "--name=a", overrides[1]]) == 0
    assert vars(seen[0]) == {"name": "a", "unknown": overrides}


def test_a_user_error_is_one_line_and_status_2(command, capsys):
    command.run = raising(PlugError("no checkpoint in /a; give a run's MODEL_DIR"))
    assert dispatcher.main(["greet"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "plug-jax: error: no checkpoint in /a; give a run's MODEL_DIR\n"
    assert captured.out == ""


def test_a_file_that_the_system_refuses_is_named(command, capsys, tmp_path):
    name = tmp_path / ("a" * 256)
    command.run = lambda args: name.mkdir()
    assert dispatcher.main(["greet"]) == 2
    assert capsys.readouterr().err == f"plug-jax: error: File name too long: {name}\n"
    command.run = raising(OSError(errno.ENOSPC, "No space left on device"))  # of a write
    assert dispatcher.main(["greet"]) == 2
    assert capsys.readouterr().err == "plug-jax: error: No space left on device\n"
    command.run = raising(OSError(errno.EBADF, "Bad file descriptor"))
    assert dispatcher.main(["greet"]) == 1
    assert "Traceback" in capsys.readouterr().err
    command.run = raising(ConnectionResetError("by a bug"))
    assert dispatcher.main(["greet"]) == 1
    assert "ConnectionResetError: by a bug" in capsys.readouterr().err


def test_a_file_that_tensorflow_cannot_write_is_named(command, capsys):
    command.run = lambda args: tf.io.gfile.makedirs("/dev/null/x")
    assert dispatcher.main(["greet"]) == 2
    captured = capsys.readouterr().err
    assert captured == "plug-jax: error: /dev/null is not a directory\n"
    command.run = lambda args: tf.reshape(tf.zeros(3), [2])
    with pytest.raises(tf.errors.InvalidArgumentError):
        dispatcher.main(["greet"])


@pytest.mark.parametrize(
    ("into", "status", "said"),
    [
        ("/dev/full", 2, "plug-jax: error: No space left on device\n"),
        ("pipe", 141, ""),
    ],
)
@pytest.mark.parametrize("lines", [1, 100_000])  # reported by the last flush, and by a print
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_no_more(into, status, said, lines, unbuffered):
    """Python itself would add a traceback when it exits."""
    script = f"""
import sys, types
from plug_jax.cli import main
greet = types.ModuleType("greet")
greet.SUMMARY = greet.EXAMPLE = ""
greet.add_arguments = lambda parser: None
greet.run = lambda args: [print("天") for _ in range({lines})] and 0
sys.modules["greet"], main.COMMANDS["greet"] = greet, "greet"
sys.exit(main.main(["greet"]))
"""
    if into == "pipe":
        reader, output = os.pipe()
        os.close(reader)
    else:
        output = os.open(into, os.O_WRONLY)
    ended = subprocess.run(
        [sys.executable, "-c", script],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(output)
    assert (ended.returncode, ended.stderr) == (status, said)


def test_a_bug_keeps_its_traceback(command):
    command.run = raising(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        dispatcher.main(["greet"])


def test_an_interrupt_is_status_130(command, capsys):
    command.run = raising(KeyboardInterrupt())
    assert dispatcher.main(["greet"]) == 130
    assert capsys.readouterr().err == "plug-jax: interrupted\n"


def test_sigterm_is_status_143_and_says_what_was_saved(command, capsys):
    command.run = raising(Interrupted("SIGTERM", 143))
    assert dispatcher.main(["greet"]) == 143
    assert capsys.readouterr().err == "plug-jax: interrupted by SIGTERM\n"
    command.run = raising(Interrupted("SIGINT", 130, step=7, came=time.monotonic() - 2))
    assert dispatcher.main(["greet"]) == 130
    assert capsys.readouterr().err == (
        "plug-jax: interrupted by SIGINT: the checkpoint of step 7 was saved 2.0 s later\n"
    )


@pytest.mark.parametrize(("before", "during"), [(None, "3"), ("0", "0")])
def test_tensorflow_is_quiet_unless_the_user_says_otherwise(command, monkeypatch, before, during):
    if before is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    else:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", before)
    seen = []
    command.run = lambda args: seen.append(os.environ["TF_CPP_MIN_LOG_LEVEL"]) or 0
    dispatcher.main(["greet"])
    assert seen == [during]


@pytest.mark.parametrize(("level", "heard"), [("3", []), ("0", ["a note from C++"])])
def test_tensorflow_is_imported_without_its_notes_and_gpus(tmp_path, level, heard):
    (tmp_path / "tensorflow.py").write_text(
        "import os, types; os.write(2, b'a note from C++\\n')\n"
        "config = types.SimpleNamespace(set_visible_devices=print)"
    )
    run = import_tensorflow_in_a_process(tmp_path, level)
    assert run.stdout == "[] GPU\nTrue\n"
    assert run.stderr.splitlines() == [*heard, "after"]


def test_a_tensorflow_that_cannot_be_imported_is_heard_of(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no such processor')")
    run = import_tensorflow_in_a_process(tmp_path, level="3")
    assert run.returncode == 1
    assert run.stderr.endswith("ImportError: no such processor\n")


def test_tensorflow_is_imported_without_what_its_keras_would_import(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        """
import gc, types
for name in ("matplotlib", "sklearn"):
    try:
        __import__(name)
    except ImportError:
        print("no", name)
print(gc.isenabled())
config = types.SimpleNamespace(set_visible_devices=print)
"""
    )
    (tmp_path / "sklearn.py").write_text("")
    run = import_tensorflow_in_a_process(
        tmp_path, level="3", after="import gc, matplotlib, sklearn; print(gc.isenabled())"
    )
    assert run.stdout.split("\n") == [
        "no matplotlib",
        "no sklearn",
        "False",
        "[] GPU",
        "True",
        "True",
        "",
    ]


def import_tensorflow_in_a_process(directory, level, after=""):
    program = f"""
import sys
import time
from plug_jax.cli.main import import_tensorflow
import_tensorflow()
print("tensorflow" in sys.modules)
print("after", file=sys.stderr)
{after}
"""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(directory), "TF_CPP_MIN_LOG_LEVEL": level},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", dispatcher.COMMANDS)
def test_each_command_keeps_to_the_interface(name, capsys):
    module = importlib.import_module(dispatcher.COMMANDS[name])
    summary = module.SUMMARY
    assert summary.splitlines() == [summary.strip()]
    assert f"plug-jax {name}" in module.EXAMPLE
    with pytest.raises(SystemExit) as exit_info:
        dispatcher.main([name, "--help"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out.rstrip().endswith(module.EXAMPLE.rstrip())
    assert callable(module.run)


def test_python_dash_m_is_the_same_command():
    run = subprocess.run(
        [sys.executable, "-m", "plug_jax", "generat"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2
    said = "plug-jax: error: there is no command 'generat'; did you mean 'generate'?\n"
    assert run.stderr == said
