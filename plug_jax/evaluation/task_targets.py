"""What a seqio task asks for, read from the settings of its preprocessors."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import seqio

from plug_jax.data.features import DECODER, ENCODER
from plug_jax.data.lengths import sample_lengths
from plug_jax.data.masking import masked_language_model
from plug_jax.data.sentence_order import sentence_pairs
from plug_jax.data.word_order import shuffle_windows

_KNOWN = (masked_language_model, sample_lengths, sentence_pairs, shuffle_windows)
# The output feature whose length in seqio's `sequence_length` bounds a side.
_BOUND_BY = {ENCODER: "encoder_input_tokens", DECODER: "decoder_target_tokens"}


@dataclasses.dataclass(frozen=True)
class TaskTargets:
    """Rates and lengths that a task asks for; None where it does not say.

    A mixture asks for what its tasks agree on.
    """

    mask_rate: float | None = None
    shuffle_rate: float | None = None  # of the windows that could be shuffled
    shuffle_window: int | None = None  # tokens
    marks_unmoved: bool = True  # whether `encoder_shuffled` covers whole windows
    label_share: float | None = None  # of each sentence label
    shortest: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by side
    longest: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by side
    uniform: bool = False  # whether lengths are drawn uniformly from shortest to longest


def find_targets(
    provider: seqio.Task | seqio.Mixture,
    split: str,
    sequence_length: Mapping[str, int] | None = None,
) -> TaskTargets:
    """Reads the targets of a task or mixture.

    Only `functools.partial`s (or bare functions) of the project's own preprocessors are known; for
    arguments they do not set, the function's default counts. `sequence_length` is what the dataset
    is made with: it bounds the lengths.
    """
    tasks = [task for task in seqio.get_subtasks(provider) if split in task.splits]
    found = [_targets_of(task, sequence_length or {}) for task in tasks]
    if len(found) == 1:
        return found[0]
    agreed: dict[str, Any] = {}
    for field in dataclasses.fields(TaskTargets):
        values = [getattr(targets, field.name) for targets in found]
        if values and all(value == values[0] for value in values):
            agreed[field.name] = values[0]
    return TaskTargets(**agreed)


def _targets_of(task: seqio.Task, bounds: Mapping[str, int]) -> TaskTargets:
    targets = TaskTargets()
    for preprocessor in task.preprocessors:
        function, settings = _settings(preprocessor)
        if function is masked_language_model:
            targets = dataclasses.replace(targets, mask_rate=settings["mask_rate"])
        elif function is shuffle_windows:
            targets = dataclasses.replace(
                targets,
                shuffle_rate=settings["rate"],
                shuffle_window=settings["window"],
                marks_unmoved=not settings["label_moved_only"],
            )
        elif function is sentence_pairs:
            longest = _bounded(settings["max_length"], bounds, (ENCODER,))
            targets = dataclasses.replace(targets, label_share=1 / 3, longest=longest)
        elif function is sample_lengths:
            sides = (ENCODER, DECODER)
            targets = dataclasses.replace(
                targets,
                shortest=dict.fromkeys(sides, settings["min_length"]),
                longest=_bounded(settings["max_length"], bounds, sides),
                uniform=True,
            )
    return targets


def _bounded(length: int, bounds: Mapping[str, int], sides: tuple[str, ...]) -> dict[str, int]:
    return {side: min(length, bounds.get(_BOUND_BY[side], length)) for side in sides}


def _settings(preprocessor: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function of a partial and, if it is ours, all its arguments, defaults included."""
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(preprocessor, functools.partial):
        arguments, keywords = preprocessor.args, preprocessor.keywords
        preprocessor = preprocessor.func
    if preprocessor not in _KNOWN:
        return preprocessor, {}
    bound = inspect.signature(preprocessor).bind_partial(None, *arguments, **keywords)
    bound.apply_defaults()
    return preprocessor, bound.arguments
