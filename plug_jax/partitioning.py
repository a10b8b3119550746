"""The device mesh, the rules from logical to mesh axes, and the shardings they give.

Parameters carry logical axes (see `plug_jax.models.layers`); a `Partitioner` turns them into
NamedShardings on a (data, fsdp, tensor) mesh. GSPMD does the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plug_jax.errors import PlugError

MESH_AXES = ("data", "fsdp", "tensor")
LogicalRules = Sequence[tuple[str, str | tuple[str, ...] | None]]

DEFAULT_RULES: LogicalRules = (
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("kv", None),
    ("position", None),
    ("layers", None),
    ("activation_batch", ("data", "fsdp")),
    ("activation_length", None),
    ("activation_embed", None),
    ("activation_heads", "tensor"),
    ("activation_mlp", "tensor"),
    ("activation_vocab", "tensor"),
)


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """A mesh of data x fsdp x tensor devices; one of the three may be -1: all that are left.

    `data` replicates the parameters, `fsdp` shards them over their embed axis, `tensor` over
    heads, mlp and vocab; batches are sharded over data and fsdp together.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: LogicalRules = DEFAULT_RULES

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh over all devices. PlugError when the sizes do not multiply to their number."""
        sizes = [self.data, self.fsdp, self.tensor]
        wanted = " x ".join(f"{a}={s}" for a, s in zip(MESH_AXES, sizes, strict=True))
        count = jax.device_count()
        if any(s == 0 or s < -1 for s in sizes) or sizes.count(-1) > 1:
            raise PlugError(f"mesh {wanted}: sizes are positive, and at most one is -1 (the rest)")
        known = math.prod(s for s in sizes if s != -1)
        if -1 in sizes and count % known == 0:
            sizes[sizes.index(-1)] = count // known
        elif -1 in sizes or known != count:
            raise PlugError(
                f"mesh {wanted} does not match the {count} devices here; set the sizes so that "
                f"their product is {count} (or one of them to -1). On a CPU, XLA_FLAGS="
                "--xla_force_host_platform_device_count=N makes N devices."
            )
        auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
        return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=auto)

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Within it, the logical constraints inside the model refer to this mesh."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
            yield

    @property
    def replicated(self) -> NamedSharding:
        """The same value on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_sharding(self) -> NamedSharding:
        """Rows over the data and fsdp axes, everything else whole."""
        return NamedSharding(
            self.mesh, nn.logical_to_mesh(PartitionSpec("activation_batch"), self.rules)
        )

    def check_batch(self, batch_size: int, micro_batches: int = 1) -> None:
        """PlugError unless every micro-batch divides evenly over the mesh."""
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if batch_size % (shards * micro_batches):
            raise PlugError(
                f"BATCH_SIZE {batch_size} does not divide into {micro_batches} micro-batches over "
                f"data x fsdp = {shards} devices; use a multiple of {shards * micro_batches}"
            )

    def param_shardings(self, boxed: Any) -> Any:
        """NamedShardings of a parameter tree that still carries its logical axes (abstract).

        Raises:
            PlugError: naming each dimension that its mesh axes do not divide.
        """
        specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), self.rules)
        problems: list[str] = []

        def check(path: Any, leaf: jax.ShapeDtypeStruct, spec: PartitionSpec) -> NamedSharding:
            for axis, (size, names) in enumerate(zip(leaf.shape, spec, strict=True)):
                shards = _shards(self.mesh, names)
                if size % shards:
                    name = jax.tree_util.keystr(path, simple=True, separator="/")
                    problems.append(
                        f"{name} {leaf.shape}: dimension {axis} of {size} over {names}={shards}"
                    )
            return NamedSharding(self.mesh, spec)

        shardings = jax.tree_util.tree_map_with_path(check, nn.unbox(boxed), specs)
        if problems:
            raise PlugError(
                "the mesh does not divide the model; change the mesh, or the size (vocab_multiple "
                "for the vocabulary):\n  " + "\n  ".join(problems)
            )
        return shardings

    def optimizer_shardings(self, opt_state: Any, params: Any, param_shardings: Any) -> Any:
        """NamedShardings of an abstract optimizer state: each slot like the parameter it is for.

        A slot is matched by the parameter's path at the end of its own. A factored slot (Adafactor)
        lacks one of the parameter's axes and takes the sharding of the others; scalars, and the
        one-element placeholders of slots not in use, are replicated.
        """
        by_path = {
            path: (leaf.shape, sharding.spec)
            for (path, leaf), (_, sharding) in zip(
                jax.tree_util.tree_leaves_with_path(params),
                jax.tree_util.tree_leaves_with_path(param_shardings),
                strict=True,
            )
        }

        def slot(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
            for start in range(len(path)):
                if path[start:] in by_path:
                    shape, spec = by_path[path[start:]]
                    return NamedSharding(self.mesh, _slot_spec(leaf.shape, shape, spec))
            return self.replicated

        return jax.tree_util.tree_map_with_path(slot, opt_state)


def _shards(mesh: Mesh, names: str | tuple[str, ...] | None) -> int:
    if names is None:
        return 1
    return math.prod(mesh.shape[n] for n in ((names,) if isinstance(names, str) else names))


def _slot_spec(slot: tuple[int, ...], param: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
    if slot == param:
        return spec
    for axis in range(len(param)):
        if slot == param[:axis] + param[axis + 1 :]:
            return PartitionSpec(*spec[:axis], *spec[axis + 1 :])
    return PartitionSpec()


def put_batch(batch: Mapping[str, Any], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This host's rows of every feature, as global arrays over all hosts."""
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
