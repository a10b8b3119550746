"""Needs t5x. Our mesh instead of t5x's."""

from __future__ import annotations

import jax
from t5x import partitioning as t5x_partitioning

from plug_jax.partitioning import Partitioner
from plug_jax.t5x_bridge.axes import rules_with_batch


class MeshPartitioner(t5x_partitioning.PjitPartitioner):
    """For `train.partitioner`: our mesh of data x fsdp x tensor devices, and slices, and its rules.

    t5x's meshes only have `data` and `model`; on CPU devices, `model` takes all. Gradients and
    optimizer slots are sharded like parameters; our own trainer shards them over `data` as well.
    """

    def __init__(self, partitioner: Partitioner) -> None:
        super().__init__(
            num_partitions=1, logical_axis_rules=rules_with_batch(partitioner.logical_rules)
        )
        self._plug_mesh = partitioner.mesh

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh."""
        return self._plug_mesh
