"""Kinds of tasks by the names stored in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plug_jax.downstream.choice_formats import BlankFormat, ChoiceFormat
from plug_jax.downstream.entity_format import EntityFormat
from plug_jax.downstream.formats import Format
from plug_jax.downstream.number_format import NumberFormat
from plug_jax.downstream.question_format import QuestionFormat
from plug_jax.downstream.text_format import TextFormat
from plug_jax.errors import PlugError

KINDS: Mapping[str, type[Format]] = {
    one.kind: one
    for one in (
        TextFormat,
        ChoiceFormat,
        BlankFormat,
        QuestionFormat,
        EntityFormat,
        NumberFormat,
    )
}


def described_format(description: Mapping[str, Any] | None) -> Format:
    """The format from a `task_description`, stored in `SavedModel.task`.

    Raises:
        PlugError: None (the checkpoint was not fine-tuned), or one of another version.
    """
    if description is None:
        raise PlugError(
            "this checkpoint was not fine-tuned for a task (`plug-jax train "
            "--gin_file=runs/finetune.gin` does that)"
        )
    fields = dict(description)
    fields.pop("name", None)
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        raise PlugError(f"the checkpoint's task is of an unknown kind, {kind!r}")
    try:
        return KINDS[kind](**fields)
    except TypeError as error:
        raise PlugError(f"the checkpoint's task is of another version: {error}") from error
