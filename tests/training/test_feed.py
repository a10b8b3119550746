"""Which rows of a batch each process reads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plug_jax.data import features
from plug_jax.errors import PlugError
from plug_jax.training.feed import (
    DataShare,
    check_positions,
    check_values,
    rows_by_process,
    share_of,
)
from tests import synthetic


@dataclasses.dataclass(frozen=True)
class Device:
    """The attributes of a device that a mesh needs."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def rows(processes: list[int], shape: tuple[int, int, int]) -> dict[int, frozenset[int]]:
    """Rows of each process, when the mesh's devices, in order, belong to `processes`."""
    devices = [Device(i, process) for i, process in enumerate(processes)]
    mesh = Mesh(np.asarray(devices, object).reshape(shape), ("data", "fsdp", "tensor"))
    return rows_by_process(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))


def shares(by_process: dict[int, frozenset[int]]) -> list[DataShare]:
    return [share_of(process, by_process) for process in sorted(by_process)]


def test_each_process_has_rows_of_its_own() -> None:
    by_process = rows([0, 0, 0, 0, 1, 1, 1, 1], (2, 2, 2))
    assert by_process == {0: frozenset(range(4)), 1: frozenset(range(4, 8))}
    assert shares(by_process) == [DataShare(0, 2, leader=True), DataShare(1, 2, leader=True)]


def test_tensor_parallel_processes_read_the_same_rows() -> None:
    """Four processes of one device, two per copy: one of each two is the leader."""
    assert shares(rows([0, 1, 2, 3], (1, 2, 2))) == [
        DataShare(0, 2, leader=True),
        DataShare(0, 2, leader=False),
        DataShare(1, 2, leader=True),
        DataShare(1, 2, leader=False),
    ]
    assert shares(rows([0, 0, 1, 1], (1, 1, 4))) == [
        DataShare(0, 1, leader=True),
        DataShare(0, 1, leader=False),
    ]


def test_rows_of_a_process_need_not_be_neighbours() -> None:
    """A 4 x 4 torus whose hosts hold squares of 2 x 2, in a mesh in row order."""
    hosts = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    by_process = rows(hosts, (1, 16, 1))
    assert by_process[1] == {2, 3, 6, 7}
    assert [s.index for s in shares(by_process)] == [0, 1, 2, 3]
    assert all(s.count == 4 and s.leader for s in shares(by_process))


def test_rows_that_are_shared_in_part() -> None:
    with pytest.raises(PlugError, match="choose a tensor axis"):
        shares(rows([0, 0, 0, 1, 1, 1], (1, 3, 2)))


def test_a_decoder_alone_reads_both_sides_as_one_text() -> None:
    """The second of two examples in a row has 4 + 3 tokens; padding does not count."""
    batch = {
        "encoder_segment_ids": np.int32([[0] * 10, [1, 2, 2, 2, 2, 0, 0, 0, 0, 0]]),
        "encoder_positions": np.int32([[0] * 10, [0, 0, 1, 2, 3, 0, 0, 0, 0, 0]]),
        "decoder_segment_ids": np.int32([[0] * 6, [1, 2, 2, 2, 0, 0]]),
        "decoder_positions": np.int32([[0] * 6, [0, 0, 1, 2, 0, 0]]),
    }
    check_positions(batch, synthetic.tiny_config(num_encoder_layers=0, max_positions=7))
    check_positions(batch, synthetic.tiny_config(max_positions=4))
    with pytest.raises(PlugError, match="reads as one text, reach position 6, .* table has 6 rows"):
        check_positions(batch, synthetic.tiny_config(num_encoder_layers=0, max_positions=6))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sentence_labels", 3, "has the value 3, and the run's objectives take 0 to 2"),
        ("sentence_labels", -1, "has the value -1, .* 0 to 2"),
        ("encoder_input_tokens", 90, "has the value 90, and the vocabulary's ids are 0 to 89"),
        ("encoder_token_types", 3, r"has the value 3, .*\(num_token_types\) are 0 to 2: c"),
    ],
)
def test_values_that_the_model_has_no_place_for(name: str, value: int, message: str) -> None:
    batch = synthetic.batch()
    check_values(batch, features.STRUCTBERT, synthetic.tiny_config())
    batch[name][1, 2] = value - 1 if value > 0 else 0
    check_values(batch, features.STRUCTBERT, synthetic.tiny_config())
    batch[name][1, 2] = value
    with pytest.raises(PlugError, match=f"feature {name} {message}"):
        check_values(batch, features.STRUCTBERT, synthetic.tiny_config())


def test_numbers_that_are_no_ids_are_free() -> None:
    targets = features.Feature("regression_targets", dtype="float32")
    batch = {"regression_targets": np.float32([[-1e9, 1e9]])}
    check_values(batch, [targets], synthetic.tiny_config())
