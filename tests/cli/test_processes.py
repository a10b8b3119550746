"""How a command finds the other processes of its run. tests/training/test_multihost.py runs two."""

from __future__ import annotations

import socket

import jax
import pytest

from plug_jax.cli.processes import _may_come_of_a_lost_process, joined
from plug_jax.errors import PlugError
from plug_jax.hosts import coordinator
from plug_jax.hosts.errors import HostError
from plug_jax.hosts.peers import peers

VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "KUBERNETES_SERVICE_HOST",
    "SLURM_JOB_ID",
    "SLURM_NTASKS",
)


@pytest.fixture(autouse=True)
def initialized(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Records the arguments of jax.distributed.initialize, which does not connect."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    calls: list[tuple] = []

    def initialize(*arguments: object, **named: object) -> None:
        calls.append((*arguments, named["local_device_ids"]))
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    return calls


def test_a_process_without_a_cluster_is_alone(initialized: list[tuple]) -> None:
    with joined():
        assert not jax.distributed.is_initialized()
        assert peers() is None
    assert initialized == []


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "SLURM_NTASKS"])
def test_a_job_of_one_process_looks_for_nobody(
    name: str, initialized: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with joined():
        pass
    assert initialized == []


@pytest.mark.parametrize(
    "given",
    [
        {"JAX_NUM_PROCESSES": "2"},
        {"JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "a:1"},
        {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
    ],
)
def test_half_a_description_is_an_error(
    given: dict[str, str], initialized: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PlugError, match="set all of JAX_COORDINATOR_ADDRESS"), joined():
        pass
    assert initialized == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("JAX_COORDINATOR_ADDRESS", "localhost", "ADDRESS is 'localhost'; give host:port"),
        (
            "JAX_COORDINATOR_ADDRESS",
            "a:",
            "port of JAX_COORDINATOR_ADDRESS .* 65,535, not ''",
        ),
        ("JAX_COORDINATOR_ADDRESS", "a:99999", "1 to 65,535, not '99999'"),
        ("JAX_NUM_PROCESSES", "two", "JAX_NUM_PROCESSES must be a whole number, from 1, not 'two'"),
        ("JAX_NUM_PROCESSES", "", "JAX_NUM_PROCESSES must be a whole number"),
        ("JAX_PROCESS_ID", "-1", "JAX_PROCESS_ID must be a whole number, 0 to 1, not '-1'"),
        ("JAX_PROCESS_ID", "2", "JAX_PROCESS_ID must be a whole number, 0 to 1, not '2'"),
    ],
)
def test_mistyped_variables(
    name: str,
    value: str,
    message: str,
    initialized: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    for one, of_it in (given | {name: value}).items():
        monkeypatch.setenv(one, of_it)
    with pytest.raises(PlugError, match=message) as caught, joined():
        pass
    assert caught.value.status == 2 and initialized == []


def test_mistyped_devices(initialized: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,x")
    with pytest.raises(PlugError, match="JAX_LOCAL_DEVICE_IDS .* from 0, not 'x'"), joined():
        pass
    assert initialized == []


def test_processes_that_do_not_find_each_other(
    initialized: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retrying may help, so this has its own exit status."""
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    with pytest.raises(HostError, match="could not join .* DEADLINE_EXCEEDED") as caught, joined():
        pass
    assert caught.value.status == 75
    assert initialized == [("a:1", 2, 1, None)]


@pytest.mark.parametrize(("named", "devices"), [(None, [3]), ("0,1", [0, 1])])
def test_a_cluster_that_jax_knows(
    named: str | None,
    devices: list[int],
    initialized: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slurm, one process per GPU, or with the devices that the user names."""
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "3",
        "SLURM_STEP_NODELIST": "gpu[1-2]",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    if named is not None:
        monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", named)
    with pytest.raises(HostError), joined():
        pass
    [(address, *rest)] = initialized
    assert address.startswith("gpu1:") and rest == [8, 5, devices]


def test_a_port_that_stays_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two coordinators would share its connections."""
    monkeypatch.setattr(coordinator, "_SECONDS_TO_BE_FREE", 0.3)
    with socket.create_server(("", 0)) as server:
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", f"localhost:{server.getsockname()[1]}")
        monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
        monkeypatch.setenv("JAX_PROCESS_ID", "0")
        with pytest.raises(HostError, match="is in use: Address already in use"), joined():
            pass


def test_errors_that_a_lost_process_may_be_behind() -> None:
    lost = jax.errors.JaxRuntimeError("INTERNAL: Connection closed by peer")
    behind = ValueError("not saved")
    behind.__cause__ = lost
    assert _may_come_of_a_lost_process(lost) and _may_come_of_a_lost_process(behind)
    assert not _may_come_of_a_lost_process(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: HBM"))
    assert not _may_come_of_a_lost_process(PlugError("no such file"))
