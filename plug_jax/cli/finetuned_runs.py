"""Shared by commands on fine-tuned runs: loading the runs as their own gin files describe them."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plug_jax.cli import gin_config
from plug_jax.errors import PlugError
from plug_jax.file_names import user_path

if TYPE_CHECKING:
    from plug_jax.finetuning.runs import FineTunedRun

_CONFIG = "config.gin"  # in a MODEL_DIR: the run's configuration


def add_arguments(parser: argparse.ArgumentParser, *, needs_data_dir: bool = False) -> None:
    """Add --runs, --data_dir and --gin_file."""
    parser.add_argument(
        "--runs",
        nargs="+",
        required=True,
        metavar="MODEL_DIR",
        help="fine-tuned runs, or globs of them, such as 'sweep/*'",
    )
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        required=needs_data_dir,
        help="CLUE's directory" + ("" if needs_data_dir else " (where it was in training)"),
    )
    parser.add_argument(
        "--gin_file",
        action="append",
        metavar="FILE",
        help="read after each run's own config.gin, such as a mesh/ file for this machine",
    )


def load_runs(args: argparse.Namespace) -> list[FineTunedRun]:
    """The runs in the order given.

    Raises:
        PlugError: there are no runs, or one is not fine-tuned.
    """
    return [load_run(args, path) for path in _paths(args.runs)]


def load_run(args: argparse.Namespace, path: str, clue_task: str | None = None) -> FineTunedRun:
    """A run as its own gin file describes it; its initial checkpoint is no longer needed.

    `clue_task`: instead of the one that it was trained for, such as another test set.
    """
    from plug_jax.finetuning.runs import FineTunedRun
    from plug_jax.training.program import TrainConfig

    bindings = {"CLUE_DIR": args.data_dir, "CLUE_TASK": clue_task}
    config = gin_config.configured(
        TrainConfig,
        files=[os.path.join(path, _CONFIG), *(args.gin_file or ())],
        bindings=[f"{name} = {value!r}" for name, value in bindings.items() if value is not None],
        replacing={"ARCHITECTURE_OF": repr(path), "INITIAL_CHECKPOINT": "None"},
    )
    return FineTunedRun.of(path, config)


def _paths(patterns: Sequence[str]) -> list[str]:
    """Directories of runs; a glob skips directories without a run or checkpoint."""
    from plug_jax.checkpoints.format import CHECKPOINTS

    found: list[str] = []
    for given in patterns:
        pattern = str(user_path(given))
        if (Path(pattern) / _CONFIG).exists():
            found.append(pattern)
            continue
        runs = [path for path in sorted(glob.glob(pattern)) if (Path(path) / _CONFIG).exists()]
        matched = [path for path in runs if any(Path(path, CHECKPOINTS).glob("[0-9]*"))]
        for path in sorted(set(runs) - set(matched)):
            print(f"{path} is skipped: it has no checkpoint", file=sys.stderr)
        if not matched:
            raise PlugError(
                f"--runs {given}: no run found; a MODEL_DIR written by `plug-jax train` has a "
                f"{_CONFIG}"
            )
        found += matched
    if doubled := {path for path in found if found.count(path) > 1}:
        raise PlugError(f"--runs names {', '.join(sorted(doubled))} twice")
    return found
