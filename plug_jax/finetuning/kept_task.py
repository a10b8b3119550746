"""The task of a fine-tuned checkpoint, for use in gin files."""

from __future__ import annotations

from plug_jax.checkpoints.saved_model import open_checkpoint
from plug_jax.downstream.formats import Format
from plug_jax.downstream.kinds import described_format
from plug_jax.errors import PlugError
from plug_jax.field_types import typed
from plug_jax.objectives.task_heads import TaskObjective

_CLUE = "clue_"  # prefix of CLUE's seqio tasks


@typed
def objectives_of(checkpoint: str) -> tuple[TaskObjective, ...]:
    """Its objectives, without training techniques such as label smoothing."""
    return (_format_of(checkpoint).make_objective(),)


@typed
def row_lengths_of(checkpoint: str) -> dict[str, int]:
    """Row length for its longest example, in tokens."""
    return {"encoder": _format_of(checkpoint).row_length}


@typed
def clue_task_of(checkpoint: str) -> str:
    """The CLUE task that a checkpoint was fine-tuned for. PlugError if there is none."""
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
