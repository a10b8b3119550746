"""`plug-jax classify`: labels texts with a fine-tuned head, or zero-shot by scoring texts."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from plug_jax.cli import gin_config, jobs
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields

if TYPE_CHECKING:
    from plug_jax.inference.classification import Classification
    from plug_jax.inference.jobs import Job
    from plug_jax.inference.prediction import Prediction

SUMMARY = "Classify texts with a fine-tuned head, or zero-shot by the most likely label text."
EXAMPLE = """examples:
  plug-jax classify --checkpoint run2 --labels 体育,财经,科技 --template '这是{label}新闻。' \\
    --text '国足今晚客场取胜'
  plug-jax classify --checkpoint run2 --labels labels.txt --template '这是{label}新闻。' \\
    --input rows.jsonl --output predictions.jsonl

  plug-jax classify --checkpoint finetuned/afqmc --text '怎么还款' --text_pair '还款的方法'

A fine-tuned checkpoint has labels of its own. A row is {"text": ...} (and "text_pair"); with a
`label` of its own it counts for the accuracy. Status 3: done, except for rows with an error.
docs/inference.md says more.
"""
UNKNOWN_ARGUMENTS = True

_ZERO_SHOT = ("labels", "template", "prompt_template", "normalize", "no_sep")
_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    **jobs.OPTIONS,
    "labels": (
        str,
        "a file, one label per line (or: label, tab, its words), or labels separated by commas",
    ),
    "template": (str, "what follows the prompt if the label is right ('{label}')"),
    "prompt_template": (str, "what the encoder reads; {name} is a row's field ('{text}')"),
    "normalize": (
        str,
        "score to compare: sum, mean (per token), or pmi, which subtracts the label's score "
        "without the text (pmi)",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """The settings of runs/classify.gin and the options."""

    job: Job
    work: Classification

    def __post_init__(self) -> None:
        from plug_jax.inference.classification import Classification
        from plug_jax.inference.jobs import Job

        check_fields(self, {"Job": Job, "Classification": Classification})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax classify`."""
    parser.add_argument("--text", help="in place of --input: a text")
    parser.add_argument("--text_pair", help="the second text of a pair")
    jobs.add_arguments(parser, _OPTIONS, jobs.NO_SEP, gin_file="runs/classify.gin")


def run(args: argparse.Namespace) -> int:
    """Print each row's label and the counts; with an output, the counts."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.cli.processes import joined
    from plug_jax.inference.classification import Accuracy
    from plug_jax.inference.jobs import run as results
    from plug_jax.inference.prediction import Prediction

    with joined():
        row = _row(args)
        bindings = jobs.bindings_of(args, _OPTIONS, row, jobs.NO_SEP)
        job: Job
        work: Prediction | Classification
        if task := jobs.fine_tuned_for(args.gin_file, bindings):
            labels: Collection[str] = _own_labels(task, args)
            job, work = jobs.prediction_job(task, args.gin_file, bindings), Prediction()
        else:
            config = gin_config.configured(ClassifyConfig, files=args.gin_file, bindings=bindings)
            job, work, labels = config.job, config.work, config.work.labels
            for field in row or {}:
                config.work.check_reads(field)
        return jobs.report(
            results(job, work),
            Accuracy(labels),
            as_json=args.json,
            with_rows=job.output is None,
            line=_line,
        )


def _row(args: argparse.Namespace) -> dict[str, str] | None:
    """The row on the command line."""
    if args.text is None and args.text_pair is not None:
        raise PlugError("--text_pair is the second text of a pair; give the first as --text")
    texts = {"text": args.text, "text_pair": args.text_pair}
    return {name: text for name, text in texts.items() if text is not None} or None


def _own_labels(task: Mapping[str, Any], args: argparse.Namespace) -> tuple[str, ...]:
    """Labels of a fine-tuned checkpoint. PlugError if it has none, or options do not apply."""
    from plug_jax.downstream.kinds import described_format
    from plug_jax.downstream.text_format import TextFormat

    format_ = described_format(task)
    what = f"this checkpoint was fine-tuned for {task['name']!r}"
    if not isinstance(format_, TextFormat):
        raise PlugError(f"{what}, which does not label texts; `plug-jax infer` gives its answers")
    if given := [f"--{name}" for name in _ZERO_SHOT if getattr(args, name)]:
        raise PlugError(
            f"{', '.join(given)}: for zero-shot classification, by scoring texts; {what} and has "
            f"{len(format_.labels)} labels of its own: leave this out"
        )
    return format_.labels


def _line(row: Mapping[str, Any]) -> str:
    ranked = sorted(row["probabilities"].items(), key=lambda of: -of[1])
    return "  ".join(f"{label} {probability:.4f}" for label, probability in ranked)
