"""The device mesh, logical axis rules, and shardings.

Parameters carry logical axes (see `plug_jax.models.layers`); a `Partitioner` turns them into
NamedShardings on a (data, fsdp, tensor) mesh. GSPMD does the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields

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
    ("activation_norm_length", None),
    ("activation_embed", None),
    ("activation_heads", "tensor"),
    ("activation_mlp", "tensor"),
    ("activation_vocab", "tensor"),
)


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """A mesh of data x fsdp x tensor devices; one size may be -1: all remaining devices.

    `data` replicates the parameters, `fsdp` shards them over their embed axis, `tensor` over
    heads, mlp and vocab; batches are sharded over data and fsdp together.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    # TPU slices joined by the data-centre network. They divide `data`, so that only gradients cross
    # that network.
    slices: int = 1
    rules: LogicalRules = ()  # overrides of DEFAULT_RULES
    devices: tuple[Any, ...] | None = None  # default: all devices

    def __post_init__(self) -> None:
        check_fields(self)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh over all devices. PlugError unless the sizes multiply to their number."""
        devices = jax.devices() if self.devices is None else self.devices
        sizes = self._sizes(len(devices))
        self._check_slices(devices, sizes)
        if self.slices == 1:
            grid = mesh_utils.create_device_mesh(
                sizes, devices, allow_split_physical_axes=devices[0].platform == "tpu"
            )
        elif devices[0].platform == "tpu":
            grid = mesh_utils.create_hybrid_device_mesh(
                (sizes[0] // self.slices, *sizes[1:]),
                (self.slices, 1, 1),
                devices,
                allow_split_physical_axes=True,
            )
        else:  # neighbours in the device list are close to each other
            grid = np.asarray(devices).reshape(sizes)
        return Mesh(grid, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES))

    def _sizes(self, count: int) -> tuple[int, ...]:
        """The sizes, with -1 resolved."""
        sizes = [self.data, self.fsdp, self.tensor]
        wanted = _describe(sizes)
        if any(s == 0 or s < -1 for s in sizes) or sizes.count(-1) > 1:
            raise PlugError(f"mesh {wanted}: sizes are positive, and at most one is -1 (the rest)")
        known = math.prod(s for s in sizes if s != -1)
        if -1 in sizes and count % known == 0:
            sizes[sizes.index(-1)] = count // known
        elif -1 in sizes or known != count:
            which, hint = "here", ""
            if self.devices is not None:
                which = "that it is for"
            elif jax.default_backend() == "cpu":
                hint = (
                    " On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N makes N devices."
                )
            raise PlugError(
                f"mesh {wanted} does not match the {count} devices {which}; set the sizes so that "
                f"their product is {count} (or one of them to -1).{hint}"
            )
        return tuple(sizes)

    def _check_slices(self, devices: Sequence[Any], sizes: Sequence[int]) -> None:
        if self.slices < 1 or sizes[0] % self.slices:
            raise PlugError(
                f"mesh {_describe(sizes)} over slices={self.slices}: each slice holds whole "
                "copies of the parameters, so data must be a multiple of the slices; set data="
                f"{max(1, self.slices)} (or a multiple) and divide the rest over fsdp and tensor"
            )
        if devices[0].platform == "tpu":
            found = len({getattr(d, "slice_index", 0) for d in devices})
            if found != self.slices:
                raise PlugError(
                    f"these TPUs are {found} slices, the mesh is for {self.slices}; set "
                    f"partitioning.Partitioner.slices = {found}, and data to a multiple of it"
                )

    @functools.cached_property
    def logical_rules(self) -> LogicalRules:
        """DEFAULT_RULES overridden by `rules`. PlugError for unknown names."""
        merged = dict(DEFAULT_RULES)
        for name, axes in self.rules:
            if name not in merged:
                close = difflib.get_close_matches(name, merged, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise PlugError(
                    f"Partitioner.rules: there is no logical axis {name!r}{hint} "
                    f"(there are {', '.join(merged)})"
                )
            for axis in _names(axes):
                if axis not in MESH_AXES:
                    raise PlugError(
                        f"Partitioner.rules: {name!r} goes to {axis!r}, which is not a mesh axis "
                        f"(they are {', '.join(MESH_AXES)})"
                    )
            merged[name] = axes
        return tuple(merged.items())

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Within the context, the model's logical constraints refer to this mesh."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.logical_rules):
            yield

    @property
    def replicated(self) -> NamedSharding:
        """The same value on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_sharding(self) -> NamedSharding:
        """Rows over the data and fsdp axes, other axes replicated."""
        return self.sharding("activation_batch")

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Sharding of an array with these logical axes; omitted axes are replicated."""
        return NamedSharding(
            self.mesh, nn.logical_to_mesh(PartitionSpec(*axes), self.logical_rules)
        )

    def check_batch(self, batch_size: int, micro_batches: int = 1) -> None:
        """PlugError unless every micro-batch divides evenly over the mesh."""
        names = self.batch_sharding.spec[0]
        multiple = _shards(self.mesh, names) * micro_batches
        if batch_size < 1 or batch_size % multiple:
            above = -(-max(batch_size, 1) // multiple) * multiple
            nearest = [str(n) for n in (above - multiple, above) if n]
            raise PlugError(
                f"BATCH_SIZE {batch_size} does not divide into {micro_batches} micro-batches over "
                f"{' x '.join(_names(names))} = {multiple // micro_batches} devices; the nearest "
                f"that {'do' if len(nearest) > 1 else 'does'}: {', '.join(nearest)} (multiples of "
                f"{multiple}). Or use fewer devices, or more of them for `tensor`, which splits "
                "no rows"
            )

    def param_shardings(self, boxed: Any) -> Any:
        """NamedShardings of a parameter tree that still carries its logical axes (abstract).

        Raises:
            PlugError: names each dimension that its mesh axes do not divide, and what would.
        """
        logical = nn.get_partition_spec(boxed)
        specs = nn.logical_to_mesh(logical, self.logical_rules)
        sharded: dict[str, set[int]] = {}  # mesh axis -> sizes of the dimensions along it
        problems: list[str] = []

        def check(
            path: Any, leaf: jax.ShapeDtypeStruct, spec: PartitionSpec, axes: PartitionSpec
        ) -> NamedSharding:
            for axis, (size, names) in enumerate(zip(leaf.shape, spec, strict=True)):
                shards = _shards(self.mesh, names)
                for name in _names(names):
                    sharded.setdefault(name, set()).add(size)
                if size % shards:
                    where = jax.tree_util.keystr(path, simple=True, separator="/")
                    problems.append(
                        f"{where} {leaf.shape}: {axes[axis]!r} of {size} over "
                        f"{' x '.join(_names(names))} = {shards}"
                    )
            return NamedSharding(self.mesh, spec)

        shardings = jax.tree_util.tree_map_with_path(check, nn.unbox(boxed), specs, logical)
        if problems:
            fitting = [
                f"{axis} may be {', '.join(map(str, _common_divisors(sizes, self.mesh.size)))}"
                for axis, sizes in sorted(sharded.items())
            ]
            raise PlugError(
                f"the mesh {_describe(self.mesh.devices.shape)} does not divide the model:\n  "
                + "\n  ".join(problems)
                + f"\nWith this model {'; '.join(fitting)} (vocab_multiple pads the vocabulary)."
            )
        return shardings

    def gradient_shardings(self, params: Any, param_shardings: Any) -> Any:
        """NamedShardings of the parameters' gradients and optimizer slots.

        Like the parameter's, and also over the mesh axes on which that is replicated: each along
        the dimension over which rows are sharded too, else the one with most shards already, else
        the longest, among those that it divides. So no two devices store the same part (ZeRO,
        stage 2: Rajbhandari et al., 2020).
        """
        return jax.tree.map(
            lambda leaf, sharding: NamedSharding(
                self.mesh, self._widened(leaf.shape, sharding.spec)
            ),
            params,
            param_shardings,
        )

    def optimizer_shardings(self, opt_state: Any, params: Any, gradient_shardings: Any) -> Any:
        """NamedShardings of an abstract optimizer state: each slot like its parameter's gradient.

        A slot is matched to the parameter whose path is the end of its own. A factored slot
        (Adafactor) lacks one of the parameter's axes and gets the sharding of the others, widened
        in the same way; scalars, and one-element placeholders of unused slots, are replicated.
        """
        by_path = {
            path: (leaf.shape, sharding.spec)
            for (path, leaf), (_, sharding) in zip(
                jax.tree_util.tree_leaves_with_path(params),
                jax.tree_util.tree_leaves_with_path(gradient_shardings),
                strict=True,
            )
        }

        def slot(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
            for start in range(len(path)):
                if path[start:] in by_path:
                    shape, spec = by_path[path[start:]]
                    own = _slot_spec(self.mesh, leaf.shape, shape, spec)
                    return NamedSharding(self.mesh, self._widened(leaf.shape, own))
            return self.replicated

        return jax.tree_util.tree_map_with_path(slot, opt_state)

    def _widened(self, shape: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
        """`spec` with the unused mesh axes added, each along the most suitable dimension.

        Where both `fsdp` and `tensor` shard a matrix, `data` joins `fsdp`: the gradient's sum over
        rows is scattered there. Along `tensor`, GSPMD would gather the activations over it first.
        """
        mesh, of_rows = self.mesh, set(_names(self.batch_sharding.spec[0]))
        dims = [_names(names) for names in (*spec, *[None] * len(shape))[: len(shape)]]
        for axis in [name for name in mesh.shape if not any(name in names for names in dims)]:
            shards = [_shards(mesh, names) for names in dims]
            extents = [n // count for n, count in zip(shape, shards, strict=True)]
            fitting = [i for i, extent in enumerate(extents) if extent % mesh.shape[axis] == 0]
            if fitting and mesh.shape[axis] > 1:
                best = max(
                    fitting, key=lambda i: (bool(of_rows & {*dims[i]}), shards[i], extents[i])
                )
                dims[best] = (*dims[best], axis)
        return PartitionSpec(*(names or None for names in dims))


def _names(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else names


def _shards(mesh: Mesh, names: str | tuple[str, ...] | None) -> int:
    return math.prod(mesh.shape[n] for n in _names(names))


def _describe(sizes: Sequence[int]) -> str:
    return " x ".join(f"{a}={s}" for a, s in zip(MESH_AXES, sizes, strict=True))


def _common_divisors(sizes: set[int], largest: int) -> list[int]:
    common = math.gcd(*sizes)
    return [n for n in range(1, largest + 1) if common % n == 0]


def _slot_spec(
    mesh: Mesh, slot: tuple[int, ...], param: tuple[int, ...], spec: PartitionSpec
) -> PartitionSpec:
    if slot == param:
        return spec
    # Without any one of the parameter's axes; if two have equal size, the most sharded choice.
    candidates = [
        PartitionSpec(*spec[:axis], *spec[axis + 1 :])
        for axis in range(len(param))
        if slot == param[:axis] + param[axis + 1 :]
    ]
    return max(
        candidates,
        key=lambda s: math.prod(_shards(mesh, names) for names in s),
        default=PartitionSpec(),
    )


def put_batch(batch: Mapping[str, Any], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This host's rows of every feature, as global arrays over all hosts."""
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
