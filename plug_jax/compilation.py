"""Ahead-of-time compilation and the persistent compilation cache."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import ClassVar

import jax
from jax.errors import JaxRuntimeError
from orbax.checkpoint import multihost

from plug_jax.errors import PlugError
from plug_jax.standard_error import flush_output

_WAIT_MS = 2 * 3600 * 1000  # for a process that compiles while others have a cache hit
_count = itertools.count()


def use_compilation_cache(directory: str | None) -> None:
    """Keep compiled programs in `directory` (a path or gs://...) for later runs.

    Call it before the first compilation. None leaves JAX's setting: JAX_COMPILATION_CACHE_DIR
    applies. The key is the computation, the mesh and the versions of JAX and XLA; the first process
    writes.
    """
    if directory is not None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """A program for one set of argument shapes; unlike a jitted function it never recompiles."""

    call: jax.stages.Compiled
    trace_seconds: float
    compile_seconds: float

    def __str__(self) -> str:
        return (
            f"compiled in {self.compile_seconds:.1f} s, after {self.trace_seconds:.1f} s of tracing"
        )


def compile_program(lower: Callable[[], jax.stages.Lowered]) -> CompiledProgram:
    """Compile what `lower` returns, on all processes of the run; call it within their mesh.

    No process returns before all have compiled: the program's collective operations wait only for
    a limited time (30 s on CPUs) for a process that is late.

    Raises:
        PlugError: this machine's compiler does not know an option.
    """
    return _compile(lower, next(_count))


def _compile(lower: Callable[[], jax.stages.Lowered], number: int) -> CompiledProgram:
    """`number`: of the compilation, equal on all processes."""
    started = time.monotonic()
    lowered = lower()
    traced = time.monotonic()
    try:
        program = lowered.compile()
    except JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        raise PlugError(
            f"TrainConfig.compiler_options are not for these devices: {error}. Use the mesh/ "
            f"file for your devices, or set the options to {{}}"
        ) from error
    done = time.monotonic()
    wait_for_all = multihost.get_barrier_sync_fn()
    wait_for_all(key=f"plug_jax_compiled_{number}", timeout_ms=_WAIT_MS)
    return CompiledProgram(program, traced - started, done - traced)


class Compilation:
    """The compilation of one program, in a thread of its own, beside other work."""

    running: ClassVar[set[Future[CompiledProgram]]] = set()

    def __init__(
        self,
        lower: Callable[[], jax.stages.Lowered],
        context: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """As for `compile_program`, within `context()`; contexts are per thread."""
        self._lower, self._context = lower, context
        self._future: Future[CompiledProgram] | None = None

    def start(self) -> Future[CompiledProgram]:
        """Begin, the first time; all processes of a run start theirs in the same order."""
        if self._future is None:
            pool = ThreadPoolExecutor(1, "compile")
            self._future = pool.submit(self._compile, next(_count))
            pool.shutdown(wait=False)
            self.running.add(self._future)
            self._future.add_done_callback(self.running.discard)
        return self._future

    @property
    def done(self) -> bool:
        """Whether it has ended, successfully or not."""
        return self._future is not None and self._future.done()

    def result(self) -> CompiledProgram:
        """Wait for the program; raises the error of a failed compilation."""
        return self.start().result()

    def _compile(self, number: int) -> CompiledProgram:
        with self._context():
            return _compile(self._lower, number)


def leave(status: int) -> None:
    """End this process at once if it compiles: Python would wait for the end of that thread.

    Several processes leave a run together, and do wait.
    """
    if Compilation.running and jax.process_count() == 1:
        flush_output()
        os._exit(status)
