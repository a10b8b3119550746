"""Compiling once: before the first step, or in an earlier run."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable

import jax
from jax.errors import JaxRuntimeError
from orbax.checkpoint import multihost

from plug_jax.errors import PlugError
from plug_jax.hosts.activity import doing

_WAIT_MS = 2 * 3600 * 1000  # for a process that compiles while others found it in their cache
_count = itertools.count()


def use_compilation_cache(directory: str | None) -> None:
    """Keep compiled programs in `directory` (a path or gs://...), to be found there by later runs.

    Call it before the first compilation. None leaves JAX as it is: JAX_COMPILATION_CACHE_DIR
    counts. Programs are found by what they compute, the mesh and the versions of JAX and XLA; of
    several processes the first writes.
    """
    if directory is not None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program for arguments of one shape: where a jitted function recompiles, it raises."""

    call: jax.stages.Compiled
    trace_seconds: float
    compile_seconds: float

    def __str__(self) -> str:
        return (
            f"compiled in {self.compile_seconds:.1f} s, after {self.trace_seconds:.1f} s of tracing"
        )


def compile_program(lower: Callable[[], jax.stages.Lowered]) -> Compiled:
    """Compile what `lower` returns, on all processes of the run; call it within their mesh.

    No process returns before all have: a collective operation of the program waits only so long
    (30 s on CPUs) for a process that is not there yet.

    Raises:
        PlugError: the compiler of this machine's devices has no such option.
    """
    doing("compiling", watched=False)
    started = time.monotonic()
    lowered = lower()
    traced = time.monotonic()
    try:
        program = lowered.compile()
    except JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        raise PlugError(
            f"TrainConfig.compiler_options are not for these devices: {error}. Take the mesh/ file "
            "of the devices that there are, or set the options to {}"
        ) from error
    done = time.monotonic()
    wait_for_all = multihost.get_barrier_sync_fn()
    wait_for_all(key=f"plug_jax_compiled_{next(_count)}", timeout_ms=_WAIT_MS)
    return Compiled(program, traced - started, done - traced)
