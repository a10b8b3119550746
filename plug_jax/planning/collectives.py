"""What crosses the interconnect in a step: which arrays, over which mesh axes, how often."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from plug_jax.planning.hlo import ASYNC_START, Array, Computation, Instruction, Module

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Types of transfers between slices, as kinds.
_TRANSFERS = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
_SLICE = 100_000  # a device's number in a transfer: its slice, from 1 on, times this, and its own
_INTS = re.compile(r"\d+")

Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a step."""

    kind: str  # all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute
    arrays: tuple[Array, ...]  # on one device, whole: after an all-gather, before a reduce-scatter
    times: int  # a step
    groups: Groups  # of devices, by place in the mesh; pairs (from, to) of a collective-permute
    is_async: bool = False  # goes on beside a matmul or a kernel
    is_transfer: bool = False  # between slices, handed to the hosts

    @property
    def bytes(self) -> int:
        """Of the arrays, once."""
        return sum(array.bytes for array in self.arrays)


def find_collectives(module: Module, num_devices: int) -> list[Collective]:
    """Every collective that a step runs on each device, once, with how often it does.

    The TPU compiler writes an asynchronous collective into several fusions: one that starts it,
    some that compute meanwhile, one that ends it. Only the start counts. It writes a
    reduce-scatter as a fusion of an all-reduce and a slice. Over slices it writes what each slice
    does by itself, and then one transfer: a send of what a device has, a receive of what it gets.
    One that starts and ends with no matmul or kernel in between counts as synchronous.
    """
    found = []
    for run in module.runs():
        for instruction, caller in _candidates(module, run.computation):
            kind = _kind(instruction)
            if kind is None:
                continue
            groups = _groups(kind, instruction.attributes, num_devices)
            if all(len(set(group)) == 1 for group in groups):
                continue
            arrays = _whole_arrays(kind, instruction)
            fusion = _fusion(module, caller)
            if fusion is not None and fusion.name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            elif kind == "reduce-scatter":
                arrays = tuple(_scaled(array, len(groups[0])) for array in arrays)
            is_transfer = instruction.opcode == "recv"
            if is_transfer:
                send = _send_of(instruction, run.computation)
                hidden = module.is_hidden(run.computation, send, awaited=instruction)
            else:
                starts = instruction.opcode.endswith("-start") or _starts(fusion)
                hidden = starts and module.is_hidden(run.computation, caller)
            is_async = run.is_async or hidden
            found.append(Collective(kind, arrays, run.times, groups, is_async, is_transfer))
    return found


def _kind(instruction: Instruction) -> str | None:
    """Of the collective that an instruction is. A transfer's receive stands for its send too."""
    if instruction.opcode == "recv":
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
        return _TRANSFERS[transfer[1]] if transfer else None
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in _KINDS else None


def _send_of(receive: Instruction, computation: Computation) -> Instruction:
    """The other end of a transfer on the same device. They have one token."""
    sends = (i for i in computation.instructions.values() if i.opcode == "send")
    return next(send for send in sends if send.operands[-1] == receive.operands[-1])


def _candidates(
    module: Module, computation: Computation
) -> Iterator[tuple[Instruction, Instruction]]:
    """Instructions that run in a computation, each with the fusion that it is in, or itself."""
    for instruction in computation.instructions.values():
        fusion = _fusion(module, instruction)
        if fusion is None:
            yield instruction, instruction
            continue
        for inner in fusion.instructions.values():
            if _starts(fusion) or "chain_id=" not in inner.attributes:
                yield inner, instruction


def _fusion(module: Module, instruction: Instruction) -> Computation | None:
    called = instruction.called["calls"][0] if instruction.opcode == "fusion" else None
    return None if called is None else module.computations[called]


def _starts(fusion: Computation | None) -> bool:
    return fusion is not None and ASYNC_START in fusion.root.attributes


def _whole_arrays(kind: str, instruction: Instruction) -> tuple[Array, ...]:
    if instruction.opcode == "recv":
        return instruction.arrays[:1]  # then a context and a token
    arrays = tuple(a for a in instruction.arrays if not (a.dtype == "u32" and a.memory == 2))
    if not instruction.opcode.endswith("-start") or kind == "all-reduce":
        return arrays
    return arrays[len(arrays) // 2 :]  # after the operands


def _scaled(array: Array, factor: int) -> Array:
    return dataclasses.replace(array, dims=(factor, *array.dims))


def _groups(kind: str, attributes: str, num_devices: int) -> Groups:
    if target := re.search(r'_xla_megascale_target=("[^"]*"|\{\{.*?\}\})', attributes):
        return parse_target(target[1], num_devices)
    if kind == "collective-permute":
        pairs = _after(attributes, "source_target_pairs=")
        numbers = [int(n) for n in _INTS.findall(pairs)]
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return parse_groups(_after(attributes, "replica_groups="), num_devices)


def _after(attributes: str, key: str) -> str:
    """The value of an attribute: up to the next one."""
    start = attributes.index(key) + len(key)
    end = re.compile(r", (?!device_ids)[a-z_]+=").search(attributes, start)
    return attributes[start : end.start() if end else None]


def parse_groups(text: str, num_devices: int) -> Groups:
    """Replica groups in any of their spellings.

    >>> parse_groups("{{0,1},{2,3}}", 4)
    ((0, 1), (2, 3))
    >>> parse_groups("[2,2]<=[2,2]T(1,0)", 4)
    ((0, 2), (1, 3))
    >>> parse_groups("mesh['x'=2,'y'=2] {'x'}", 4)
    ((0, 2), (1, 3))
    """
    text = text.strip()
    if text in ("{}", "{{}}", ""):
        return (tuple(range(num_devices)),)
    if text.startswith("{"):
        return tuple(_ints(group) for group in re.findall(r"\{([\d,]+)\}", text))
    if text.startswith("mesh["):
        return _mesh_groups(text)
    shape, ids = text.split("<=")
    rows = _iota(ids).reshape(_ints(shape))
    return tuple(tuple(int(n) for n in row) for row in rows)


def parse_target(text: str, num_devices: int) -> Groups:
    """Groups of a transfer between slices, which are parts of the mesh one after another.

    >>> parse_target('"{1,2}x{0:1}"', 4)
    ((0, 2), (1, 3))
    >>> parse_target("{{100000,200000},{100001,200001}}", 4)
    ((0, 2), (1, 3))
    >>> parse_target("{{100000->200000},{200000->100000}}", 2)
    ((0, 1), (1, 0))
    """
    if "x" in text:
        slices, devices = (_ranges(part) for part in text.split("x"))
        numbers = [tuple(one * _SLICE + device for one in slices) for device in devices]
    else:
        numbers = [_ints(group) for group in re.findall(r"\{([^{}]+)\}", text)]
    size = num_devices // len({number // _SLICE for group in numbers for number in group})
    return tuple(
        tuple((number // _SLICE - 1) * size + number % _SLICE for number in group)
        for group in numbers
    )


def _ranges(text: str) -> list[int]:
    """Numbers of {1,2} or {0:3}."""
    numbers: list[int] = []
    for part in text.strip('"{}').split(","):
        first, _, last = part.partition(":")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _mesh_groups(text: str) -> Groups:
    """mesh['a'=2,'b'=4], device_ids=([8]) {'b'}: one group for every place along the other axes."""
    axes = re.findall(r"'(\w+)'=(\d+)", text)
    names = [name for name, _ in axes]
    sizes = [int(size) for _, size in axes]
    ids = re.search(r"device_ids=\((.*?\](?:T\([\d,]*\))?)\)", text)
    devices = _iota(ids[1]) if ids else np.arange(math.prod(sizes))
    within = re.findall(r"'(\w+)'(?:=|:\((\d+)\)(\d+))?", text[text.rindex("{") :])
    if any(part for _, *parts in within for part in parts):
        raise ValueError(f"replica groups over a part of an axis: {text}")
    kept = [names.index(name) for name, *_ in within]
    others = [axis for axis in range(len(names)) if axis not in kept]
    grid = devices.reshape(sizes).transpose(*others, *kept)
    rows = grid.reshape(-1, math.prod(sizes[axis] for axis in kept))
    return tuple(tuple(int(n) for n in row) for row in rows)


def _iota(text: str) -> np.ndarray:
    """Device ids of `[4,2]T(1,0)`: 0, 1, 2... in that shape, then transposed; flat."""
    shape, _, permutation = text.partition("T")
    sizes = _ints(shape)
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    return devices.transpose(_ints(permutation)).reshape(-1) if permutation else devices.reshape(-1)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in _INTS.findall(text))


def axes_of(groups: Groups, mesh_shape: Mapping[str, int]) -> str:
    """The mesh axes that groups of devices span: "fsdp", "data+fsdp", or else "part of ..." those.

    `groups` hold places in the flattened mesh; so do the pairs of a collective-permute.
    """
    axes = [axis for axis, size in mesh_shape.items() if size > 1]
    places = np.arange(math.prod(mesh_shape.values())).reshape(tuple(mesh_shape.values()))
    for count in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            whole = _groups_along(places, list(mesh_shape), chosen)
            if all(any(set(group) <= other for other in whole) for group in groups):
                is_whole = len(groups[0]) == len(whole[0])
                return "+".join(chosen) if is_whole else f"part of {'+'.join(chosen)}"
    return "none"


def _groups_along(
    places: np.ndarray, names: Sequence[str], chosen: Sequence[str]
) -> list[set[int]]:
    kept = [names.index(name) for name in chosen]
    others = [axis for axis in range(len(names)) if axis not in kept]
    rows = places.transpose(*others, *kept).reshape(
        -1, math.prod(places.shape[axis] for axis in kept)
    )
    return [set(row.tolist()) for row in rows]
