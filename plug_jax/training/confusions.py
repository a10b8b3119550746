"""What a model of classification confuses, as a picture beside its checkpoint."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from plug_jax.atomic_files import write_whole
from plug_jax.data.pipeline import DatasetConfig
from plug_jax.downstream.formats import Outputs
from plug_jax.downstream.record_task import record_tasks
from plug_jax.downstream.text_format import TextFormat
from plug_jax.evaluation import plots
from plug_jax.training.checkpoint_format import PlainPath
from plug_jax.training.writers import MetricsWriter

_FILE = "confusion.png"


def draw_confusion(
    data: DatasetConfig,
    outputs: Outputs,
    model_dir: PlainPath,
    writer: MetricsWriter,
    step: int,
) -> None:
    """MODEL_DIR/confusion.png and TensorBoard's `validation/confusion`, of one task's labels.

    `outputs` are of all examples of `data`; of other tasks, and of records without gold labels,
    there is no picture.
    """
    tasks = record_tasks(data.mixture_or_task_name)
    if len(tasks) != 1 or not isinstance(tasks[0].format, TextFormat):
        return
    records = tasks[0].splits_of_records
    answers = records.answers(data.split, outputs)
    of_split: Sequence[Any] = records.records(data.split)  # of the format's kind
    counts = tasks[0].format.confusion(of_split, answers)
    if not counts.any():
        return
    figure = plots.confusion_figure(counts, tasks[0].format.labels)
    figure.suptitle(f"step {step}", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    write_whole(model_dir / _FILE, file.getvalue())
    writer.write_image(step, "validation/confusion", file.getvalue())
