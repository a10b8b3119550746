"""`plug-jax embed`: texts as vectors."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from plug_jax.cli import gin_config, jobs
from plug_jax.cli.arguments import help_of, options_of
from plug_jax.field_types import check_fields
from plug_jax.inference.request_options import EmbeddingOptions

if TYPE_CHECKING:
    from plug_jax.inference.encoding import Embedding
    from plug_jax.inference.jobs import Job

SUMMARY = "Embed texts as vectors with the encoder of any checkpoint."
EXAMPLE = """examples:
  plug-jax embed --checkpoint run1 --text '今天天气很好'
  plug-jax embed --checkpoint run1 --input prompts.txt --output vectors.npy --normalize
  plug-jax embed --checkpoint run1 --input rows.jsonl --output vectors.jsonl --max_length 256

A row is {"text": ...}; in a .txt file each line is a text. An output that ends in .npy is float32
[rows, dimensions]; any other one is JSON lines, each row with its `embedding`. Status 3: done,
except for rows with an error. docs/inference.md says more.
"""
UNKNOWN_ARGUMENTS = True

_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    **jobs.OPTIONS,
    "output": (
        str,
        "FILE.npy: the vectors; else JSON lines, each row with its vector; the same command "
        "again resumes",
    ),
    **options_of(EmbeddingOptions),
    "text_field": (str, "field of a row with the text (text or sentence)"),
}
_SWITCHES = {"normalize": (help_of(EmbeddingOptions, "normalize"), "NORMALIZE = True")}
_SHOWN = 4  # numbers of a vector shown in the terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """The settings of runs/embed.gin and the options."""

    job: Job
    work: Embedding

    def __post_init__(self) -> None:
        from plug_jax.inference.encoding import Embedding
        from plug_jax.inference.jobs import Job

        check_fields(self, {"Job": Job, "Embedding": Embedding})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax embed`."""
    parser.add_argument("--text", help="in place of --input: a text")
    jobs.add_arguments(parser, _OPTIONS, _SWITCHES, gin_file="runs/embed.gin")


def run(args: argparse.Namespace) -> int:
    """Print the vector of each row and the counts; with an output, the counts."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.cli.processes import joined
    from plug_jax.inference.jobs import Counts

    given = None if args.text is None else {"text": args.text}
    with joined():
        bindings = jobs.bindings_of(args, _OPTIONS, given, _SWITCHES)
        config = gin_config.configured(EmbedConfig, files=args.gin_file, bindings=bindings)
        return jobs.report(
            _results(config),
            Counts(),
            as_json=args.json,
            with_rows=config.job.output is None,
            line=_line,
        )


def _results(config: EmbedConfig) -> Iterable[Mapping[str, Any]]:
    """Each row with its vector, which is also written to the output."""
    import jax

    from plug_jax.checkpoints.saved_model import open_checkpoint
    from plug_jax.inference.jobs import run
    from plug_jax.inference.rows import contents_of
    from plug_jax.inference.vector_file import SUFFIX, check_vector_file, write_vectors

    job, output = config.job, config.job.output
    if output is None or not output.endswith(SUFFIX):
        return run(job, config.work)
    check_vector_file(output)
    rows = run(dataclasses.replace(job, output=None), config.work)
    if jax.process_index() > 0:
        return rows  # the first process has all of them
    numbers = open_checkpoint(job.checkpoint).config.hidden_size
    return write_vectors(rows, output, shape=(contents_of(job.rows).rows, numbers))


def _line(row: Mapping[str, Any]) -> str:
    vector = row["embedding"]
    first = " ".join(f"{number:.4f}" for number in vector[:_SHOWN])
    return f"{first} ... {len(vector)} numbers of length {math.hypot(*vector):.4f}"
