"""The option of the commands that name a registered task: which modules register it."""

from __future__ import annotations

import argparse

DEFAULT_MODULES = ("tasks.demo", "tasks.pretrain")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --module, of which `args.module` is a list, or None."""
    parser.add_argument(
        "--module",
        action="append",
        metavar="MODULE",
        help="Python module that registers the task, repeatable (default: "
        f"{' and '.join(DEFAULT_MODULES)})",
    )
