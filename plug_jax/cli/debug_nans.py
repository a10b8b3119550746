"""`plug-jax debug-nans`: finds where the first non-finite number of a step arises."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from plug_jax.cli import gin_config

if TYPE_CHECKING:
    import numpy as np
    from rich.console import RenderableType

    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
    from plug_jax.training.module_numbers import Numbers, StepNumbers

SUMMARY = "Examine a step of a run: its batch, and where its first non-finite number came from."
EXAMPLE = """example:
  plug-jax debug-nans --step=17 --gin_file=runs/structbert_pretrain.gin \\
    --gin_file=models/tiny.gin --gin_file=mesh/cpu1.gin --gin.MODEL_DIR="'run1'" \\
    --gin.TRAIN_STEPS=1000 --gin.TRAIN_FILES="'news/*.txt'" \\
    --gin.VALIDATION_FILES="'held_out.txt'" --gin.VOCABULARY="'vocabulary'" \\
    --gin.VOCAB_SIZE=8000 --gin.BATCH_SIZE=16

Give it the gin files and settings of the run. It starts from the run's newest checkpoint before the
step, repeats the steps in between, and changes nothing in MODEL_DIR.
"""
UNKNOWN_ARGUMENTS = True

_ROWS = 12  # per table, at most
_SHOWN = 3  # rows of the batch
_CHARACTERS = 200  # per example


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax debug-nans`."""
    parser.add_argument(
        "--step", type=int, required=True, metavar="N", help="step number, as in metrics.jsonl"
    )
    gin_config.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the step's numbers and its batch."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    import jax
    from rich.console import Console

    from plug_jax.cli.processes import joined
    from plug_jax.cli.train import configure
    from plug_jax.data.pipeline.pipeline import vocabulary_of
    from plug_jax.training.replay import replay

    with joined():
        console = Console(highlight=False, markup=False, emoji=False, quiet=jax.process_index() > 0)
        config = configure(args.gin_file, gin_config.overrides(args.unknown))
        found = replay(config, args.step, say=console.print)
        for part in show_numbers(found.numbers):
            console.print(part)
        vocabulary = vocabulary_of(config.train_data.mixture_or_task_name)
        for line in show_rows(found.batch, found.numbers.rows, vocabulary):
            console.print(line, soft_wrap=True)
    return 0


def show_numbers(numbers: StepNumbers) -> Iterator[RenderableType]:
    """Tables: the first non-finite module and its neighbours; losses; parameters; gradients."""
    first = next((i for i, one in enumerate(numbers.forward) if one.not_finite), None)
    around = numbers.forward if first is None else numbers.forward[max(0, first - 3) : first + 4]
    losses = "  ".join(f"{name} {value:.6g}" for name, value in numbers.losses.items())
    yield _table("forward", around if first is not None else around[-4:])
    yield f"losses    {losses}"
    for name, part in (("parameters", numbers.parameters), ("gradients", numbers.gradients)):
        bad = [one for one in part if one.not_finite]
        largest = max(part, key=lambda one: one.largest)
        if bad:
            yield _table(name, bad)
        else:
            yield f"{name} all finite, the largest {largest.largest:.4g} in {largest.where}"
    yield f"FIRST NON-FINITE: {numbers.first or 'none, all numbers of this step are finite'}"


def _table(name: str, numbers: Sequence[Numbers]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in (name, "not finite", "of", "largest |x|"):
        table.add_column(title, justify="left" if title == name else "right")
    for one in numbers[:_ROWS]:
        style = "bold red" if one.not_finite else ""
        cells = (one.where, f"{one.not_finite:,}", f"{one.size:,}", f"{one.largest:.4g}")
        table.add_row(*cells, style=style)
    if len(numbers) > _ROWS:
        table.add_row(f"and {len(numbers) - _ROWS} more")
    return table


def show_rows(
    batch: Mapping[str, np.ndarray], rows: Sequence[int], vocabulary: PlugVocabulary
) -> Iterator[str]:
    """The texts of the first of these rows, one line per example and side; of none: of all rows."""
    size = min(map(len, batch.values()))
    for row in (rows or range(size))[:_SHOWN]:
        for side in ("encoder", "decoder"):
            if f"{side}_segment_ids" not in batch:
                continue
            segments = batch[f"{side}_segment_ids"][row]
            name = f"{side}_original_tokens"
            tokens = batch[name if name in batch else f"{side}_input_tokens"][row]
            for segment in sorted({*segments.tolist()} - {0}):
                text = _text(tokens[segments == segment], vocabulary)
                yield f"row {row}, example {segment}, {side}: {text}"


def _text(tokens: np.ndarray, vocabulary: PlugVocabulary) -> str:
    text = vocabulary.decode(tokens.tolist())
    more = f"... ({len(tokens)} tokens)" if len(text) > _CHARACTERS else f" ({len(tokens)} tokens)"
    return text[:_CHARACTERS] + more
