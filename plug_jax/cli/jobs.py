"""Shared by `plug-jax infer` and other commands on rows: options and reports."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from plug_jax.cli import gin_config
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.inference.jobs import Job

STATUS_WITH_ERRORS = 3  # exit status if some rows have an error

OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "checkpoint": (str, "checkpoint directory (a run's MODEL_DIR, or one step)"),
    "input": (str, "JSON lines, or .txt with one text per line: a path or a glob; .gz too"),
    "output": (str, "write each row with its result here; the same command again resumes"),
    "batch_size": (int, "texts at a time (32)"),
}
# Options without a value: their help, and their binding.
Switches = Mapping[str, tuple[str, str]]
NO_SEP: Switches = {"no_sep": ("do not score the [SEP] at the end of a text", "SEP = False")}


class Summary(Protocol):
    """A summary of all rows."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row."""

    def fields(self) -> dict[str, Any]:
        """The figures by name."""


def add_arguments(
    parser: argparse.ArgumentParser,
    options: Mapping[str, tuple[Callable[[str], Any], str]],
    switches: Switches = MappingProxyType({}),
    *,
    gin_file: str,
) -> None:
    """Add options, each of which sets the macro of its name, switches, and --json."""
    for name, (kind, text) in options.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    for name, (text, _) in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    gin_config.add_arguments(parser, default=gin_file)


def bindings_of(
    args: argparse.Namespace,
    options: Iterable[str],
    given: Mapping[str, str] | None,
    switches: Switches = MappingProxyType({}),
) -> list[str]:
    """The bindings of options, switches and overrides.

    `given`: the fields of a single row on the command line, None without.
    """
    if given is not None and args.input is not None:
        raise PlugError(f"give either --input or {' and '.join(f'--{name}' for name in given)}")
    values = {name.upper(): getattr(args, name) for name in options}
    bindings = [f"{macro} = {value!r}" for macro, value in values.items() if value is not None]
    bindings += [binding for name, (_, binding) in switches.items() if getattr(args, name)]
    if given is not None:
        bindings += ["ROWS = [@rows.Row()]", f"rows.Row.fields = {dict(given)!r}"]
    return [*bindings, *gin_config.overrides(args.unknown)]


def fine_tuned_for(files: Sequence[str], bindings: Sequence[str]) -> Mapping[str, Any] | None:
    """The task of CHECKPOINT, if it was fine-tuned. PlugError if there is no checkpoint."""
    from plug_jax.checkpoints.saved_model import open_checkpoint

    checkpoint = gin_config.macro("CHECKPOINT", files=files, bindings=bindings)
    if not isinstance(checkpoint, str):
        return None  # the command itself reports what is wrong
    return open_checkpoint(checkpoint).task


def prediction_job(task: Mapping[str, Any], files: Sequence[str], bindings: Sequence[str]) -> Job:
    """The job of a checkpoint that was fine-tuned for `task`.

    Raises:
        PlugError: as `gin_config.configured`, also for generation settings.
    """
    from plug_jax.inference.jobs import Job

    run = f"this run, where a checkpoint fine-tuned for {task['name']!r} answers with its own head,"
    return gin_config.configured(Job, files=files, bindings=bindings, run=run)


def report(
    rows: Iterable[Mapping[str, Any]],
    summary: Summary,
    *,
    as_json: bool,
    with_rows: bool,
    line: Callable[[Mapping[str, Any]], str],
) -> int:
    """Print a `line` for each row if `with_rows`, then the summary; returns the exit status.

    As JSON it is one object, {"rows": [...], "total": {...}}, or only the total. Without rows, the
    first error goes to stderr.
    """
    import jax

    from plug_jax.inference.jobs import ERROR

    prints = jax.process_index() == 0
    kept = []
    first = None
    for row in rows:
        summary.add(row)
        first = first or row.get(ERROR)
        if with_rows and as_json:
            kept.append(row)
        elif with_rows and prints:
            print(f"error: {row['error']}" if "error" in row else line(row))
    total = summary.fields()
    if prints and as_json:
        shown = {"rows": kept, "total": total} if with_rows else {"total": total}
        # Characters that a terminal cannot show would get Python's escapes, not JSON's.
        escaped = codecs.lookup(sys.stdout.encoding).name != "utf-8"
        print(json.dumps(shown, indent=2, ensure_ascii=escaped, allow_nan=False))
    elif prints:
        print("  ".join(f"{name} {_shown(value)}" for name, value in total.items()))
    if prints and not with_rows:
        say_first_error(first)
    return status(total["errors"])


def say_first_error(error: str | None) -> None:
    """Say on stderr why the first of the rows without an answer has none, if one has none."""
    if error:
        print(f"the first error: {error}", file=sys.stderr)


def status(errors: int) -> int:
    """The exit status for this number of errors, the first process's on all processes.

    Only the first process sees all rows. No process exits before it is done.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        errors = int(multihost_utils.broadcast_one_to_all(np.int32(errors)))
    return STATUS_WITH_ERRORS if errors else 0


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(of)}" for name, of in value.items())
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
