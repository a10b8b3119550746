"""`plug-jax fill-mask`: fills in [MASK]."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from plug_jax.cli import gin_config, jobs
from plug_jax.cli.arguments import options_of
from plug_jax.field_types import check_fields
from plug_jax.inference.request_options import MaskOptions

if TYPE_CHECKING:
    from plug_jax.inference.jobs import Job
    from plug_jax.inference.mask_filling import MaskFilling

SUMMARY = "Predict the candidates for each [MASK] in a text, with probabilities."
EXAMPLE = """examples:
  plug-jax fill-mask --checkpoint run1 --text '北[MASK]是中国的首都' --top_k 3
  plug-jax fill-mask --checkpoint run1 --input masked.jsonl --output filled.jsonl

A row is {"text": ...} with [MASK] in it; in a .txt file each line is a text. Each [MASK] is a
single piece of the vocabulary, in Chinese a character. Status 3: done, except for rows with an
error. docs/inference.md says more.
"""
UNKNOWN_ARGUMENTS = True

_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    **jobs.OPTIONS,
    **options_of(MaskOptions),
    "text_field": (str, "field of a row with the text (text or sentence)"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FillMaskConfig:
    """The settings of runs/fill_mask.gin and the options."""

    job: Job
    work: MaskFilling

    def __post_init__(self) -> None:
        from plug_jax.inference.jobs import Job
        from plug_jax.inference.mask_filling import MaskFilling

        check_fields(self, {"Job": Job, "MaskFilling": MaskFilling})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax fill-mask`."""
    parser.add_argument("--text", help="in place of --input: a text")
    jobs.add_arguments(parser, _OPTIONS, gin_file="runs/fill_mask.gin")


def run(args: argparse.Namespace) -> int:
    """Print the candidates of each mask and the counts; with an output, the counts."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.cli.processes import joined
    from plug_jax.inference.jobs import Counts
    from plug_jax.inference.jobs import run as results

    given = None if args.text is None else {"text": args.text}
    with joined():
        config = gin_config.configured(
            FillMaskConfig, files=args.gin_file, bindings=jobs.bindings_of(args, _OPTIONS, given)
        )
        return jobs.report(
            results(config.job, config.work),
            Counts(),
            as_json=args.json,
            with_rows=config.job.output is None,
            line=_line,
        )


def _line(row: Mapping[str, Any]) -> str:
    return "\n".join(
        "  ".join(f"{one['piece']} {one['probability']:.4f}" for one in mask["candidates"])
        for mask in row["masks"]
    )
