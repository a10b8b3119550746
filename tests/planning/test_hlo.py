"""Parsing HLO text: small hand-written modules in the TPU compiler's syntax."""

import pytest

from plug_jax.planning.collectives import axes_of, find_collectives, parse_groups
from plug_jax.planning.hlo import parse_module, parse_shape
from plug_jax.planning.traffic import hbm_bytes

# A loop of 5 in a loop of 3. The inner one gathers bf16[8,64] from 4 devices.
NESTED = """HloModule nested, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%compared (p: s32[], q: s32[]) -> pred[] {
  %p = s32[]{:T(128)} parameter(0)
  %q = s32[]{:T(128)} parameter(1)
  ROOT %less = pred[]{:T(512)} compare(%p, %q), direction=LT
}

%inner_condition (state: (s32[], bf16[2,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %state = (s32[]{:T(128)}, bf16[2,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %fusion = pred[]{:T(512)} fusion(%counter, %limit), kind=kLoop, calls=%compared
}

%inner_body (state.1: (s32[], bf16[2,64])) -> (s32[], bf16[2,64]) {
  %state.1 = (s32[]{:T(128)}, bf16[2,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %row = bf16[2,64]{1,0:T(8,128)(2,1)} get-tuple-element(%state.1), index=1
  %gathered = bf16[8,64]{1,0:T(8,128)(2,1)} all-gather(%row), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, use_global_device_ids=true
  %next = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %result = (s32[]{:T(128)}, bf16[2,64]{1,0:T(8,128)(2,1)}) tuple(%next, %row)
}

%outer_condition (state.2: (s32[], bf16[2,64])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(3)
  %state.2 = (s32[]{:T(128)}, bf16[2,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  ROOT %less.1 = pred[]{:T(512)} compare(%counter.1, %limit.1), direction=LT
}

%outer_body (state.3: (s32[], bf16[2,64])) -> (s32[], bf16[2,64]) {
  %state.3 = (s32[]{:T(128)}, bf16[2,64]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, /*index=1*/bf16[2,64]{1,0:T(8,128)(2,1)}) while(%state.3), condition=%inner_condition, body=%inner_body
}

ENTRY %main (x: bf16[2,64], y: f32[16]) -> f32[16] {
  %x = bf16[2,64]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[16]{0:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[2,64]{1,0:T(8,128)(2,1)}) tuple(%zero, %x)
  %while.2 = (s32[]{:T(128)}, bf16[2,64]{1,0:T(8,128)(2,1)}) while(%start), condition=%outer_condition, body=%outer_body
  ROOT %total = f32[16]{0:T(128)} all-reduce(%y), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=%add
}
"""

# The gather overlaps with a fusion: three fusions contain the same collective.
ASYNC = """HloModule async

%start (p0: bf16[2,64]) -> (bf16[2,64], bf16[8,64], u32[]) {
  %p0 = bf16[2,64]{1,0} parameter(0)
  %gather = bf16[8,64]{1,0} all-gather(%p0), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %context = (bf16[2,64]{1,0}, bf16[8,64]{1,0}, u32[]{:S(2)}) custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (p1: bf16[2,64], p2: bf16[8,64], p3: bf16[32,32]) -> (bf16[32,32], bf16[8,64]) {
  %p1 = bf16[2,64]{1,0} parameter(0)
  %p2 = bf16[8,64]{1,0} parameter(1)
  %gather.1 = bf16[8,64]{1,0} all-gather(%p1), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
  %p3 = bf16[32,32]{1,0} parameter(2)
  %product = bf16[32,32]{1,0} convolution(%p3, %p3), dim_labels=bf_io->bf
  ROOT %both = (bf16[32,32]{1,0}, bf16[8,64]{1,0}) tuple(%product, %gather.1)
}

%done (p4: bf16[2,64], p5: bf16[8,64]) -> bf16[8,64] {
  %p4 = bf16[2,64]{1,0} parameter(0)
  %p5 = bf16[8,64]{1,0} parameter(1)
  %gather.2 = bf16[8,64]{1,0} all-gather(%p4), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %end = bf16[8,64]{1,0} custom-call(%p4, %p5, %gather.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (p6: f32[8,16]) -> f32[2,16] {
  %p6 = f32[8,16]{1,0} parameter(0)
  %reduce = f32[8,16]{1,0} all-reduce(%p6), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = f32[2,16]{1,0} dynamic-slice(%reduce, %zero, %zero), dynamic_slice_sizes={2,16}
}

ENTRY %main (x: bf16[2,64], m: bf16[32,32], g: f32[8,16], s: f32[4]) -> f32[4] {
  %x = bf16[2,64]{1,0} parameter(0)
  %m = bf16[32,32]{1,0} parameter(1)
  %g = f32[8,16]{1,0} parameter(2)
  %s = f32[4]{0} parameter(3)
  %async = (bf16[2,64]{1,0}, bf16[8,64]{1,0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start
  %x.1 = bf16[2,64]{1,0} get-tuple-element(%async), index=0
  %out = bf16[8,64]{1,0} get-tuple-element(%async), index=1
  %work = (bf16[32,32]{1,0}, bf16[8,64]{1,0}) fusion(%x.1, %out, %m), kind=kCustom, calls=%meanwhile
  %gathered = bf16[8,64]{1,0} fusion(%x.1, %out), kind=kCustom, calls=%done
  %scattered = f32[2,16]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %permute = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%s), channel_id=3, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  ROOT %permuted = f32[4]{0} collective-permute-done(%permute)
}
"""


def facts(text, num_devices):
    return [
        (c.kind, str(c.arrays[0]), c.times, c.bytes, *(["async"] if c.is_async else []))
        for c in find_collectives(parse_module(text), num_devices)
    ]


def test_loops_multiply_what_is_inside():
    module = parse_module(NESTED)
    assert [(run.computation.name, run.times) for run in module.runs()] == [
        ("main", 1),
        ("outer_body", 3),
        ("inner_body", 15),
    ]
    assert facts(NESTED, 8) == [
        ("all-reduce", "f32[16]", 1, 64),
        ("all-gather", "bf16[8,64]", 15, 1024),
    ]


def test_a_loop_of_unknown_length_has_no_trip_count():
    text = NESTED.replace("direction=LT", "direction=NE")
    assert [run.times for run in parse_module(text).runs()] == [1, 1, 1]


def test_a_known_trip_count_is_taken():
    text = NESTED.replace(
        "body=%inner_body", 'body=%inner_body, backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert ("all-gather", "bf16[8,64]", 21, 1024) in facts(text, 8)


def test_an_asynchronous_collective_counts_once():
    assert facts(ASYNC, 4) == [
        ("all-gather", "bf16[8,64]", 1, 1024, "async"),
        ("reduce-scatter", "f32[8,16]", 1, 512),
        ("collective-permute", "f32[4]", 1, 16),  # nothing to overlap with
    ]


def test_start_and_done_count_once():
    text = """HloModule pair

ENTRY %main (x: bf16[2,64]) -> bf16[8,64] {
  %x = bf16[2,64]{1,0} parameter(0)
  %start = (bf16[2,64]{1,0}, bf16[8,64]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %done = bf16[8,64]{1,0} all-gather-done(%start)
}
"""
    assert facts(text, 4) == [("all-gather", "bf16[8,64]", 1, 1024)]


def test_a_wrapped_collective_counts_once_and_before_the_scatter():
    text = """HloModule wrapped

%wrapped (p: f32[8,16]) -> f32[2,16] {
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %scatter = f32[2,16]{1,0} reduce-scatter(%p), replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[8,16]) -> f32[2,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %start = ((f32[8,16]{1,0}), f32[2,16]{1,0}, u32[]{:S(2)}) async-start(%x), calls=%wrapped
  %update = ((f32[8,16]{1,0}), f32[2,16]{1,0}, u32[]{:S(2)}) async-update(%start)
  ROOT %done = f32[2,16]{1,0} async-done(%update)
}
"""
    assert facts(text, 4) == [("reduce-scatter", "f32[4,2,16]", 1, 512)]


OFFLOADED = """HloModule offloaded

%called (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %sum = f32[8]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}, execution_thread="sparsecore"

%matmul (q: f32[8,8]) -> f32[8,8] {
  %q = f32[8,8]{1,0} parameter(0)
  ROOT %square = f32[8,8]{1,0} convolution(%q, %q), dim_labels=bf_io->bf
}

ENTRY %main (x: f32[8], m: f32[8,8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %m = f32[8,8]{1,0} parameter(1)
  %before = f32[8,8]{1,0} fusion(%m), kind=kOutput, calls=%matmul
  %start = ((f32[8]{0}), f32[8]{0}) call-start(%x), async_execution_thread="sparsecore", to_apply=%called
  %between = BETWEEN
  %done = f32[8]{0} call-done(%start)
  %after = f32[8,8]{1,0} fusion(%m), kind=kOutput, calls=%matmul
  ROOT %sum.1 = f32[8]{0} add(%done, %x)
}
"""


@pytest.mark.parametrize(
    ("between", "hidden"),
    [
        ("f32[8,8]{1,0} fusion(%m), kind=kOutput, calls=%matmul", True),
        ('f32[8,8]{1,0} custom-call(%m), custom_call_target="tpu_custom_call"', True),
        ("f32[8,8]{1,0} add(%m, %m)", False),
        ("f32[8]{0} get-tuple-element(%start), index=1", False),
    ],
)
def test_a_call_on_the_sparse_core_is_hidden_by_what_runs_before_its_end(between, hidden):
    text = OFFLOADED.replace("BETWEEN", between)
    assert facts(text, 4) == [("all-reduce", "f32[8]", 1, 32, *(["async"] if hidden else []))]


def test_groups_of_one_device_cost_nothing():
    text = NESTED.replace("replica_groups=[2,4]<=[4,2]T(1,0)", "replica_groups=[8,1]<=[8]")
    assert [kind for kind, *_ in facts(text, 8)] == ["all-reduce"]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("{}", ((0, 1, 2, 3),)),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("[2,4]<=[2,2,2]T(1,0,2)", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['a'=2,'b'=1,'c'=2] {'a'}", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("mesh['a'=1,'b'=2,'c'=2], device_ids=([2,2]T(1,0)) {'c'}", ((0, 2), (1, 3))),
    ],
)
def test_every_spelling_of_groups(text, groups):
    assert parse_groups(text, 4) == groups


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("[8,2]<=[16]", "tensor"),
        ("[4,4]<=[2,4,2]T(0,2,1)", "fsdp"),
        ("[8,2]<=[2,8]T(1,0)", "data"),
        ("[2,8]<=[2,4,2]T(2,0,1)", "data+fsdp"),
        ("[1,16]<=[16]", "data+fsdp+tensor"),
        ("[8,2]<=[2,2,2,2]T(0,1,3,2)", "part of fsdp"),
    ],
)
def test_axes_of_groups(groups, axes):
    mesh = {"data": 2, "fsdp": 4, "tensor": 2}
    assert axes_of(parse_groups(groups, 16), mesh) == axes


def test_shapes():
    arrays = parse_shape("(f32[8,128]{1,0:T(8,128)S(1)}, s32[], pred[3]{0}, s4[6]{0:E(4)})")
    assert [str(a) for a in arrays] == ["f32[8,128]", "s32[]", "pred[3]", "s4[6]"]
    assert [a.memory for a in arrays] == [1, 0, 0, 0]
    assert [a.bytes for a in arrays] == [4096, 4, 3, 3]


def test_hbm_traffic_of_slices_updates_and_on_chip_memory():
    text = """HloModule traffic

%take (p0: f32[24,100], p1: s32[]) -> f32[1,100] {
  %p0 = f32[24,100]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %slice = f32[1,100]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,100}
}

%put (p2: f32[24,100], p3: f32[1,100], p4: s32[]) -> f32[24,100] {
  %p2 = f32[24,100]{1,0} parameter(0)
  %p3 = f32[1,100]{1,0} parameter(1)
  %p4 = s32[] parameter(2)
  ROOT %update = f32[24,100]{1,0} dynamic-update-slice(%p2, %p3, %p4, %p4)
}

ENTRY %main (stack: f32[24,100], i: s32[], a: f32[10], b: f32[10]) -> f32[24,100] {
  %stack = f32[24,100]{1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %a = f32[10]{0} parameter(2)
  %b = f32[10]{0} parameter(3)
  %near = f32[10]{0:S(1)} add(%a, %b)
  %far = f32[10]{0} multiply(%near, %near)
  %one = f32[1,100]{1,0} fusion(%stack, %i), kind=kLoop, calls=%take
  ROOT %all = f32[24,100]{1,0} fusion(%stack, %one, %i), kind=kLoop, calls=%put
}
"""
    sums = 40 + 40 + 40  # reads a and b, writes the product; the sum stays on the chip
    one_layer = 400 + 400  # reads and writes a layer, twice
    assert hbm_bytes(parse_module(text)) == sums + 2 * one_layer


def test_hbm_traffic_of_nested_fusions():
    """As libtpu nests them for v7x: a slice is read or updated through a change of layout."""
    text = """HloModule nested_fusions

%relayout (p: f32[24,100]) -> f32[24,100] {
  %p = f32[24,100]{1,0:T(16,128)} parameter(0)
  ROOT %copied = f32[24,100]{1,0:T(8,128)} copy(%p)
}

%doubled (q: f32[24,100], r: s32[]) -> f32[1,100] {
  %q = f32[24,100]{1,0:T(16,128)} parameter(0)
  %other = f32[24,100]{1,0:T(8,128)} fusion(%q), kind=kLoop, calls=%relayout
  %r = s32[] parameter(1)
  %row = f32[1,100]{1,0:T(8,128)} dynamic-slice(%other, %r, %r), dynamic_slice_sizes={1,100}
  ROOT %sum = f32[1,100]{1,0:T(8,128)} add(%row, %row)
}

%take (p0: f32[24,100], p1: s32[]) -> f32[1,100] {
  %p0 = f32[24,100]{1,0:T(16,128)} parameter(0)
  %p1 = s32[] parameter(1)
  %twice = f32[1,100]{1,0:T(8,128)} fusion(%p0, %p1), kind=kLoop, calls=%doubled
  ROOT %negative = f32[1,100]{1,0:T(8,128)} negate(%twice)
}

%put (p2: f32[24,100], p3: f32[1,100], p4: s32[]) -> (f32[24,100], f32[1,100]) {
  %p2 = f32[24,100]{1,0:T(16,128)} parameter(0)
  %other.1 = f32[24,100]{1,0:T(8,128)} fusion(%p2), kind=kLoop, calls=%relayout
  %p3 = f32[1,100]{1,0:T(8,128)} parameter(1)
  %p4 = s32[] parameter(2)
  %update = f32[24,100]{1,0:T(8,128)} dynamic-update-slice(%other.1, %p3, %p4, %p4)
  %back = f32[24,100]{1,0:T(16,128)} fusion(%update), kind=kLoop, calls=%relayout
  %row.1 = f32[1,100]{1,0:T(16,128)} copy(%p3)
  ROOT %both = (f32[24,100]{1,0:T(16,128)}, f32[1,100]{1,0:T(16,128)}) tuple(%back, %row.1)
}

ENTRY %main (stack: f32[24,100], i: s32[]) -> f32[24,100] {
  %stack = f32[24,100]{1,0:T(16,128)} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %one = f32[1,100]{1,0:T(8,128)} fusion(%stack, %i), kind=kLoop, calls=%take
  %new = (f32[24,100]{1,0:T(16,128)}, f32[1,100]{1,0:T(16,128)}) fusion(%stack, %one, %i), kind=kLoop, calls=%put
  %all = f32[24,100]{1,0:T(16,128)} get-tuple-element(%new), index=0
  ROOT %end = f32[24,100]{1,0:T(8,128)} fusion(%all), kind=kLoop, calls=%relayout
}
"""
    taken = 400 + 400  # reads and writes a row
    put = 400 + 400 + 400  # reads a row, and writes it twice
    whole = 9600 + 9600  # a copy that is not part of anything else
    assert hbm_bytes(parse_module(text)) == taken + put + whole
