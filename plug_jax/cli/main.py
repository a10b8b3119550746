"""The `plug-jax` command: finds and runs the module of a subcommand.

Each command is a module with `SUMMARY`, `EXAMPLE`, `add_arguments(parser)` and `run(args)`. One
that accepts gin overrides sets `UNKNOWN_ARGUMENTS = True` and finds them in `args.unknown`, with
`PASSES_ON = True` together with all unknown options. It imports jax and tensorflow inside `run`, so
that help is instant.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import io
import os
import select
import sys
import time
import traceback
from collections.abc import Sequence
from types import ModuleType

import plug_jax
from plug_jax.cli import task_modules
from plug_jax.cli.arguments import Parser, decoded
from plug_jax.errors import Interrupted, PlugError, shown
from plug_jax.standard_error import say
from plug_jax.tensorflow_import import import_tensorflow as import_tensorflow  # for the commands
from plug_jax.tensorflow_import import quiet_tensorflow

COMMANDS = {
    "train": "plug_jax.cli.train",
    "plan": "plug_jax.cli.plan",
    "convert": "plug_jax.cli.convert",
    "evaluate": "plug_jax.cli.evaluate",
    "generate": "plug_jax.cli.generate",
    "serve": "plug_jax.cli.serve",
    "infer": "plug_jax.cli.infer",
    "score": "plug_jax.cli.score",
    "score-generation": "plug_jax.cli.score_generation",
    "classify": "plug_jax.cli.classify",
    "embed": "plug_jax.cli.embed",
    "fill-mask": "plug_jax.cli.fill_mask",
    "clue": "plug_jax.cli.clue",
    "zero-shot": "plug_jax.cli.zero_shot",
    "inspect": "plug_jax.cli.inspect",
    "debug-nans": "plug_jax.cli.debug_nans",
    "vocab": "plug_jax.cli.vocab",
    "sweep": "plug_jax.cli.sweep",
    "ensemble": "plug_jax.cli.ensemble",
    "checkpoint": "plug_jax.cli.checkpoint",
    "doctor": "plug_jax.cli.doctor",
    "bench": "plug_jax.cli.bench",
    "cache": "plug_jax.cli.cache",
    "demo": "plug_jax.cli.demo",
    "demo-finetune": "plug_jax.cli.demo_finetune",
}

_INTERRUPTED, _NOBODY_READS = 130, 141  # what a shell reports for SIGINT and SIGPIPE
_STDOUT = 1  # its file descriptor
_OUR_ERRORS = (errno.EBADF, errno.EINVAL)  # the system's for wrong calls


def main(argv: Sequence[str] | None = None) -> int:
    """Run `plug-jax` with the given arguments (default: the command line's); return its status.

    Status 0 on success, else what the command returns; 2 for a user's mistake (an unknown command,
    or a `PlugError`, whose message goes to standard error and whose class may have another status)
    and for a file error of the system; 130 on Ctrl-C, 143 on SIGTERM, 141 (quietly) when nobody
    reads standard output any more. `--help`, `--version` and argparse's errors raise `SystemExit`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    quiet_tensorflow()
    _print_anything()
    if not arguments:
        _main_parser().print_help()
        return 0
    name, rest = arguments[0], arguments[1:]
    if name.startswith("-"):
        _main_parser().parse_args([name])  # --help, --version and unknown options end here
    if name not in COMMANDS:
        return report(PlugError(_unknown_command(name)))
    task_modules.allow_short_name()
    try:
        command = importlib.import_module(COMMANDS[name])
        status: int = command.run(_parse(name, command, decoded(rest)))
        sys.stdout.flush()  # here a full disk is reported, when Python exits it is a traceback
    except (PlugError, KeyboardInterrupt, OSError) as error:
        return report(error)
    except Exception as error:
        if _problem_of_files(error) is None:
            raise
        return report(error)
    return status


def report(error: BaseException) -> int:
    """Report on standard error what ended a command; return the exit status."""
    if isinstance(error, OSError) and _output_ended() and isinstance(error, BrokenPipeError):
        return _NOBODY_READS
    if isinstance(error, PlugError):
        say(f"plug-jax: error: {error}")
    elif isinstance(error, Interrupted):
        say(f"plug-jax: interrupted by {error}{_saved(error)}")
    elif isinstance(error, KeyboardInterrupt):
        say("plug-jax: interrupted")
    elif (problem := _problem_of_files(error)) is not None:
        say(f"plug-jax: error: {problem}")
    else:
        say("".join(traceback.format_exception(error)).rstrip())
    return status_of(error)


def status_of(error: BaseException) -> int:
    """The exit status of a command that the error ended."""
    if isinstance(error, PlugError | Interrupted):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    return 1 if _problem_of_files(error) is None else PlugError.status


def _output_ended() -> bool:
    """Whether standard output takes no more; then the rest of it goes nowhere."""
    try:
        sys.stdout.flush()
        output = select.poll()  # an unbuffered one forgets what it could not write
        output.register(_STDOUT, 0)
        if not any(event & select.POLLERR for _, event in output.poll(0)):
            return False
    except OSError:
        pass
    # Python would try again when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    return True


def _problem_of_files(error: BaseException) -> str | None:
    """What is wrong with a file or a file system, such as a full disk; None: another error."""
    if isinstance(error, OSError):
        if isinstance(error.filename, str):
            return f"{error.strerror}: {error.filename}"
        return error.strerror if error.errno not in _OUR_ERRORS else None  # no name in a write
    errors = getattr(sys.modules.get("tensorflow"), "errors", None)
    if errors is None or not isinstance(
        error,
        (
            errors.FailedPreconditionError,  # a file in place of a directory
            errors.NotFoundError,
            errors.PermissionDeniedError,
            errors.ResourceExhaustedError,  # a full disk
            errors.UnavailableError,
            errors.UnimplementedError,  # a file system such as s3://
        ),
    ):
        return None
    return str(getattr(error, "message", error)).partition("\n")[0]


def _saved(error: Interrupted) -> str:
    if error.step is None or error.came is None:
        return ""
    seconds = time.monotonic() - error.came
    return f": the checkpoint of step {error.step} was saved {seconds:.1f} s later"


def _main_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    summaries = (
        f"  {name:{width}}  {importlib.import_module(module).SUMMARY}"
        for name, module in COMMANDS.items()
    )
    parser = argparse.ArgumentParser(
        prog="plug-jax",
        usage="plug-jax [--help] [--version] <command> [<options>]",
        description="Pre-train, fine-tune and run PLUG language models with JAX.",
        epilog="\n".join(
            ["commands:", *summaries, "", "`plug-jax <command> --help` describes a command."]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"plug-jax {plug_jax.__version__}")
    return parser


def _parse(name: str, command: ModuleType, arguments: Sequence[str]) -> argparse.Namespace:
    """The command's options; unknown ones are errors unless it accepts gin overrides."""
    parser = Parser(
        prog=f"plug-jax {name}",
        description=command.SUMMARY,
        epilog=command.EXAMPLE,
        passes_on=getattr(command, "PASSES_ON", False),
    )
    command.add_arguments(parser)
    parsed: argparse.Namespace
    if not getattr(command, "UNKNOWN_ARGUMENTS", False):
        parser.refuse_settings(arguments)
        parsed = parser.parse_args(arguments)
    else:
        parsed, parsed.unknown = parser.parse_known_args(arguments)
    return parsed


def _unknown_command(name: str) -> str:
    nearest = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are: {', '.join(COMMANDS)}."
    return f"there is no command {shown(name)}; {hint}"


def _print_anything() -> None:
    r"""Print characters that the terminal lacks as escapes (\u5929)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
