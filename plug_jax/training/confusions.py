"""The confusion matrix of a classification run, as a plot."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from plug_jax import plots
from plug_jax.atomic_files import write_whole
from plug_jax.checkpoints.format import PlainPath
from plug_jax.checkpoints.saving import REFUSALS, reason_of
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.downstream.formats import Outputs
from plug_jax.downstream.record_task import record_tasks
from plug_jax.downstream.text_format import TextFormat
from plug_jax.training.writers import MetricsWriter

_FILE = "confusion.png"


def draw_confusion(
    data: DatasetConfig,
    outputs: Outputs,
    model_dir: PlainPath,
    writer: MetricsWriter,
    step: int,
    *,
    say: Callable[[str], None],
) -> None:
    """Write MODEL_DIR/confusion.png and TensorBoard's `validation/confusion` for one task.

    `outputs` of all examples of `data`. Nothing is drawn for other tasks, or without gold labels.
    `say` tells the user if the file cannot be written.
    """
    tasks = record_tasks(data.mixture_or_task_name)
    if len(tasks) != 1 or not isinstance(tasks[0].format, TextFormat):
        return
    records = tasks[0].splits_of_records
    answers = records.answers(data.split, outputs)
    of_split: Sequence[Any] = records.records(data.split)  # of the format's type
    counts = tasks[0].format.confusion(of_split, answers)
    if not counts.any():
        return
    figure = plots.confusion_figure(counts, tasks[0].format.labels)
    figure.suptitle(f"step {step}", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    writer.write_image(step, "validation/confusion", file.getvalue())
    try:
        write_whole(model_dir / _FILE, file.getvalue())
    except REFUSALS as error:  # no picture is worth a run
        say(f"{_FILE} could not be written: {reason_of(error)}")
