"""`plug-jax score`: the log-likelihood of given targets after given prompts."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from plug_jax.cli import gin_config, jobs
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields

if TYPE_CHECKING:
    from plug_jax.inference.jobs import Job
    from plug_jax.inference.scoring import Scoring

SUMMARY = "Compute the log-likelihood and perplexity of texts that follow prompts."
EXAMPLE = """examples:
  plug-jax score --checkpoint run2 --prompt '今天天气' --target '很好，我们出去走走。'
  plug-jax score --checkpoint run2 --input pairs.jsonl --output scored.jsonl

A row is {"prompt": ..., "target": ...}; the target may be a list. Status 3: done, but for rows with
an error. docs/inference.md says more.
"""
UNKNOWN_ARGUMENTS = True

_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    **jobs.OPTIONS,
    "prompt_field": (str, "field of a row with the prompt (prompt, text or inputs)"),
    "target_field": (str, "field of a row with the target or a list of them (target or targets)"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """The settings of runs/score.gin and the options."""

    job: Job
    work: Scoring

    def __post_init__(self) -> None:
        from plug_jax.inference.jobs import Job
        from plug_jax.inference.scoring import Scoring

        check_fields(self, {"Job": Job, "Scoring": Scoring})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax score`."""
    parser.add_argument("--prompt", help="in place of --input: a prompt")
    parser.add_argument("--target", help="with --prompt: the text to be scored after it")
    jobs.add_arguments(parser, _OPTIONS, jobs.NO_SEP, gin_file="runs/score.gin")


def run(args: argparse.Namespace) -> int:
    """Print the score of each row and of all; with an output, only of all."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.cli.processes import joined
    from plug_jax.inference.jobs import run as results
    from plug_jax.inference.scoring import Total

    if (args.prompt is None) != (args.target is None):
        raise PlugError("--prompt and --target go together")
    given = None if args.prompt is None else {"prompt": args.prompt, "target": args.target}
    with joined():
        config = gin_config.configured(
            ScoreConfig,
            files=args.gin_file,
            bindings=jobs.bindings_of(args, _OPTIONS, given, jobs.NO_SEP),
        )
        return jobs.report(
            results(config.job, config.work),
            Total(),
            as_json=args.json,
            with_rows=config.job.output is None,
            line=_line,
        )


def _line(row: Mapping[str, Any]) -> str:
    names = ("log_likelihood", "mean_log_likelihood", "perplexity", "tokens")
    values = [row[name] if isinstance(row[name], list) else [row[name]] for name in names]
    return "\n".join(
        f"log P {total:.4f}  per token {mean:.4f}  perplexity {perplexity:.4f}  tokens {tokens}"
        for total, mean, perplexity, tokens in zip(*values, strict=True)
    )
