"""`plug-jax classify`: zero-shot classification by scoring what each label would say."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plug_jax.cli import jobs

if TYPE_CHECKING:
    from plug_jax.inference.classification import Classification
    from plug_jax.inference.jobs import Job

SUMMARY = "Classify texts zero-shot: which label's text the model finds likeliest after them."
EXAMPLE = """examples:
  plug-jax classify --checkpoint run2 --labels 体育,财经,科技 --template '这是{label}新闻。' \\
    --text '国足今晚客场取胜'
  plug-jax classify --checkpoint run2 --labels labels.txt --template '这是{label}新闻。' \\
    --input rows.jsonl --output predictions.jsonl

A row is {"text": ...}; with a `label` of its own it counts for the accuracy. Status 3: done, but
for rows with an error. docs/inference.md says more.
"""
UNKNOWN_ARGUMENTS = True

_OPTIONS = {
    **jobs.OPTIONS,
    "labels": (str, "a file, one label a line (or: label, tab, its words), or labels with commas"),
    "template": (str, "what follows the prompt if the label is right ('{label}')"),
    "prompt_template": (str, "what the encoder reads; {name} is a row's field ('{text}')"),
    "normalize": (
        str,
        "what is compared: sum, mean (a token), or pmi, which takes off what the label has without "
        "the text (pmi)",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """What runs/classify.gin and the options describe."""

    job: Job
    work: Classification


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax classify`."""
    parser.add_argument("--text", help="in place of --input: a text")
    jobs.add_arguments(parser, _OPTIONS, gin_file="runs/classify.gin")


def run(args: argparse.Namespace) -> int:
    """Print each row's label and the counts; with an output, the counts."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.cli.processes import joined
    from plug_jax.inference.classification import Accuracy
    from plug_jax.inference.jobs import run as results

    with joined():
        given = None if args.text is None else {"text": args.text}
        config = jobs.configured(ClassifyConfig, args, _OPTIONS, given)
        return jobs.report(
            results(config.job, config.work),
            Accuracy(config.work.labels),
            as_json=args.json,
            with_rows=config.job.output is None,
            line=_line,
        )


def _line(row: Mapping[str, Any]) -> str:
    ranked = sorted(row["probabilities"].items(), key=lambda of: -of[1])
    return "  ".join(f"{label} {probability:.4f}" for label, probability in ranked)
