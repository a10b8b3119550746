"""TPU slices to compile for, and what their chips can do at best, as published."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from plug_jax.errors import PlugError

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Peaks of one chip. Figures are Google's: https://cloud.google.com/tpu/docs/<name>.

    Google gives the interconnect as the sum over a chip's links, both ways together; one link,
    one way, is that over twice the links.
    """

    name: str
    libtpu_name: str
    peak_flops: float  # bfloat16 FLOP/s
    hbm_bytes: int
    usable_hbm_bytes: int  # of a device, as libtpu 0.0.42 says when a program does not fit
    hbm_bandwidth: float  # bytes/s
    ici_bandwidth: float  # bytes/s, all links, both ways
    ici_links: int
    wrapped_multiple: int  # a torus dimension is a ring when it is a multiple of this many chips
    dcn_bandwidth: float | None  # bytes/s to other slices; None: not published
    devices: int = 1  # JAX devices per chip
    chip_config_name: str | None = None  # "megacore": both cores of a chip are one device

    @property
    def link_bandwidth(self) -> float:
        """bytes/s of one link, one way."""
        return self.ici_bandwidth / self.ici_links / 2


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            libtpu_name="v4",
            peak_flops=275e12,
            hbm_bytes=32 * GIB,
            usable_hbm_bytes=int(30.75 * GIB),
            hbm_bandwidth=1200e9,
            ici_bandwidth=600e9,  # published as 2400 Gbit/s one way
            ici_links=6,
            wrapped_multiple=4,
            dcn_bandwidth=None,
            chip_config_name="megacore",
        ),
        Chip(
            name="v5e",
            libtpu_name="v5e",
            peak_flops=197e12,
            hbm_bytes=16 * GIB,
            usable_hbm_bytes=int(15.75 * GIB),
            hbm_bandwidth=819e9,
            ici_bandwidth=400e9,
            ici_links=4,
            wrapped_multiple=16,
            dcn_bandwidth=25e9 / 8,  # 6.4 Tbit/s a pod of 256 chips
        ),
        Chip(
            name="v5p",
            libtpu_name="v5p",
            peak_flops=459e12,
            hbm_bytes=95 * GIB,
            usable_hbm_bytes=int(95.74 * GIB),
            hbm_bandwidth=2765e9,
            ici_bandwidth=1200e9,
            ici_links=6,
            wrapped_multiple=4,
            dcn_bandwidth=50e9 / 8,
        ),
        Chip(
            name="v6e",
            libtpu_name="v6e",
            peak_flops=918e12,
            hbm_bytes=32 * GIB,
            usable_hbm_bytes=int(31.25 * GIB),
            hbm_bandwidth=1638e9,
            ici_bandwidth=800e9,
            ici_links=4,
            wrapped_multiple=16,
            dcn_bandwidth=100e9 / 8,
        ),
        Chip(
            name="v7x",
            libtpu_name="tpu7x",
            peak_flops=2307e12,
            hbm_bytes=192 * GIB,
            usable_hbm_bytes=int(94.75 * GIB),
            hbm_bandwidth=7380e9,
            ici_bandwidth=1200e9,
            ici_links=6,
            wrapped_multiple=4,
            dcn_bandwidth=100e9 / 8,
            devices=2,
        ),
    )
}

# bfloat16 FLOP/s of one device by a part of the name that jax has for its kind, dense, from
# https://www.nvidia.com/en-us/data-center/<h100, h200, a100>/ for GPUs.
_PEAKS = {
    "TPU v4": CHIPS["v4"].peak_flops,
    "TPU v5 lite": CHIPS["v5e"].peak_flops,
    "TPU v5": CHIPS["v5p"].peak_flops,
    "TPU v6 lite": CHIPS["v6e"].peak_flops,
    "TPU7x": CHIPS["v7x"].peak_flops / CHIPS["v7x"].devices,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a device of this kind at best, as published; None: not known here."""
    return next((peak for name, peak in _PEAKS.items() if name in device_kind), None)


_SPELLING = re.compile(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+){1,2})")


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` equal slices of `shape` chips."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        name = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return name if self.slices == 1 else f"{self.slices}*{name}"

    @property
    def num_chips(self) -> int:
        """Over all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def peak_flops(self) -> float:
        """bfloat16 FLOP/s of all chips."""
        return self.num_chips * self.chip.peak_flops

    @property
    def num_devices(self) -> int:
        """Over all slices: two a chip with v7x, else one."""
        return self.num_chips * self.chip.devices

    @property
    def wrapped(self) -> tuple[bool, ...]:
        """Whether each dimension of a slice is a ring."""
        return tuple(size % self.chip.wrapped_multiple == 0 for size in self.shape)


def parse_topology(text: str) -> Topology:
    """Read `v5p:4x4x4`, or `2*v5p:4x4x8` for two slices. PlugError for anything else."""
    match = _SPELLING.fullmatch(text.strip())
    if match is None:
        raise PlugError(
            f"--topology {text!r} is not CHIP:SHAPE, such as v5p:4x4x4 (64 chips), v5e:16x16, or "
            "2*v5p:4x4x8 (two slices of 128 chips)"
        )
    count, name, shape_text = match.groups()
    name = "v7x" if name == "tpu7x" else name
    if name not in CHIPS:
        close = difflib.get_close_matches(name, CHIPS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise PlugError(
            f"--topology {text!r}: no chip {name!r}{hint} (there are {', '.join(CHIPS)})"
        )
    chip = CHIPS[name]
    shape = tuple(int(size) for size in shape_text.split("x"))
    dimensions = chip.ici_links // 2
    if len(shape) != dimensions or 0 in shape or count == "0":
        example = "4x4x4" if dimensions == 3 else "4x4"
        raise PlugError(
            f"--topology {text!r}: a slice of {name} has {dimensions} dimensions, such as "
            f"{name}:{example}"
        )
    slices = int(count or 1)
    if slices > 1 and chip.dcn_bandwidth is None:
        raise PlugError(
            f"--topology {text!r}: the bandwidth between slices of {name} is not published; plan "
            f"one slice: {text.split('*')[1]}"
        )
    return Topology(chip, shape, slices)


def set_environment() -> None:
    """Let libtpu compile without a TPU, beside other processes that do; before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")  # some value; topologies say their own


def compile_only_devices(topology: Topology) -> tuple[Any, ...]:
    """Devices that programs can be compiled for, and nothing else. Needs `set_environment`.

    Raises:
        PlugError: libtpu is not installed, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise PlugError(
            "the TPU compiler is not installed; it runs without a TPU: pip install 'plug-jax[tpu]'"
        )
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    chip = topology.chip
    options: dict[str, Any] = {}
    if chip.chip_config_name is not None:
        options["chip_config_name"] = chip.chip_config_name
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    name = f"{chip.libtpu_name}:{'x'.join(map(str, topology.shape))}"
    try:
        description = topologies.get_topology_desc(name, "tpu", **options)
    except JaxRuntimeError as error:
        raise PlugError(f"--topology {topology}: the TPU compiler says: {error}") from error
    return tuple(description.devices)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a device is: its slice, and its chip's coordinates in that."""

    slice: int
    coords: tuple[int, ...]


def places_of(devices: Sequence[Any], topology: Topology) -> tuple[Place, ...]:
    """The place of every device, in order."""
    dimensions = len(topology.shape)
    return tuple(
        Place(getattr(d, "slice_index", None) or 0, tuple(d.coords[:dimensions])) for d in devices
    )
