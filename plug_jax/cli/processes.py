"""Several processes as one run: how they find each other, and how they end together."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from plug_jax.cli.main import report
from plug_jax.errors import PlugError
from plug_jax.training.interrupts import Interrupted

COORDINATOR = "JAX_COORDINATOR_ADDRESS"  # host:port of the first process; JAX reads it too
NUM_PROCESSES = "JAX_NUM_PROCESSES"
PROCESS_ID = "JAX_PROCESS_ID"

_ENDED = "plug_jax/ended/"  # key by process: why it ended the run
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_HEAR = 10.0  # at most, for the other processes to learn why the run ends


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within, this process is one of `jax.process_count()`; an error on one of them ends all.

    On Cloud TPU, GKE, Slurm and Open MPI JAX finds the others. Elsewhere the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name them. Without any of these,
    or with JAX_NUM_PROCESSES=1, the process is alone. Enter before anything uses a device.

    Raises:
        PlugError: the processes cannot be found, or do not find each other.
    """
    _connect()
    if not jax.distributed.is_initialized():
        yield
        return
    others = _Others()
    others.start()
    try:
        yield
    except Interrupted:  # they stop as well
        raise
    except BaseException as error:
        others.end(report(error), str(error) or type(error).__name__)
    finally:
        others.leave()


def _connect() -> None:
    """jax.distributed.initialize(), if there are other processes."""
    count, process = os.environ.get(NUM_PROCESSES), os.environ.get(PROCESS_ID)
    # For a Slurm job of one process JAX would take one GPU, not all.
    if count == "1" or (count is None and os.environ.get("SLURM_NTASKS") == "1"):
        return
    if (count is None) != (process is None) or (count and not os.environ.get(COORDINATOR)):
        raise PlugError(
            f"set all of {COORDINATOR} (host:port of the first process), {NUM_PROCESSES} and "
            f"{PROCESS_ID} (from 0), or none of them where JAX finds the processes by itself"
        )
    try:
        if count is None or process is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(
                num_processes=int(count),
                process_id=int(process),
                cluster_detection_method="deactivate",
            )
    except (ValueError, RuntimeError) as error:
        if str(error) == "coordinator_address should be defined.":
            return  # JAX has found no cluster
        raise PlugError(
            f"this process could not join the others of its run: {error}. Check that all of them "
            f"were started and can reach the first; to run it alone set {NUM_PROCESSES}=1."
        ) from error


class _Others(threading.Thread):
    """Listens for the end of another process, and tells the others of the end of this one.

    A process that only raised would leave the others waiting for it in a collective operation until
    JAX misses its heartbeat. So it leaves a note with the coordinator, waits until all have read
    it, and then they exit at once, whatever their threads and devices are doing.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        # The coordinator's store of keys and values has no public name in JAX.
        from jax._src import distributed

        self._client: Any = distributed.global_state.client
        self._process = distributed.global_state.process_id
        self._left = threading.Event()
        self._ending = threading.Lock()

    def run(self) -> None:
        """Look for notes until this process leaves."""
        while not self._left.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                notes = self._client.key_value_dir_get(_ENDED)
            except RuntimeError:
                return  # the coordinator is gone: JAX ends the process
            if notes and self._ending.acquire(blocking=False):
                key, note = notes[0]
                status, reason = json.loads(note)
                process = key.removeprefix(_ENDED)
                print(f"plug-jax: process {process} ended the run: {reason}", file=sys.stderr)
                self._exit(status)

    def end(self, status: int, reason: str) -> NoReturn:
        """End all processes with `status`; the others print `reason`."""
        self._ending.acquire()  # from now on the listening thread does nothing
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"{_ENDED}{self._process}", json.dumps([status, reason]))
        self._exit(status)

    def leave(self) -> None:
        """Stop to listen."""
        self._left.set()
        self.join()

    def _exit(self, status: int) -> NoReturn:
        with contextlib.suppress(RuntimeError):
            self._client.wait_at_barrier("plug_jax/end", int(_SECONDS_TO_HEAR * 1000))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
