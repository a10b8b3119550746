"""`plug-jax zero-shot`: zero-shot predictions and scores on CLUE's tasks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plug_jax.atomic_files import write_whole
from plug_jax.cli import gin_config, jobs
from plug_jax.errors import PlugError
from plug_jax.file_names import JSON_LINES, check_output_file

if TYPE_CHECKING:
    from plug_jax.inference.zero_shot import ZeroShot

SUMMARY = "Answer a CLUE task by scoring label texts; write the predictions and score them."
EXAMPLE = """examples:
  plug-jax zero-shot --task tnews --checkpoint run2 --data_dir CLUE --output tnews11_predict.json
  plug-jax zero-shot --task c3 --checkpoint run2 --data_dir CLUE --split test \\
    --output c311_predict.json --rows c3_rows.jsonl --normalize mean

Templates and the words of labels are in zero_shot/<task>.gin; a --gin_file of your own, or
--gin.TEMPLATE="'...'", changes them. In templates {text} and {text_pair} are the texts of a row
(CSL: keywords and abstract), {passage} and {question} those of C3, {left} and {right} what stands
beside the blank of CHID, and {label} a label's words. docs/zero_shot.md says more.
"""
UNKNOWN_ARGUMENTS = True

_OPTIONS: dict[str, tuple[str, type, str]] = {  # the macro that each sets
    "checkpoint": ("CHECKPOINT", str, "checkpoint directory (a run's MODEL_DIR, or one step)"),
    "data_dir": ("CLUE_DIR", str, "CLUE's directory, with folders or zips of the tasks"),
    "split": ("SPLIT", str, "dev, test, train (dev)"),
    "normalize": ("NORMALIZE", str, "score to compare: sum, mean or pmi (pmi)"),
    "rows": (
        "OUTPUT",
        str,
        "keep each record with its probabilities here, JSON lines; the same command again resumes",
    ),
    "batch_size": ("BATCH_SIZE", int, "texts at a time (32)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax zero-shot`."""
    parser.add_argument("--task", required=True, metavar="NAME", help="tnews, afqmc, c3, ...")
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="predictions in the format of a submission, for `plug-jax clue score`",
    )
    for name, (_, kind, text) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    gin_config.add_arguments(parser, required=False)


def run(args: argparse.Namespace) -> int:
    """Write the predictions, and print the score where the split has labels."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    import jax

    from plug_jax.cli.processes import joined
    from plug_jax.inference.jobs import ERROR
    from plug_jax.inference.jobs import run as results

    with joined():
        config = _configured(args)
        output = Path(args.output).expanduser()
        check_output_file("--output", output, JSON_LINES)
        rows = list(results(config.job, config.work))
        wrong = [row[ERROR] for row in rows if ERROR in row]
        status = jobs.status(len(wrong))
        if jax.process_index() != 0:
            return status
        if status:
            count = f"{len(wrong):,} of {len(rows):,} records"
            print(f"{count} have no answer, and {output} is not written", file=sys.stderr)
            jobs.say_first_error(wrong[0])
            return status
        _finish(config, rows, output, as_json=args.json)
    return status


def _configured(args: argparse.Namespace) -> ZeroShot:
    from plug_jax.clue.tasks import CLUE, find_task
    from plug_jax.inference.zero_shot import ZeroShot

    task = find_task(args.task)
    if task.kind not in ("text", "choice", "blank"):
        raise PlugError(f"{task.name} has no labels or choices: no texts to choose from")
    # Test sets and sizes of one task share the templates of the archive's first task.
    first = next(one.name for one in CLUE.values() if one.folders == task.folders)
    values = {macro: getattr(args, name) for name, (macro, _, _) in _OPTIONS.items()}
    values["CLUE_TASK"] = task.name
    bindings = [f"{macro} = {value!r}" for macro, value in values.items() if value is not None]
    return gin_config.configured(
        ZeroShot,
        files=[f"zero_shot/{first}.gin", *(args.gin_file or ())],
        bindings=[*bindings, *gin_config.overrides(args.unknown)],
    )


def _finish(config: ZeroShot, rows: list[dict[str, Any]], output: Path, *, as_json: bool) -> None:
    from plug_jax.clue.submission import predictions_file
    from plug_jax.clue.tasks import find_task

    split = config.read()
    predictions = config.predictions(split.records, rows)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, predictions_file(find_task(config.task), split.records, predictions))
    metrics = config.metrics(split.records, predictions)
    shortened = sum("left_out" in row for row in rows)
    if as_json:
        found = {
            "task": config.task,
            "split": config.split,
            "records": len(rows),
            "shortened": shortened,
            "normalize": config.work.normalize,
            "metrics": {name: round(value, 3) for name, value in metrics.items()},
        }
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return
    print(f"{config.task} {config.split}: {len(rows):,} predictions in {output}")
    if shortened:
        print(
            f"{shortened:,} prompts were truncated: longer than MAX_PROMPT_TOKENS or than the "
            "model allows"
        )
    for name, value in metrics.items():
        print(f"{name} {value:.3f} ({config.work.normalize})")
