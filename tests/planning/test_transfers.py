"""Traffic between slices, as libtpu 0.0.42 writes it: a step of two slices of 4; compiled ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plug_jax.planning.collectives import axes_of, find_collectives, parse_target
from plug_jax.planning.compile import Compiled
from plug_jax.planning.cost import cost_of
from plug_jax.planning.hlo import parse_module
from plug_jax.planning.roofline import collective_seconds
from plug_jax.planning.topologies import (
    CHIPS,
    Place,
    Topology,
    compile_only_devices,
    parse_topology,
    set_environment,
)
from plug_jax.planning.traffic import hbm_bytes

HANDLER = '_xla_host_transfer_handler_name="xla_megascale_runtime"'


def transfer(rendezvous, kind):
    reduces = '_xla_megascale_reduce_operation="SUM",' if kind == "ALL_REDUCE" else ""
    return (
        f'is_host_transfer=true, frontend_attributes={{{HANDLER},_xla_host_transfer_rendezvous="'
        f'{rendezvous}",{reduces}_xla_megascale_target="{{1,2}}x{{0:3}}",'
        f'_xla_megascale_transfer_type="{kind}"}}, backend_config={{"flag_configs":[],'
        '"aggregated_send_recv_config":{"status":"AGGREGATE_STATUS_ISSUE"}}'
    )


DONE = f"is_host_transfer=true, frontend_attributes={{{HANDLER}}}"
# A gradient is summed over the slices beside a matmul; then new parameters are gathered, for which
# a receive waits for long.
STEP = f"""HloModule step, is_scheduled=true

ENTRY %main (x: f32[3,2,128], y: f32[2,2,2,8], m: f32[8,8]) -> f32[2,2,2,16] {{
  %x = f32[3,2,128]{{2,1,0:T(2,128)}} parameter(0)
  %y = f32[2,2,2,8]{{2,1,0,3:T(2,128)}} parameter(1)
  %m = f32[8,8]{{1,0:T(8,128)S(1)}} parameter(2)
  %after-all.9 = token[] after-all(), frontend_attributes={{MegascaleRendezvousKeyName="all-reduce.226_0"}}
  %after-all.44 = token[] after-all(), frontend_attributes={{MegascaleRendezvousKeyName="all-gather.306_0"}}
  %send.9 = (f32[3,2,128]{{2,1,0:T(2,128)}}, u32[], token[]) send(%x, %after-all.9), channel_id=22, {transfer("all-reduce.226_0", "ALL_REDUCE")}
  %recv.44 = (f32[2,2,2,16]{{2,1,0,3:T(2,128)}}, u32[], token[]) recv(%after-all.44), channel_id=89, {transfer("all-gather.306_0", "ALL_GATHER")}
  %send-done.9 = token[] send-done(%send.9), channel_id=22, {DONE}
  %product = f32[8,8]{{1,0:T(8,128)S(1)}} convolution(%m, %m), dim_labels=bf_io->bf
  %recv.9 = (f32[3,2,128]{{2,1,0:T(2,128)}}, u32[], token[]) recv(%after-all.9), channel_id=21, {transfer("all-reduce.226_0", "ALL_REDUCE")}
  %recv-done.9 = (f32[3,2,128]{{2,1,0:T(2,128)}}, token[]) recv-done(%recv.9), channel_id=21, {DONE}
  %send.44 = (f32[2,2,2,8]{{2,1,0,3:T(2,128)}}, u32[], token[]) send(%y, %after-all.44), channel_id=90, {transfer("all-gather.306_0", "ALL_GATHER")}
  %send-done.44 = token[] send-done(%send.44), channel_id=90, {DONE}
  %recv-done.44 = (f32[2,2,2,16]{{2,1,0,3:T(2,128)}}, token[]) recv-done(%recv.44), channel_id=89, {DONE}
  ROOT %out = f32[2,2,2,16]{{2,1,0,3:T(2,128)}} get-tuple-element(%recv-done.44), index=0
}}
"""
MESH = {"data": 2, "fsdp": 4, "tensor": 1}
CHIP = dataclasses.replace(CHIPS["v5e"], dcn_bandwidth=1e6)
PLACES = [Place(s, (i, j)) for s in range(2) for i in range(2) for j in range(2)]


def facts(text):
    """(kind, whole array, axes, asynchronous, microseconds at 1 MB/s)."""
    return [
        (
            one.kind,
            str(one.arrays[0]),
            axes_of(one.groups, MESH),
            one.is_async,
            pytest.approx(1e6 * collective_seconds(one, Topology(CHIP, (2, 2), 2), PLACES)),
        )
        for one in find_collectives(parse_module(text), 8)
    ]


def test_a_send_and_its_receive_count_once():
    reduced, gathered = 4 * 3 * 2 * 128, 4 * 2 * 2 * 2 * 16
    assert facts(STEP) == [
        ("all-gather", "f32[2,2,2,16]", "data", False, gathered / 2),  # nothing after the send
        ("all-reduce", "f32[3,2,128]", "data", True, 2 * reduced / 2),  # half of it, there and back
    ]
    # What is sent is read, what comes is written; the product and its factors stay on the chip.
    assert hbm_bytes(parse_module(STEP)) == 2 * reduced + gathered // 2 + gathered


def test_other_sends_are_not_between_slices():
    assert facts(STEP.replace("_megascale_transfer", "_other_transfer")) == []


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ('"{1,2}x{0:1}"', ((0, 2), (1, 3))),
        ("{{100000,300000},{200000,400000}}", ((0, 2), (1, 3))),
        ("{{100001,200001},{100000,200000}}", ((1, 3), (0, 2))),
        ("{{100000->200000},{200001->100001}}", ((0, 2), (3, 1))),
    ],
)
def test_every_spelling_of_a_target(text, groups):
    assert parse_target(text, 4) == groups


def all_kinds(x):
    """[512, 1024] of each device."""
    pairs = [(0, 1), (1, 0)]
    return (
        lax.psum(x, ("data", "fsdp")),
        lax.all_gather(2 * x, "data"),
        lax.psum_scatter(3 * x, "data", tiled=True),
        lax.all_to_all(4 * x, "data", 0, 0, tiled=True),
        lax.ppermute(5 * x, "data", pairs),
    )


@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_transfers_of_the_real_compiler():
    pytest.importorskip("libtpu", reason="the TPU compiler: pip install '.[tpu]'")
    set_environment()
    topology = parse_topology("2*v5e:2x2")
    devices = np.array(compile_only_devices(topology)).reshape(2, 4)
    mesh = Mesh(devices, ("data", "fsdp"))
    rows = PartitionSpec(("data", "fsdp"))
    function = jax.shard_map(all_kinds, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    x = jax.ShapeDtypeStruct((8 * 512, 1024), jnp.float32, sharding=NamedSharding(mesh, rows))
    traced = jax.jit(function).trace(x)
    executable = traced.lower().compile()
    compiled = Compiled(executable, executable.as_text(), traced.jaxpr.jaxpr, 0.0, 0.0)
    cost = cost_of(compiled, topology, mesh)
    size, second = 4 * 512 * 1024, topology.chip.dcn_bandwidth
    between = [row for row in cost.collectives if row.kind.endswith(" between slices")]
    assert {row.kind: (row.axes, row.times, row.bytes, row.seconds) for row in between} == {
        f"{kind} between slices": ("data", 1, whole, pytest.approx(sent / second))
        for kind, whole, sent in [
            ("all-reduce", size / 4, size / 4),  # a quarter of the sum within its slice
            ("all-gather", 2 * size, size),
            ("reduce-scatter", size, size / 2),
            ("all-to-all", size, size / 2),
            ("collective-permute", size, size),
        ]
    }
    within = {row.kind: row.axes for row in cost.collectives if row not in between}
    assert within == {"reduce-scatter": "fsdp", "all-gather": "fsdp"}
