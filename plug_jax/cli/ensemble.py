"""`plug-jax ensemble`: combines several fine-tuned runs of a task."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from plug_jax import strict_json
from plug_jax.atomic_files import write_whole
from plug_jax.cli import finetuned_runs
from plug_jax.errors import PlugError
from plug_jax.file_names import JSON, check_output_file, user_path

if TYPE_CHECKING:
    from plug_jax.finetuning.ensembles import EnsembleReport

SUMMARY = "Average the fine-tuned runs of one task, and select the members that help on dev."
EXAMPLE = """example:
  plug-jax ensemble --runs 'tnews_sweep/LEARNING_RATE=*' --output=tnews_ensemble.json

Scores of members selected on dev are optimistic there; the cross-validated score (selected on one
half of dev, scored on the other) is unbiased. `plug-jax clue submit` takes the members.
"""
_SPLITS = {"dev": "validation"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax ensemble`."""
    finetuned_runs.add_arguments(parser)
    parser.add_argument("--split", default="dev", help="split to score (dev)")
    parser.add_argument("--metric", help="metric to compare by (the task's first)")
    parser.add_argument(
        "--method",
        default="mean",
        choices=("mean", "vote"),
        help="mean of probabilities (for spans the sum of scores), or votes (mean)",
    )
    parser.add_argument("--output", help="write the report here, as JSON")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.finetuning.ensembles import ensemble

    if args.output:
        check_output_file("--output", args.output, JSON)
    runs = finetuned_runs.load_runs(args)
    if len(runs) < 2:
        raise PlugError("an ensemble needs at least two runs")
    split = _SPLITS.get(args.split, args.split)
    report = ensemble(runs, split=split, metric=args.metric, method=args.method)
    as_json = strict_json.dumps(_as_json(report), indent=2)
    if args.json:
        print(as_json)
    else:
        _print(report)
    if args.output:  # last: a full disk takes only the file
        output = user_path(args.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, as_json + "\n")
    return 0


def _as_json(report: EnsembleReport) -> dict[str, object]:
    return {
        **dataclasses.asdict(report),
        "best_single": report.best_single,
        "mean_single": report.mean_single,
        "single_deviation": report.single_deviation,
    }


def _print(report: EnsembleReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report.metric} on {report.split}, {len(report.runs)} runs")
    table.add_column("what")
    table.add_column(report.metric, justify="right")
    rows = {
        "best single run (optimistic)": f"{report.best_single:.3f}",
        "mean of the single runs": f"{report.mean_single:.3f} ± {report.single_deviation:.3f}",
        "ensemble of all": f"{report.everyone:.3f}",
        f"ensemble of {len(report.members)} selected here (optimistic)": f"{report.picked:.3f}",
        "selected on one half, scored on the other": f"{report.cross_validated:.3f}",
    }
    for what, value in rows.items():
        table.add_row(what, value)
    console = Console()
    console.print(table)
    console.print("selected, in this order:", highlight=False)
    for path in report.members:
        console.print(f"  {path}  {report.runs[path]:.3f}", highlight=False, soft_wrap=True)
    console.print(
        "Scores on the data used for selection are optimistic; the last row is unbiased.",
        highlight=False,
    )
