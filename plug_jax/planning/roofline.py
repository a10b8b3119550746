"""How fast a step can be at best: compute, memory and interconnect, each at its published peak.

Every figure is a lower bound of a time. Latencies, and what keeps a chip from its peaks, are left
out, so a real step takes longer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from plug_jax.planning.collectives import Collective
from plug_jax.planning.topologies import Place, Topology

# Bytes that each device sends (and receives) in a ring of n, as a part of the whole array.
_PASSES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step."""

    compute: float  # executed FLOPs at the peak of all chips
    hbm: float
    interconnect: float  # within slices (ICI) and between them (DCN), one collective after another
    synchronous: float  # the part of it during which the compiled program only waits

    @property
    def overlapped(self) -> float:
        """Everything at the same time: no step is faster."""
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def scheduled(self) -> float:
        """As compiled: synchronous collectives add up, everything else is at the same time."""
        meanwhile = self.interconnect - self.synchronous
        return max(self.compute, self.hbm, meanwhile) + self.synchronous

    @property
    def bound_by(self) -> str:
        """What takes longest: "compute", "hbm" or "interconnect"."""
        times = {name: getattr(self, name) for name in ("compute", "hbm", "interconnect")}
        return max(times, key=times.__getitem__)

    @property
    def hides_interconnect(self) -> bool:
        """Whether all of it fits behind the compute."""
        return self.interconnect <= self.compute

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with those that follow from others."""
        return dataclasses.asdict(self) | {
            "overlapped": self.overlapped,
            "scheduled": self.scheduled,
            "bound_by": self.bound_by,
            "interconnect_over_compute": self.interconnect / self.compute,
            "hides_interconnect": self.hides_interconnect,
        }


def collective_seconds(
    collective: Collective, topology: Topology, places: Sequence[Place]
) -> float:
    """Seconds a step spends in one collective, all its runs together.

    `places` are those of the mesh's devices. With n devices in a group, V bytes in the whole array
    and W bytes/s out of each device: all-gather and reduce-scatter take V (n-1)/n / W, all-reduce
    twice that. W is the sum over the torus dimensions that the group spans, of two links in a
    ring, one in a line; groups that lie in between share the links. An all-to-all of V bytes a
    device takes V k/8 over one link of a ring of k chips, V k/4 of a line, the longest dimension
    counting; a collective-permute V over one link. Over slices the groups' parts in each slice go
    first, and 1 / (devices of the group in a slice) of the array crosses the network between them.
    """
    group = [places[device] for device in collective.groups[0]]
    if collective.kind == "collective-permute":
        return collective.times * _permute(collective, topology, places)
    slices = len({place.slice for place in group})
    inner = [place for place in group if place.slice == group[0].slice]
    size = collective.bytes
    time = 0.0
    if len(inner) > 1:
        if collective.kind == "all-to-all":
            time += size * _all_to_all_hops(topology, inner) / topology.chip.link_bandwidth
        elif bandwidth := _bandwidth(topology, inner):
            part = (len(inner) - 1) / len(inner)
            time += _PASSES[collective.kind] * part * size / bandwidth
    if slices > 1:
        assert topology.chip.dcn_bandwidth is not None  # checked when the topology is read
        bandwidth = topology.chip.dcn_bandwidth / topology.chip.devices
        passes = _PASSES.get(collective.kind, 1)
        crossing = size if collective.kind == "all-to-all" else size / len(inner)
        time += passes * (slices - 1) / slices * crossing / bandwidth
    return collective.times * time


@dataclasses.dataclass(frozen=True)
class _Span:
    """How a group of chips lies along one torus dimension."""

    chips: int
    stride: int  # chips from one to the next: as many groups share the links
    is_ring: bool


def _spans(topology: Topology, group: Sequence[Place]) -> list[_Span]:
    spans = []
    for axis, (length, wrapped) in enumerate(zip(topology.shape, topology.wrapped, strict=True)):
        at = sorted({place.coords[axis] for place in group})
        if len(at) > 1:
            stride = at[1] - at[0]
            spans.append(_Span(len(at), stride, wrapped and len(at) * stride == length))
    return spans


def _share(topology: Topology, group: Sequence[Place]) -> float:
    """The part of a chip's links that is a device's: half, if the other one is of another group."""
    per_chip = len(group) / len({place.coords for place in group})
    return per_chip / topology.chip.devices


def _bandwidth(topology: Topology, group: Sequence[Place]) -> float:
    """bytes/s out of each chip within the group; 0 on a single chip, where nothing leaves it."""
    links = sum((2 if span.is_ring else 1) / span.stride for span in _spans(topology, group))
    return links * topology.chip.link_bandwidth * _share(topology, group)


def _all_to_all_hops(topology: Topology, group: Sequence[Place]) -> float:
    """What part of a device's bytes the busiest link carries."""
    hops = (
        span.chips * span.stride / (8 if span.is_ring else 4) for span in _spans(topology, group)
    )
    return max(hops, default=0.0) / _share(topology, group)


def _permute(collective: Collective, topology: Topology, places: Sequence[Place]) -> float:
    pairs = [(places[a], places[b]) for a, b in collective.groups]
    if any(a.slice != b.slice for a, b in pairs):
        assert topology.chip.dcn_bandwidth is not None
        return collective.bytes / (topology.chip.dcn_bandwidth / topology.chip.devices)
    if all(a.coords == b.coords for a, b in pairs):
        return 0.0
    return collective.bytes * topology.chip.devices / topology.chip.link_bandwidth
