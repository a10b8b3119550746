"""What a compiled program costs each device, and how fast that lets it be."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from jax.sharding import Mesh

from plug_jax.planning.collectives import Collective, axes_of, find_collectives
from plug_jax.planning.compile import Compiled
from plug_jax.planning.flops import executed_flops
from plug_jax.planning.hlo import Module, parse_module
from plug_jax.planning.roofline import Roofline, collective_seconds
from plug_jax.planning.topologies import Topology, places_of
from plug_jax.planning.traffic import hbm_bytes


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of a step of one kind and type, over the same mesh axes."""

    kind: str  # that of a Collective; of a transfer: "all-reduce between slices"
    axes: str  # "fsdp", "data+fsdp", "part of fsdp", ...
    dtype: str
    times: int  # a step
    bytes: int  # of the whole arrays, over a step, on each device
    largest: str  # the array of most bytes: "bf16[8192,32768]"
    is_async: bool  # computes meanwhile
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one run of a program. Bytes are on one device."""

    executed_flops: int
    hbm_traffic: int
    collectives: tuple[Traffic, ...]
    uncounted_loops: int  # loops of unknown length, which count once
    roofline: Roofline


def cost_of(compiled: Compiled, topology: Topology, mesh: Mesh) -> Cost:
    """Account for a program that was compiled for the topology's devices in this mesh."""
    module = parse_module(compiled.text)
    traffic = _traffic(find_collectives(module, mesh.size), topology, mesh)
    executed, moved = executed_flops(compiled.jaxpr), hbm_bytes(module)
    return Cost(
        executed_flops=executed,
        hbm_traffic=moved,
        collectives=traffic,
        uncounted_loops=_uncounted_loops(module),
        roofline=Roofline(
            compute=executed / topology.peak_flops,
            hbm=moved / (topology.chip.hbm_bandwidth / topology.chip.devices),
            interconnect=sum(t.seconds for t in traffic),
            synchronous=sum(t.seconds for t in traffic if not t.is_async),
        ),
    )


def _traffic(collectives: list[Collective], topology: Topology, mesh: Mesh) -> tuple[Traffic, ...]:
    places = places_of(list(mesh.devices.flat), topology)
    by_key: dict[tuple[str, str, str, bool], list[Collective]] = defaultdict(list)
    for one in collectives:
        largest = max(one.arrays, key=lambda array: array.bytes)
        axes = axes_of(one.groups, dict(mesh.shape))
        kind = f"{one.kind} between slices" if one.is_transfer else one.kind
        by_key[kind, axes, largest.dtype, one.is_async].append(one)
    rows = []
    for (kind, axes, dtype, is_async), group in by_key.items():
        largest = max((a for one in group for a in one.arrays), key=lambda array: array.bytes)
        rows.append(
            Traffic(
                kind=kind,
                axes=axes,
                dtype=dtype,
                times=sum(one.times for one in group),
                bytes=sum(one.times * one.bytes for one in group),
                largest=str(largest),
                is_async=is_async,
                seconds=sum(collective_seconds(one, topology, places) for one in group),
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def _uncounted_loops(module: Module) -> int:
    return sum(
        module.trip_count(instruction) is None
        for run in module.runs()
        for instruction in run.computation.instructions.values()
        if instruction.opcode == "while"
    )
