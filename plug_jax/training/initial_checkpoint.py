"""INITIAL_CHECKPOINT: starting from another run's, or converted, parameters."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from plug_jax.checkpoints.parameters import HEADS
from plug_jax.checkpoints.saved_model import open_checkpoint, vocabulary_fingerprint
from plug_jax.config import Attention, PlugConfig, RematName, RematPolicy
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.field_types import typed
from plug_jax.techniques.lora import LORA
from plug_jax.training.same_run import what_is_told
from plug_jax.training.state import StateLayout, TrainState, init_state

if TYPE_CHECKING:
    from plug_jax.training.program import TrainConfig, TrainProgram


def first_state(
    config: TrainConfig,
    program: TrainProgram,
    vocabulary: PlugVocabulary,
    task: Mapping[str, Any] | None,
) -> tuple[TrainState, str | None]:
    """A run's first state, and a note for the user, if any."""
    layout = program.layout
    state = init_state(
        program.model, config.objectives, program.optimizer, layout, seed=config.seed
    )
    if config.initial_checkpoint is None:
        return state, None
    return initialize_from(
        config.initial_checkpoint, state, layout, vocabulary=vocabulary, task=task
    )


def initialize_from(
    path: str | os.PathLike[str],
    state: TrainState,
    layout: StateLayout,
    *,
    vocabulary: PlugVocabulary,
    task: Mapping[str, Any] | None = None,
) -> tuple[TrainState, str | None]:
    """Stage 1 -> stage 2: `state` with all parameters of the checkpoint at `path`.

    The checkpoint is a run's, or converted; its arrays become float32. A decoder, and objectives'
    heads, that it lacks keep their initial values; those that this run lacks are left out, as are
    heads trained for another `task` (`task_description`). Otherwise the trees must be equal.
    Optimizer and step start anew.

    Returns:
        The state, and a line about initialised and left out parts, if any.

    Raises:
        PlugError: any leaf that is missing, unexpected or of another shape; another vocabulary.
    """
    saved = open_checkpoint(path)
    needed = saved.vocabulary_path
    if saved.vocabulary_fingerprint != vocabulary_fingerprint(vocabulary):
        raise PlugError(
            f"INITIAL_CHECKPOINT {saved.path} was trained with another vocabulary than this run's "
            f"task; the one it needs is {needed}"
        )
    shapes = saved.param_shapes()
    source, target = _by_path(shapes), _by_path(layout.abstract.params)
    there, here = _optional_parts(shapes), _optional_parts(layout.abstract.params)
    left, fresh = there - here, here - there
    if what_is_told(saved.task) != what_is_told(task):
        left, fresh = left | _heads(there), fresh | _heads(here)
    source = {name: shape for name, shape in source.items() if not _within(name, left)}
    target = {name: shape for name, shape in target.items() if not _within(name, fresh)}
    problems = [
        f"{name}: {source[name]} there, {target.get(name, 'absent')} here"
        for name in source
        if target.get(name) != source[name]
    ] + [f"{name}: absent there, {target[name]} here" for name in target if name not in source]
    if problems:
        raise PlugError(
            f"INITIAL_CHECKPOINT {saved.path} does not fit this model:\n  " + "\n  ".join(problems)
        )
    shardings = flatten_dict(layout.shardings.params, sep="/")
    taken_over = unflatten_dict({name: shardings[name] for name in source}, sep="/")
    loaded = flatten_dict(saved.params(taken_over, "float32"), sep="/")
    params = flatten_dict(state.params, sep="/") | loaded
    notes = [f"{', '.join(sorted(fresh))} of this run is newly initialised"] if fresh else []
    notes += [f"{', '.join(sorted(left))} of the checkpoint is not used"] if left else []
    note = f"INITIAL_CHECKPOINT {saved.path}: {'; '.join(notes)}" if notes else None
    return dataclasses.replace(state, params=unflatten_dict(params, sep="/")), note


def _optional_parts(params: Mapping[str, Any]) -> set[str]:
    """The optional parts present: "decoder", "lora", "heads/NAME"."""
    return {"decoder", LORA} & params.keys() | {f"{HEADS}/{name}" for name in params.get(HEADS, ())}


def _heads(parts: Set[str]) -> set[str]:
    return {part for part in parts if part.startswith(f"{HEADS}/")}


def _within(name: str, parts: Set[str]) -> bool:
    """Whether a leaf is in one of these parts of the tree."""
    return any(name.startswith(f"{part}/") for part in parts)


def _by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@typed
def encoder_of(
    checkpoint: str,
    *,
    dropout_rate: float = 0.1,
    attention_dropout_rate: float | None = None,
    attention: Attention = "auto",
    remat_policy: RematPolicy = "none",
    remat_saved_names: tuple[RematName, ...] = ("qkv", "out"),
) -> PlugConfig:
    """A checkpoint's model without its decoder, for fine-tuning.

    `dropout_rate` applies to embeddings, residual branches and, unless that has its own, attention.
    Raises PlugError if there is no checkpoint.
    """
    return dataclasses.replace(
        open_checkpoint(checkpoint).config,
        num_decoder_layers=0,
        dropout_rate=dropout_rate,
        attention_dropout_rate=(
            dropout_rate if attention_dropout_rate is None else attention_dropout_rate
        ),
        attention=attention,
        remat_policy=remat_policy,
        remat_saved_names=remat_saved_names,
    )
