"""How a command finds the other processes of its run. tests/training/test_multihost.py runs two."""

from __future__ import annotations

import jax
import pytest

from plug_jax.cli.processes import joined
from plug_jax.errors import PlugError

VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "KUBERNETES_SERVICE_HOST",
    "SLURM_JOB_ID",
    "SLURM_NTASKS",
)


@pytest.fixture(autouse=True)
def initialized(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The arguments that jax.distributed.initialize is called with; it finds no cluster."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    calls: list[dict] = []

    def initialize(**arguments: object) -> None:
        calls.append(arguments)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


def test_a_process_without_a_cluster_is_alone(initialized: list[dict]) -> None:
    with joined():
        assert not jax.distributed.is_initialized()
    assert initialized == [{}]


def test_what_jax_says_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real function's words, which `joined` relies on."""
    from jax._src import distributed

    with pytest.raises(ValueError) as caught:
        distributed.State().initialize()
    assert str(caught.value) == "coordinator_address should be defined."


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "SLURM_NTASKS"])
def test_a_job_of_one_process_looks_for_nobody(
    name: str, initialized: list[dict], monkeypatch: pytest.MonkeyPatch
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
    given: dict[str, str], initialized: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PlugError, match="set all of JAX_COORDINATOR_ADDRESS"), joined():
        pass
    assert initialized == []


def test_processes_that_do_not_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(**arguments: object) -> None:
        assert arguments == {
            "num_processes": 2,
            "process_id": 1,
            "cluster_detection_method": "deactivate",
        }
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    with pytest.raises(PlugError, match="could not join .* DEADLINE_EXCEEDED"), joined():
        pass
