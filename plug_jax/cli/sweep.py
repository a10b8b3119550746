"""`plug-jax sweep`: a grid of runs, and which setting is best."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING

from plug_jax import strict_json
from plug_jax.atomic_files import write_whole
from plug_jax.cli import gin_config
from plug_jax.errors import Interrupted, PlugError
from plug_jax.file_names import user_path

if TYPE_CHECKING:
    from plug_jax.finetuning.sweeps import Row, Sweep

SUMMARY = "Train a grid of runs, resume after a kill, and compare them over seeds."
EXAMPLE = """example:
  plug-jax sweep --gin_file=runs/finetune.gin --gin_file=clue/tnews.gin --gin_file=mesh/cpu1.gin \\
    --gin.CLUE_DIR="'CLUE'" --gin.INITIAL_CHECKPOINT="'run1'" --output=tnews_sweep \\
    --grid LEARNING_RATE=1e-5,2e-5,3e-5 --grid RANDOM_SEED=0,1,2

Each run is a `plug-jax train` of its own with OUTPUT/<settings> as MODEL_DIR. The table goes to
OUTPUT/sweep.md, curves to OUTPUT/curves.png, and each run's metrics and the table (as --json prints
it) to OUTPUT/sweep.json. Status 3: done, except for runs that failed. docs/finetuning.md says more.
"""
UNKNOWN_ARGUMENTS = True

_STATUS_WITH_FAILURES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax sweep`."""
    parser.add_argument(
        "--grid",
        action="append",
        required=True,
        metavar="NAME=VALUE,...",
        help="values of a macro, repeatable: all combinations are trained",
    )
    parser.add_argument("--output", required=True, help="where the runs and the table go")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument(
        "--metric",
        help="metric to compare the runs by (default: BEST_METRIC, if the gin files set it)",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    gin_config.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train the remaining runs, and print the table."""
    from plug_jax.finetuning.sweeps import Grid, Sweep, table

    if args.jobs < 1:
        raise PlugError(f"--jobs must be 1 or more, got {args.jobs}")
    bindings = gin_config.overrides(args.unknown)
    grid = Grid.parse(args.grid)
    metric = args.metric or _best_metric(args.gin_file, bindings)
    sweep = Sweep(user_path(args.output), files=args.gin_file, bindings=bindings, grid=grid)
    interrupt_on_termination()
    sweep.run(jobs=args.jobs, say=lambda line: print(line, file=sys.stderr, flush=True))
    rows = table(sweep.runs, metric)
    as_json = _as_json(sweep, rows, metric)
    if args.json:
        print(strict_json.dumps(as_json, indent=2))
    else:
        _print(rows, metric)
    sweep.keep_table(as_json)
    write_whole(sweep.directory / "sweep.md", _markdown(rows, metric))
    _draw_curves(sweep, rows, metric)
    return _STATUS_WITH_FAILURES if any(run.status != "done" for run in sweep.runs) else 0


def interrupt_on_termination() -> None:
    """Treat SIGTERM as Ctrl-C: the runs of a sweep are told of both in the same way."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.SIGTERM.name, 128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, interrupt)


def _best_metric(files: list[str], bindings: list[str]) -> str:
    """BEST_METRIC of the gin files. PlugError without one."""
    from plug_jax.cli.gin_config import search_paths
    from plug_jax.cli.gin_statements import read_bindings, read_files

    value = None
    for piece in [*read_files(files, search_paths()), read_bindings(bindings, {}, rank=1)]:
        for statement in piece.statements:
            if statement.setting == "BEST_METRIC":
                value = statement.value
    if not isinstance(value, str):
        raise PlugError("--metric: name the metric that runs are compared by")
    return value


def _draw_curves(sweep: Sweep, rows: list[Row], metric: str) -> None:
    """OUTPUT/curves.png: the metric by step, the seeds of a setting together."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.finetuning.sweeps import SEED
    from plug_jax.plots import plot_curves
    from plug_jax.training.writers import read_metrics

    groups: dict[str, list[list[dict]]] = {_shown(row.settings): [] for row in rows}
    for run in sweep.runs:
        settings = {name: value for name, value in run.settings.items() if name != SEED}
        groups[_shown(settings)].append(read_metrics(sweep.directory / run.name))
    plot_curves(groups, metric, sweep.directory / "curves.png")


def _shown(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "one setting"


def _markdown(rows: list[Row], metric: str) -> str:
    lines = [f"| setting | {metric} | deviation | seeds |", "|---|---|---|---|"]
    lines += [
        f"| {_shown(row.settings)} | {row.mean:.3f} | {row.deviation:.3f} | "
        f"{len(row.scores)} of {row.runs} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _print(rows: list[Row], metric: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from plug_jax.checkpoints.best import sign_of

    sign = sign_of(metric)
    shown = Table(title=f"{metric}, mean and standard deviation over seeds")
    for name in ("setting", metric, "deviation", "best", "seeds"):
        shown.add_column(name)
    for row in rows:
        best = max(row.scores, key=lambda value: sign * value, default=float("nan"))
        seeds = f"{len(row.scores)} of {row.runs}"
        shown.add_row(
            _shown(row.settings), f"{row.mean:.3f}", f"{row.deviation:.3f}", f"{best:.3f}", seeds
        )
    Console().print(shown)


def _as_json(sweep: Sweep, rows: list[Row], metric: str) -> dict[str, object]:
    return {
        "metric": metric,
        "settings": [
            {
                "settings": row.settings,
                "scores": row.scores,
                "mean": row.mean,
                "deviation": row.deviation,
                "runs": row.runs,
            }
            for row in rows
        ],
        "runs": {run.name: run.status for run in sweep.runs},
    }
