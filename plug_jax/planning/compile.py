"""Compiling a run's real train step ahead of time, and what the compiler says of its memory."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any, Protocol

import jax
from jax.errors import JaxRuntimeError
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params

from plug_jax.errors import PlugError
from plug_jax.planning.topologies import GIB
from plug_jax.training.program import TrainProgram

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": GIB, "T": GIB << 10}
_SIZE = r"([\d.]+)([KMGT]?)"


class DoesNotFit(Exception):
    """The compiler found no way to do with a chip's HBM."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # "... the total memory required for HLO temporaries (768.00G) exceeds available HBM
        # (95.74G)", or "Used 17.41G of 15.75G hbm"
        sizes = re.search(rf"\({_SIZE}\) exceeds available HBM|Used {_SIZE} of \S+ hbm", message)
        self.needed = _bytes(*filter(None, sizes.groups())) if sizes else None


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step."""

    executable: jax.stages.Compiled
    text: str  # of the optimised module
    jaxpr: Any  # of the traced step, over the whole mesh
    trace_seconds: float
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    The compiler says `peak`, `arguments`, `outputs`, `aliased`, `temporaries` and `code`; the
    parts can add up to more than the peak, as they are not all there at one time. The others are
    computed: parts of the arguments from their shardings, and of the temporaries from what the
    loops over layers keep for the backward pass.
    """

    peak: int  # what a step needs, all in all

    arguments: int
    outputs: int
    aliased: int  # outputs that take the place of arguments
    temporaries: int
    code: int
    host: int  # all of it that is on the host: offloaded activations
    parameters: int
    optimizer: int
    activations: int | None  # at most so much; None when layers are unrolled


class Program(Protocol):
    """What can be traced for a mesh, and so compiled."""

    def trace(self) -> jax.stages.Traced:
        """Trace it with abstract arguments that carry their shardings."""


def compile_step(program: Program) -> Compiled:
    """Trace, lower and compile; within the partitioner's context.

    Raises:
        DoesNotFit: it does not fit a chip's HBM.
        PlugError: the compiler fails for another reason.
    """
    started = time.monotonic()
    traced = program.trace()
    lowered = traced.lower()
    traced_at = time.monotonic()
    try:
        executable = lowered.compile()
    except JaxRuntimeError as error:
        # On-chip memory runs out whatever the batch: by compiler options, or by a kernel's blocks.
        if "RESOURCE_EXHAUSTED" in str(error) and "memory space vmem" not in str(error):
            raise DoesNotFit(str(error)) from error
        raise PlugError(f"the TPU compiler failed: {error}") from error
    compiled_at = time.monotonic()
    return Compiled(
        executable=executable,
        text=_text(executable),
        jaxpr=traced.jaxpr.jaxpr,
        trace_seconds=traced_at - started,
        compile_seconds=compiled_at - traced_at,
    )


def _text(executable: jax.stages.Compiled) -> str:
    text = executable.as_text()
    if text is None:
        raise PlugError("the TPU compiler did not give the compiled program as text")
    return text


def memory_of(compiled: Compiled, program: TrainProgram, row_shards: int) -> Memory:
    """Memory of one device. `row_shards`: how many parts the batch's rows are in."""
    stats = compiled.executable.memory_analysis()
    if stats is None:
        raise PlugError("the TPU compiler did not say how much memory the step needs")
    state = program.layout.with_shardings()
    kept = kept_activations(compiled.jaxpr) // row_shards
    return Memory(
        peak=stats.peak_memory_in_bytes,
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        host=stats.host_argument_size_in_bytes
        + stats.host_output_size_in_bytes
        - stats.host_alias_size_in_bytes
        + stats.host_temp_size_in_bytes,
        parameters=sharded_bytes(state.params),
        optimizer=sharded_bytes(state.opt_state),
        activations=min(kept, stats.temp_size_in_bytes) if kept else None,
    )


def sharded_bytes(tree: Any) -> int:
    """Bytes on one device of ShapeDtypeStructs that carry their sharding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def kept_activations(jaxpr: Jaxpr) -> int:
    """Bytes, over all devices, that loops over layers keep for the loops of the backward pass.

    They are what one scan gives and another one reads, layer by layer.
    """
    scans = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    read = set()
    for equation in scans:
        first = equation.params["num_consts"] + equation.params["num_carry"]
        read |= {v for v in equation.invars[first:] if not isinstance(v, Literal)}
    kept = sum(
        _aval_bytes(variable.aval)
        for equation in scans
        for variable in equation.outvars[equation.params["num_carry"] :]
        if variable in read
    )
    inner = (
        kept_activations(inner)
        for equation in jaxpr.eqns
        for inner in jaxprs_in_params(equation.params)
    )
    return kept + max(inner, default=0)


def _aval_bytes(aval: Any) -> int:
    return int(math.prod(aval.shape) * aval.dtype.itemsize)


def _bytes(number: str, unit: str = "") -> int:
    return int(float(number) * _UNITS[unit])
