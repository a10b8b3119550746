"""Our logical axes for t5x: its rules, and its collection of parameter axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.linen import partitioning as flax_partitioning
from jax.sharding import PartitionSpec

from plug_jax.partitioning import DEFAULT_RULES, LogicalRules

# t5x looks up a batch's mesh axes by this name.
BATCH = "batch"
_T5X_MESH_AXES = {"tensor": "model", "fsdp": "data", "data": "data"}


def logical_axis_rules(fsdp: bool = False) -> list[tuple[str, str | None]]:
    """For `PjitPartitioner.logical_axis_rules`: our rules on t5x's mesh of data and model.

    Our tensor axis is its `model`. Parameters are replicated along embed or, with `fsdp`, sharded
    there over `data`, like t5x's `parameter_partitioning_dims = 2`.

    t5x's standard rules only cover some of our parameter axes: they lack `position` (theirs is
    abspos_buckets) and those of activations.
    """
    rules: list[tuple[str, str | None]] = [(BATCH, "data")]
    for name, axes in DEFAULT_RULES:
        if axes == "fsdp" and not fsdp:
            axes = None
        # Several of our axes map to one of t5x's: rows are sharded over data and fsdp.
        first = axes[0] if isinstance(axes, tuple) else axes
        rules.append((name, None if first is None else _T5X_MESH_AXES[first]))
    return rules


def rules_with_batch(rules: LogicalRules) -> LogicalRules:
    """Rules on our own mesh, plus those that t5x reads."""
    return ((BATCH, dict(rules)["activation_batch"]), *rules)


def params_axes(boxed: Any) -> dict[str, Any]:
    """t5x's `params_axes` collection, from parameters boxed with their logical axes.

    {"mlp": {"kernel": box}} becomes {"mlp": {"kernel_axes": AxisMetadata}}.
    """
    axes: dict[str, Any] = {}
    for name, node in boxed.items():
        if isinstance(node, Mapping):
            axes[name] = params_axes(node)
        else:
            assert isinstance(node, nn.LogicallyPartitioned), f"{name} has no logical axes"
            names = PartitionSpec(*node.names)
            axes[f"{name}_axes"] = flax_partitioning.AxisMetadata(names=names)
    return axes
