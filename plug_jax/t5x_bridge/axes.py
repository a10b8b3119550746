"""Our logical axes in t5x's terms: its rules, and its collection of the parameters' axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.linen import partitioning as flax_partitioning
from jax.sharding import PartitionSpec

from plug_jax.partitioning import DEFAULT_RULES, LogicalRules

# t5x finds the mesh axes of a batch by this name.
BATCH = "batch"
_T5X_MESH_AXES = {"tensor": "model", "fsdp": "data", "data": "data"}


def logical_axis_rules(fsdp: bool = False) -> list[tuple[str, str | None]]:
    """For `PjitPartitioner.logical_axis_rules`: our rules on t5x's mesh of data and model.

    Our tensor axis is its `model`. Parameters are whole along embed or, with `fsdp`, sharded there
    over `data`, as t5x's `parameter_partitioning_dims = 2` has it.

    t5x's standard rules do for none of our axes but the parameters': they know neither `position`
    (theirs is abspos_buckets) nor those of activations.
    """
    rules: list[tuple[str, str | None]] = [(BATCH, "data")]
    for name, axes in DEFAULT_RULES:
        if axes == "fsdp" and not fsdp:
            axes = None
        # Several of our axes are one of t5x's: rows lie over data and fsdp.
        first = axes[0] if isinstance(axes, tuple) else axes
        rules.append((name, None if first is None else _T5X_MESH_AXES[first]))
    return rules


def rules_with_batch(rules: LogicalRules) -> LogicalRules:
    """Rules on our own mesh, with what t5x reads besides."""
    return ((BATCH, dict(rules)["activation_batch"]), *rules)


def params_axes(boxed: Any) -> dict[str, Any]:
    """The `params_axes` collection that t5x reads, of parameters boxed with their logical axes.

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
