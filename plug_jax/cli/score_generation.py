"""`plug-jax score-generation`: BLEU, ROUGE and distinct-n of generated texts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from plug_jax import strict_json
from plug_jax.atomic_files import write_whole
from plug_jax.cli.jobs import STATUS_WITH_ERRORS
from plug_jax.errors import PlugError
from plug_jax.file_names import JSON_LINES, check_output_file

if TYPE_CHECKING:
    from plug_jax.generation_tasks.conventions import Scores
    from plug_jax.generation_tasks.predictions import Prediction, Reference

SUMMARY = "Compute BLEU, ROUGE and distinct-n of the texts of `infer`, by a published convention."
EXAMPLE = """examples:
  plug-jax score-generation --predictions texts.jsonl
  plug-jax score-generation --predictions texts.jsonl --task dureader_qg --data DuReaderQG \\
    --convention paddlenlp --output scored.jsonl

A row is {"id": ..., "generated": [{"text": ...}, ...], "references": [...]}, as `plug-jax infer`
writes it, or {"prediction": ..., "target": ...}. All figures are percentages. Status 3: done, but
for rows with an error, which count as empty texts. docs/generation_tasks.md says more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax score-generation`."""
    add = parser.add_argument
    add("--predictions", required=True, metavar="FILE", help="JSON lines written by infer")
    add(
        "--references",
        metavar="FILE",
        help="instead of the rows' own: JSON lines, TSV or CSV with references, targets or "
        "target (and id)",
    )
    add("--task", help="or those of a task's official files: lcsts, dureader_qg, ...")
    add("--data", metavar="PATH", help="the directory of these files, or one file")
    add("--split", default="validation", help="the split that was predicted (%(default)s)")
    add(
        "--convention",
        default="plug",
        help="plug, paddlenlp, t5_pegasus, clge or cpt: whose tokens, averages and smoothing "
        "(%(default)s)",
    )
    add("--output", metavar="FILE", help="write each row with its references and scores here")
    add("--json", action="store_true", help="print JSON and nothing else")


def run(args: argparse.Namespace) -> int:
    """Print the scores of all rows together."""
    _check(args)
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.generation_tasks.conventions import find_convention, score
    from plug_jax.generation_tasks.predictions import read_predictions, with_references

    convention = find_convention(args.convention)
    predictions, without = read_predictions(os.path.expanduser(args.predictions)), 0
    if args.references or args.task:
        predictions, without = with_references(predictions, _references(args))
    if missing := [one for one in predictions if not one.references]:
        raise PlugError(
            f"{len(missing):,} of {len(predictions):,} rows have no reference; the first is "
            f"{missing[0].where}. Name a file with --references, or --task and --data with a split "
            "whose targets are published."
        )
    scores = score(
        convention, [one.text for one in predictions], [one.references for one in predictions]
    )
    errors = sum(one.failed for one in predictions)
    counts = {
        "rows": len(predictions),
        "scored": scores.scored,
        "errors": errors,
        "empty": sum(not one.text.strip() for one in predictions) - errors,
        "short_references": scores.short_references,
        "without_prediction": without,
    }
    if args.output is not None:
        _write(os.path.expanduser(args.output), predictions, scores)
    if args.json:
        shown = {"convention": args.convention, **counts, "metrics": scores.metrics}
        print(strict_json.dumps(shown, indent=2))
    else:
        print("  ".join(f"{name} {count:,}" for name, count in counts.items()))
        print("  ".join(f"{name} {value:.2f}" for name, value in scores.metrics.items()))
    return STATUS_WITH_ERRORS if errors else 0


def _check(args: argparse.Namespace) -> None:
    if (args.task is None) != (args.data is None):
        raise PlugError("--task and --data go together")
    if args.task is not None and args.references is not None:
        raise PlugError("give either --references or --task and --data")
    inputs = [path for path in (args.predictions, args.references, args.data) if path]
    output = args.output and os.path.realpath(os.path.expanduser(args.output))
    if output in [os.path.realpath(os.path.expanduser(path)) for path in inputs]:
        raise PlugError(f"--output {args.output} would replace what is read; choose another file")
    if args.output:
        check_output_file("--output", args.output, JSON_LINES)


def _references(args: argparse.Namespace) -> list[Reference]:
    from plug_jax.generation_tasks.predictions import Reference, read_references
    from plug_jax.generation_tasks.tasks import find_file, find_task, read_pairs

    if args.references:
        return read_references(os.path.expanduser(args.references))
    task = find_task(args.task)
    split = "validation" if args.split == "dev" else args.split
    path = find_file(task, args.data, split)
    pairs = read_pairs(path, split, read=task.read, layout=task.layout("plug"))
    return [Reference(pair.id, pair.references) for pair in pairs]


def _write(path: str, predictions: Sequence[Prediction], scores: Scores) -> None:
    """JSON lines: rows with `prediction`, `references`, and `scores`, null if left out."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    lines = []
    for one, of_text in zip(predictions, scores.of_texts, strict=True):
        added = {"prediction": one.text, "references": one.references, "scores": of_text}
        lines.append(strict_json.dumps({**one.fields, **added}, ensure_ascii=False) + "\n")
    # A lone surrogate in a row's other fields is written as JSON's escape.
    write_whole(path, "".join(lines).encode("utf-8", "backslashreplace"))
