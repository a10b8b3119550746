"""`plug-jax checkpoint`: lists, verifies and removes the checkpoints of a MODEL_DIR."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plug_jax.training.stored_steps import StoredStep

SUMMARY = "List a run's checkpoints, verify every byte of them, remove some."
EXAMPLE = """examples:
  plug-jax checkpoint ls run1
  plug-jax checkpoint verify run1 --json
  plug-jax checkpoint rm run1/checkpoints/1000 run1/checkpoints/2000.damaged
"""

_DAMAGED = 1  # exit status if a verified checkpoint is damaged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what can be done with checkpoints, and the flags of each."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    ls = commands.add_parser("ls", help="list them: step, state, size, losses, the best one")
    ls.set_defaults(run=_ls)
    verify = commands.add_parser("verify", help="read every byte; status 1 if one is damaged")
    verify.set_defaults(run=_verify)
    for command in (ls, verify):
        command.add_argument("path", metavar="MODEL_DIR", help="of a run, or one of its steps")
        command.add_argument(
            "--json", action="store_true", help="one JSON object on standard output"
        )
    rm = commands.add_parser("rm", help="remove checkpoints, but not the only good one")
    rm.set_defaults(run=_rm)
    rm.add_argument("paths", nargs="+", metavar="STEP", help="MODEL_DIR/checkpoints/<step>")
    rm.add_argument(
        "--even_the_last", action="store_true", help="remove even the only good one of a run"
    )


def run(args: argparse.Namespace) -> int:
    """Does what was asked for."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    status: int = args.run(args)
    return status


def _ls(args: argparse.Namespace) -> int:
    from plug_jax.training.stored_steps import stored_steps

    _show(args, stored_steps(args.path, contents=False))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from plug_jax.training.stored_steps import stored_steps

    steps = stored_steps(args.path, contents=True)
    _show(args, steps)
    # Steps that were set aside are known to be damaged.
    return _DAMAGED if any(step.damage and step.name.isdecimal() for step in steps) else 0


def _rm(args: argparse.Namespace) -> int:
    from plug_jax.training.stored_steps import remove_steps

    for path, size in remove_steps(args.paths, even_the_last=args.even_the_last):
        print(f"removed {path} ({size:,} bytes)")
    return 0


def _show(args: argparse.Namespace, steps: Sequence[StoredStep]) -> None:
    from rich.console import Console
    from rich.table import Table

    if args.json:
        print(json.dumps({"checkpoints": [step.to_json() for step in steps]}, indent=2))
        return
    table = Table()
    for column in ("step", "state", "size", "loss", "validation loss", "best"):
        table.add_column(column, justify="left" if column == "state" else "right")
    for step in steps:
        losses = (f"{x:.4f}" if x is not None else "" for x in (step.loss, step.validation_loss))
        best = "best" if step.best else ""
        table.add_row(step.name, step.state, f"{step.size:,}", *losses, best)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(table)
    for step in steps:
        if step.damage:
            print(f"{step.name}: {step.damage}", file=sys.stderr)
