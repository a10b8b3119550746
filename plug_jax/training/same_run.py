"""What a run has to share with the checkpoint that it goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plug_jax.config import PlugConfig
from plug_jax.errors import PlugError
from plug_jax.techniques.lora import Lora
from plug_jax.training.state import HEADS

# They change how the model is computed or trained, not what it is.
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
    """PlugError where LoRA came, went, or is another one."""
    if there != here:
        raise PlugError(
            f"{where} was trained with {there or 'no Lora'}, and this run has {here or 'none'}. "
            "Continue with that, or name it as INITIAL_CHECKPOINT of a new MODEL_DIR, which merges "
            "it."
        )


def check_same_heads(where: str, stored: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """PlugError where objectives that bring a head of their own came or went."""
    there, here = (sorted(tree.get(HEADS, ())) for tree in (stored, params))
    if there != here:
        raise PlugError(
            f"{where} has heads of the objectives {', '.join(there) or 'none'}, and OBJECTIVES of "
            f"this run bring those of {', '.join(here) or 'none'}. Continue with those that it was "
            "trained with, or name it as INITIAL_CHECKPOINT of a new MODEL_DIR."
        )


def what_is_told(task: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What the numbers of a head stand for: the part of a task's description that decides it."""
    task = task or {}
    names = ("kind", "labels", "types", "choices", "candidates", "mean", "deviation", "pooler")
    return {name: task[name] for name in names if name in task}


def check_same_task(
    where: str, stored: Mapping[str, Any] | None, task: Mapping[str, Any] | None
) -> None:
    """PlugError where the numbers of a head stood for something else."""
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
