"""Several processes as one run: they find each other and end together."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Iterator, Sequence

import jax
from jax.errors import JaxRuntimeError

from plug_jax.cli.main import report, status_of
from plug_jax.errors import Interrupted, PlugError, shown
from plug_jax.hosts.coordinator import Coordinator
from plug_jax.hosts.errors import HostError
from plug_jax.hosts.peers import Note, Peers, among
from plug_jax.training.interrupts import ended_by_termination

COORDINATOR = "JAX_COORDINATOR_ADDRESS"  # host:port of the first process; JAX reads it too
NUM_PROCESSES = "JAX_NUM_PROCESSES"
PROCESS_ID = "JAX_PROCESS_ID"
_LOCAL_DEVICES = "JAX_LOCAL_DEVICE_IDS"

# The coordinator's address, the number of processes, this process's index and its devices.
_Place = tuple[str | None, int | None, int | None, Sequence[int] | None]

_SECONDS_TO_MEET = 300
_LARGEST_PORT = 65535
# Peers find a lost process long before JAX, which would abort this one.
_JAX_HEARTBEAT_SECONDS = 3600
_SECONDS_TO_BE_SURE = 5.0  # beyond LOST_AFTER, to decide whether an error is due to a lost process


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the run's processes within the context; an error on one of them ends all.

    On Cloud TPU, GKE, Slurm and Open MPI JAX finds the others. Elsewhere set the environment
    variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without any of these,
    or with JAX_NUM_PROCESSES=1, this is a single process. Enter before anything uses a device.

    A process that only raised would leave the others waiting in a collective operation, so it tells
    them why, and all exit at once.

    Raises:
        PlugError: the processes cannot be found, or do not find each other.
        Interrupted: SIGTERM came.
    """
    others = _connect()
    if others is None:
        yield
        return
    with ended_by_termination(), among(others):
        try:
            yield
        except BaseException as error:
            if isinstance(error, Interrupted) and error.step is not None:
                raise  # all of them stop
            if _may_come_of_a_lost_process(error):
                # A collective operation fails when a process is lost: then the others end this one
                # meanwhile, and say which.
                time.sleep(others.lost_after + _SECONDS_TO_BE_SURE)
            reason = str(error) or type(error).__name__
            text = f"process {others.process} ended the run: {reason}"
            others.end(Note(text, status_of(error)), report=functools.partial(report, error))


def _may_come_of_a_lost_process(error: BaseException | None) -> bool:
    """Whether an error comes from JAX's runtime, and not from its memory."""
    while error is not None:
        if isinstance(error, JaxRuntimeError):
            return not str(error).startswith("RESOURCE_EXHAUSTED")
        error = error.__cause__ or error.__context__
    return False


def _connect() -> Peers | None:
    """jax.distributed.initialize(), if there are other processes."""
    count, process = os.environ.get(NUM_PROCESSES), os.environ.get(PROCESS_ID)
    # For a Slurm job of one process JAX would use one GPU, not all.
    if count == "1" or (count is None and os.environ.get("SLURM_NTASKS") == "1"):
        return None
    if (count is None) != (process is None) or (count and not os.environ.get(COORDINATOR)):
        raise PlugError(
            f"set all of {COORDINATOR} (host:port of the first process), {NUM_PROCESSES} and "
            f"{PROCESS_ID} (from 0), or none of them where JAX finds the processes by itself"
        )
    if os.environ.get(COORDINATOR):
        _check_address(os.environ[COORDINATOR])
    if count is not None and process is not None:
        total = _number(NUM_PROCESSES, count, least=1)
        index = _number(PROCESS_ID, process, most=total - 1)
        place: _Place = (os.environ[COORDINATOR], total, index, None)
    else:
        place = _found_by_jax()
    address, processes, number, devices = place
    if address is None or processes is None or number is None:
        return None
    # JAX's own preemption notices would take over SIGTERM, and know no other signal.
    jax.config.update("jax_enable_preemption_service", False)
    coordinator = None
    if number == 0:
        coordinator = Coordinator(address, processes, heartbeat_timeout=_JAX_HEARTBEAT_SECONDS)
    try:
        jax.distributed.initialize(
            address,
            processes,
            number,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            initialization_timeout=_SECONDS_TO_MEET,
            heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
            # The first process would run its own service, which nobody uses here.
            coordinator_bind_address="127.0.0.1:0",
        )
    except ValueError as error:
        raise PlugError(f"{COORDINATOR}, {NUM_PROCESSES} or {PROCESS_ID}: {error}") from error
    except RuntimeError as error:
        raise HostError(
            f"this process could not join the others of its run: {error}. Check that all of them "
            f"were started and can reach the first; to run it alone set {NUM_PROCESSES}=1."
        ) from error
    # The coordinator's key-value store has no public name in JAX.
    from jax._src import distributed

    return Peers(distributed.global_state.client, number, processes, coordinator)


def _found_by_jax() -> _Place:
    """What jax.distributed would detect; without a cluster there is no address."""
    from jax._src.clusters import ClusterEnv

    named = os.environ.get(_LOCAL_DEVICES)
    devices = [_number(_LOCAL_DEVICES, one) for one in named.split(",")] if named else None
    return ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get(COORDINATOR), None, None, devices, None, _SECONDS_TO_MEET
    )


def _check_address(address: str) -> None:
    """PlugError unless it is a host and a port."""
    host, _, port = address.rpartition(":")
    if not host:
        raise PlugError(
            f"{COORDINATOR} is {shown(address)}; give host:port, a free port of the machine of the "
            "first process"
        )
    _number(f"the port of {COORDINATOR}", port, least=1, most=_LARGEST_PORT)


def _number(name: str, text: str, *, least: int = 0, most: int | None = None) -> int:
    """The whole number that a variable has; PlugError for anything else."""
    number = int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text) else None
    if number is None or number < least or (most is not None and number > most):
        range_ = f"from {least}" if most is None else f"{least} to {most:,}"
        raise PlugError(f"{name} must be a whole number, {range_}, not {shown(text)}")
    return number
