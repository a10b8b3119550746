"""An estimate of the bytes that a compiled step reads from and writes to HBM."""

from __future__ import annotations

from collections.abc import Iterable

from plug_jax.planning.hlo import (
    ASYNC_DONE,
    ASYNC_START,
    Array,
    Computation,
    Instruction,
    Module,
)

# They move nothing, or what they call is counted instead.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "call-start",
    "async-start",
    "async-update",
    "opt-barrier",
}
_HBM = 0


def hbm_bytes(module: Module) -> int:
    """Operands and results in HBM of every instruction of a step on one device, summed.

    Inside a fusion nothing goes to HBM. Of an array that is only sliced, or updated in place, the
    slice counts. Arrays that the compiler keeps in on-chip memory do not count, nor does what
    kernels read again. This is the compiler's schedule, not a measurement.
    """
    return sum(
        run.times
        * sum(_traffic(module, run.computation, i) for i in run.computation.instructions.values())
        for run in module.runs()
    )


def _traffic(module: Module, computation: Computation, instruction: Instruction) -> int:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    operands = [computation.instructions[name] for name in instruction.operands]
    if opcode == "fusion":
        return _fusion(module, instruction, operands)
    if opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _in_hbm(instruction.arrays)
    if opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1].arrays)
    if opcode in ("send", "recv"):  # a context and a token follow
        return _in_hbm(instruction.arrays[:1])
    if opcode.endswith("-start"):  # the result repeats the operands
        return _in_hbm(instruction.arrays)
    return _in_hbm(instruction.arrays) + sum(_in_hbm(o.arrays) for o in operands)


def _fusion(module: Module, fusion: Instruction, operands: list[Instruction]) -> int:
    fused = module.fused_in(fusion)
    if ASYNC_DONE in fused.root.attributes:
        return 0
    if ASYNC_START in fused.root.attributes:
        return _in_hbm(fusion.arrays)
    total = 0
    for parameter in fused.instructions.values():
        if parameter.opcode == "parameter":
            operand = operands[int(parameter.arguments)]
            whole = _in_hbm(operand.arrays)
            total += min(whole, _read(module, fused, parameter)) if whole else 0
    outputs = fused.outputs
    if len(outputs) != len(fusion.arrays):  # a fusion of a collective of several arrays
        return total + _in_hbm(fusion.arrays)
    for output, array in zip(outputs, fusion.arrays, strict=True):
        total += min(_in_hbm([array]), _written(module, fused, output))
    return total


def _read(module: Module, fused: Computation, source: Instruction) -> int:
    """Bytes of a fusion's parameter that are needed; all, if anything needs it whole.

    `source` is the parameter, or what relays it. Fusions can be nested (libtpu does so for v7x).
    """
    total = 0
    for user in fused.instructions.values():
        if source.name not in user.operands:
            continue
        if user.opcode in ("dynamic-slice", "gather", "slice") and user.operands[0] == source.name:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == source.name:
            continue  # in place: what is written is counted as such
        elif user.opcode == "tuple" or "chain_id=" in user.attributes:
            continue  # passed on; a collective under way is counted where it starts
        elif user.opcode == "bitcast" or (_relays(module, user) and user not in fused.outputs):
            total += _read(module, fused, user)
        elif user.opcode == "fusion":
            inner = module.fused_in(user)
            total += sum(
                _read(module, inner, parameter)
                for parameter in inner.instructions.values()
                if parameter.opcode == "parameter"
                and user.operands[int(parameter.arguments)] == source.name
            )
        else:
            return source.bytes
    return total


def _written(module: Module, fused: Computation, output: Instruction) -> int:
    if _relays(module, output):
        relayed = fused.instructions[output.operands[0]]
        if output.opcode == "bitcast" or relayed.opcode != "parameter":
            return _written(module, fused, relayed)
    if output.opcode == "dynamic-update-slice":
        return fused.instructions[output.operands[1]].bytes
    if output.opcode == "parameter" or "chain_id=" in output.attributes:
        return 0
    if output.opcode == "fusion":
        inner = module.fused_in(output)
        return sum(_written(module, inner, one) for one in inner.outputs)
    return output.bytes


def _relays(module: Module, instruction: Instruction) -> bool:
    """Whether it only changes the layout of its operand, element by element as they are needed."""
    if instruction.opcode == "fusion":
        inner = module.fused_in(instruction).instructions.values()
        return all(i.opcode in ("parameter", "bitcast", "copy") for i in inner)
    return instruction.opcode in ("bitcast", "copy")


def _in_hbm(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays if array.memory == _HBM)
