"""What a fine-tuned checkpoint says of its task, for gin files to name."""

from __future__ import annotations

from plug_jax.downstream.formats import Format
from plug_jax.downstream.kinds import described_format
from plug_jax.errors import PlugError
from plug_jax.field_types import typed
from plug_jax.objectives.task_heads import TaskObjective
from plug_jax.training.saved_model import open_checkpoint

_CLUE = "clue_"  # what the seqio tasks of CLUE are called before their names


@typed
def objectives_of(checkpoint: str) -> tuple[TaskObjective, ...]:
    """What it was trained with, without techniques of training such as smoothed labels."""
    return (_format_of(checkpoint).make_objective(),)


@typed
def row_lengths_of(checkpoint: str) -> dict[str, int]:
    """Tokens of a row that holds its longest example."""
    return {"encoder": _format_of(checkpoint).row_length}


@typed
def clue_task_of(checkpoint: str) -> str:
    """The task of CLUE that a checkpoint was fine-tuned for. PlugError if it is none."""
    kept = open_checkpoint(checkpoint).task
    name = str(kept["name"]) if kept else ""
    if not name.startswith(_CLUE):
        was = f"was fine-tuned for {name!r}, no task of CLUE" if kept else "was not fine-tuned"
        raise PlugError(
            f"{checkpoint} {was}: name a task for it in CLUE_TASK, or a task of your own in "
            "MIXTURE_OR_TASK_NAME"
        )
    return name.removeprefix(_CLUE)


def _format_of(checkpoint: str) -> Format:
    return described_format(open_checkpoint(checkpoint).task)
