"""Reading the text of a compiled module: its computations, and how often each runs.

Not the HloModuleProto: only tensorflow has its classes, and they silently drop fields newer than
themselves, which libtpu already writes; here an unknown form of device groups is an error.

Only what the planner needs is understood. An instruction reads

    [ROOT] %name = shape opcode(%operand, ...), attribute=value, ...
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Set

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\) -> .* \{")
# Lines of a kernel's own metadata may begin with a bracket as well.
_END = re.compile(r"\}(, execution_thread=.*)?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?(\S+) = (.*)")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[^\s,]+)")
_NAME = re.compile(r"%([^\s,(){}]+)")
_KERNEL = 'custom_call_target="tpu_custom_call"'
# Roots of the fusions that start and end a collective, between which others compute.
ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'
ASYNC_DONE = 'custom_call_target="AsyncCollectiveDone"'


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape."""

    dtype: str
    dims: tuple[int, ...]
    memory: int  # the memory space of its layout: 0 is HBM, 1 on-chip memory, 5 the host's

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"

    @property
    def bytes(self) -> int:
        """Without the padding of its layout."""
        bits = _BITS.get(self.dtype)
        if bits is None:  # f32, s8, f8e4m3fn, ...
            bits = int(re.findall(r"\d+", self.dtype)[0])
        return math.prod(self.dims) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line."""

    name: str
    arrays: tuple[Array, ...]  # of the result; several of a tuple
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # the operands as text: a constant's value
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(array.bytes for array in self.arrays)

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Names of the computations that it calls, by attribute."""
        return {
            key: tuple(name.strip().lstrip("%") for name in value.strip("{}").split(","))
            for key, value in _CALLED.findall(self.attributes)
        }


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order in which they run."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(i for i in self.instructions.values() if i.is_root)

    @property
    def outputs(self) -> list[Instruction]:
        """What it returns, each of a tuple."""
        if self.root.opcode == "tuple":
            return [self.instructions[name] for name in self.root.operands]
        return [self.root]


@dataclasses.dataclass(frozen=True)
class Run:
    """A computation that runs on its own, not inside a fusion."""

    computation: Computation
    times: int  # a run of the module
    is_async: bool  # beside a matmul or a kernel of the computation that starts it


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations."""

    computations: dict[str, Computation]
    entry: str

    def runs(self) -> Iterator[Run]:
        """Every run. Loops whose trip count is not to be read off their condition count once."""
        yield from self._runs(self.entry, 1, is_async=False)

    def _runs(self, name: str, times: int, *, is_async: bool) -> Iterator[Run]:
        computation = self.computations[name]
        yield Run(computation, times, is_async)
        for instruction in computation.instructions.values():
            called = instruction.called
            if instruction.opcode == "while":
                trips = self.trip_count(instruction) or 1
                yield from self._runs(called["body"][0], times * trips, is_async=is_async)
            elif instruction.opcode == "conditional":
                for branch in called["branch_computations"]:
                    yield from self._runs(branch, times, is_async=is_async)
            elif instruction.opcode in ("call", "call-start", "async-start"):
                beside = instruction.opcode != "call" and self.is_hidden(computation, instruction)
                for inner in (*called.get("to_apply", ()), *called.get("calls", ())):
                    yield from self._runs(inner, times, is_async=is_async or beside)

    def fused_in(self, fusion: Instruction) -> Computation:
        """The computation of a fusion."""
        return self.computations[fusion.called["calls"][0]]

    def is_hidden(
        self, computation: Computation, start: Instruction, awaited: Instruction | None = None
    ) -> bool:
        """Whether a matmul or a kernel runs after `start`, and before what waits for its end.

        Of a transfer between slices the send starts it, and its receive is `awaited`.
        """
        passed_on = {(awaited or start).name}
        instructions = iter(computation.instructions.values())
        for instruction in itertools.dropwhile(lambda i: i is not start, instructions):
            if instruction is start:
                continue
            if not passed_on.isdisjoint(instruction.operands):
                if self._ends(instruction):
                    return False
                passed_on.add(instruction.name)
            if _computes(instruction, self._computing):
                return True
        return False

    def _ends(self, instruction: Instruction) -> bool:
        """Whether an instruction waits for the end of an asynchronous one."""
        if instruction.opcode == "fusion":
            return ASYNC_DONE in self.fused_in(instruction).root.attributes
        return instruction.opcode.endswith("-done")

    @functools.cached_property
    def _computing(self) -> frozenset[str]:
        """Computations with a matmul or a kernel. What is called comes first in the text."""
        names: set[str] = set()
        for computation in self.computations.values():
            if any(_computes(i, names) for i in computation.instructions.values()):
                names.add(computation.name)
        return frozenset(names)

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a while loop runs: what its condition compares its counter with.

        Loops that jax makes of a scan count from 0 in steps of 1. None for any other condition.
        """
        known = re.search(r'"?known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.called["condition"][0]]
        bounds = []
        for computation in (condition, *self._fused(condition)):
            for instruction in computation.instructions.values():
                if instruction.opcode == "compare" and "direction=LT" in instruction.attributes:
                    bounds.append(self._constant(computation, instruction.operands[1], condition))
        return bounds[0] if len(bounds) == 1 else None

    def _fused(self, computation: Computation) -> Iterator[Computation]:
        for instruction in computation.instructions.values():
            if instruction.opcode == "fusion":
                yield self.fused_in(instruction)

    def _constant(self, computation: Computation, name: str, caller: Computation) -> int | None:
        """The integer that a name stands for; a fusion's parameter is looked up in its caller."""
        instruction = computation.instructions[name]
        if instruction.opcode == "constant":
            return int(instruction.arguments)
        if instruction.opcode == "parameter" and computation is not caller:
            for call in caller.instructions.values():
                if call.called.get("calls") == (computation.name,):
                    return self._constant(caller, call.operands[int(instruction.arguments)], caller)
        return None


def parse_module(text: str) -> Module:
    """Read the text that a compiled executable gives of itself."""
    computations: dict[str, Computation] = {}
    entry = ""
    current: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if current is None:
            if header := _HEADER.fullmatch(line.rstrip()):
                current = {}
                computations[header[2]] = Computation(header[2], current)
                if header[1]:
                    entry = header[2]
        elif _END.fullmatch(line.rstrip()):
            current = None
        elif match := _INSTRUCTION.fullmatch(line):
            instruction = _instruction(match[2], match[3], is_root=bool(match[1]))
            current[instruction.name] = instruction
    return Module(computations, entry)


def parse_shape(text: str) -> tuple[Array, ...]:
    """The arrays of a shape, those of a tuple in order.

    >>> parse_shape("(f32[8,128]{1,0:T(8,128)S(1)}, s32[])")
    (Array(dtype='f32', dims=(8, 128), memory=1), Array(dtype='s32', dims=(), memory=0))
    """
    arrays = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(n.removeprefix("<=")) for n in dims.split(",") if n)
        arrays.append(Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(arrays)


def _computes(instruction: Instruction, computing: Set[str]) -> bool:
    """Whether an instruction is a matmul or a kernel, or calls a computation that has one."""
    return (
        instruction.opcode in ("convolution", "dot")
        or _KERNEL in instruction.attributes
        or any(not computing.isdisjoint(called) for called in instruction.called.values())
    )


def _instruction(name: str, rest: str, *, is_root: bool) -> Instruction:
    rest = _COMMENT.sub("", rest)
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    arguments = rest[start + 1 : end - 1]
    return Instruction(
        name=name,
        arrays=parse_shape(shape),
        opcode=rest[:start],
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[end:],
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    """The place after the bracket that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"unbalanced brackets: {text[:80]!r}")
