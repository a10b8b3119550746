"""Checks that a checkpoint belongs to the run that resumes from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plug_jax.checkpoints.parameters import HEADS
from plug_jax.config import PlugConfig
from plug_jax.errors import PlugError
from plug_jax.techniques.lora import Lora

# Fields that change how the model is computed or trained, not the model itself.
_FREE_FIELDS = frozenset(
    {
        "dropout_rate",
        "attention_dropout_rate",
        "init_std",
        "dtype",
        "scan_layers",
        "remat_policy",
        "remat_saved_names",
        "attention",
        "attention_block_size",
    }
)


def check_same_model(
    where: str, metadata: Mapping[str, Any], model: PlugConfig, fingerprint: str
) -> None:
    """PlugError for a checkpoint of another model or vocabulary."""
    there, here = metadata["plug_config"], model.to_dict()
    differences = [
        f"{name} is {there.get(name)!r} there and {here[name]!r} here"
        for name in here
        if name not in _FREE_FIELDS and there.get(name) != here[name]
    ]
    if metadata["vocabulary_fingerprint"] != fingerprint:
        differences.append("the vocabulary is another one")
    if differences:
        raise PlugError(
            f"{where} is a checkpoint of another model: {'; '.join(differences)}. Continue with "
            "the configuration in MODEL_DIR/config.gin, or choose a new MODEL_DIR."
        )


def check_same_lora(where: str, there: Lora | None, here: Lora | None) -> None:
    """PlugError if LoRA was added, removed, or changed."""
    if there != here:
        raise PlugError(
            f"{where} was trained with {there or 'no Lora'}, and this run has {here or 'none'}. "
            "Continue with that, or name it as INITIAL_CHECKPOINT of a new MODEL_DIR, which merges "
            "it."
        )


def check_same_heads(where: str, stored: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """PlugError if objectives with their own heads were added or removed."""
    there, here = (sorted(tree.get(HEADS, ())) for tree in (stored, params))
    if there != here:
        raise PlugError(
            f"{where} has heads of the objectives {', '.join(there) or 'none'}, and OBJECTIVES of "
            f"this run bring those of {', '.join(here) or 'none'}. Continue with those that it was "
            "trained with, or name it as INITIAL_CHECKPOINT of a new MODEL_DIR."
        )


def what_is_told(task: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The part of a task's description that determines the meaning of a head's outputs."""
    task = task or {}
    names = ("kind", "labels", "types", "choices", "candidates", "mean", "deviation", "pooler")
    return {name: task[name] for name in names if name in task}


def check_same_task(
    where: str, stored: Mapping[str, Any] | None, task: Mapping[str, Any] | None
) -> None:
    """PlugError if a head's outputs had another meaning."""
    there, here = what_is_told(stored), what_is_told(task)
    differences = [
        f"{name} is {there.get(name)} there and {here.get(name)} here"
        for name in dict.fromkeys([*there, *here])
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise PlugError(
            f"{where} was fine-tuned for another task: {'; '.join(differences)}. Continue with the "
            "task that it was trained for, or choose a new MODEL_DIR."
        )
