"""Times of collectives on chips with round numbers, by hand; topologies and their spelling."""

import dataclasses

import pytest

from plug_jax.errors import PlugError
from plug_jax.planning.collectives import Collective
from plug_jax.planning.hlo import Array
from plug_jax.planning.roofline import Roofline, collective_seconds
from plug_jax.planning.topologies import CHIPS, Place, Topology, parse_topology

# 1 GB/s per link and direction; a dimension of 4 is a ring; 0.1 GB/s between slices.
CHIP = dataclasses.replace(CHIPS["v5p"], ici_bandwidth=12e9, dcn_bandwidth=0.1e9)
MEGABYTE = (Array("f32", (250_000,), 0),)


def places(shape, slices=1):
    x, y, z = shape
    return [
        Place(s, (i, j, k))
        for s in range(slices)
        for i in range(x)
        for j in range(y)
        for k in range(z)
    ]


def milliseconds(kind, groups, shape=(4, 2, 1), slices=1, times=1, chip=CHIP):
    one = Collective(kind, MEGABYTE, times, groups)
    where = places(shape, slices)
    if chip.devices == 2:
        where = [place for place in where for _ in range(2)]
    return 1e3 * collective_seconds(one, Topology(chip, shape, slices), where)


RING = ((0, 2, 4, 6), (1, 3, 5, 7))  # along x, of 4
LINE = ((0, 1), (2, 3), (4, 5), (6, 7))  # along y, of 2


def test_link_bandwidth():
    assert CHIP.link_bandwidth == 1e9


@pytest.mark.parametrize(
    ("kind", "groups", "expected"),
    [
        ("all-gather", RING, 3 / 4 / 2),  # two links in a ring
        ("reduce-scatter", RING, 3 / 4 / 2),
        ("all-reduce", RING, 2 * 3 / 4 / 2),
        ("all-gather", LINE, 1 / 2),  # one link in a line
        ("all-gather", (tuple(range(8)),), 7 / 8 / 3),  # ring and line concurrently
        ("all-to-all", RING, 4 / 8),
        ("all-to-all", LINE, 2 / 4),
        ("collective-permute", ((0, 2), (2, 0)), 1.0),
        ("all-gather", ((0, 4), (2, 6), (1, 5), (3, 7)), 1 / 2 / (2 / 2)),
    ],
)
def test_collectives_by_hand(kind, groups, expected):
    # The last case: chips 0 and 2 of a ring of 4; both ways lead there, and two groups share them.
    assert milliseconds(kind, groups) == pytest.approx(expected)


def test_every_run_counts():
    assert milliseconds("all-gather", RING, times=7) == pytest.approx(7 * 3 / 8)


def test_slices_add_the_network_between_them():
    # Within a slice of 4 devices: 2 x 3/4 over two links. Each then sends its quarter, twice half.
    group = (tuple(range(8)),)
    inside = 2 * 3 / 4 / 2
    between = 2 * (1 / 2) * (1 / 4) / 0.1
    assert milliseconds("all-reduce", group, shape=(4, 1, 1), slices=2) == pytest.approx(
        inside + between
    )


def test_two_devices_of_a_chip_share_its_links():
    chip = dataclasses.replace(CHIP, devices=2)
    together = ((0, 1, 2, 3, 4, 5, 6, 7),)  # a ring of 4 chips
    apart = ((0, 2, 4, 6), (1, 3, 5, 7))
    assert milliseconds("all-gather", together, (4, 1, 1), chip=chip) == pytest.approx(7 / 8 / 2)
    assert milliseconds("all-gather", apart, (4, 1, 1), chip=chip) == pytest.approx(3 / 4 / 1)
    assert milliseconds("all-gather", ((0, 1), (2, 3)), (4, 1, 1), chip=chip) == 0


def test_roofline():
    roofline = Roofline(compute=2.0, hbm=1.0, interconnect=3.0, synchronous=0.5)
    assert (roofline.overlapped, roofline.scheduled) == (3.0, 2.5 + 0.5)
    assert Roofline(2.0, 1.0, 1.5, synchronous=1.0).scheduled == 2.0 + 1.0
    assert roofline.bound_by == "interconnect"
    assert not roofline.hides_interconnect


@pytest.mark.parametrize(
    ("text", "chips", "devices", "wrapped"),
    [
        ("v5p:4x4x4", 64, 64, (True, True, True)),
        ("v5p:2x2x4", 16, 16, (False, False, True)),
        ("v5e:8x16", 128, 128, (False, True)),
        ("v7x:4x4x4", 64, 128, (True, True, True)),
        ("2*v5p:4x4x8", 256, 256, (True, True, True)),
    ],
)
def test_topologies(text, chips, devices, wrapped):
    topology = parse_topology(text)
    assert (topology.num_chips, topology.num_devices) == (chips, devices)
    assert topology.wrapped == wrapped
    assert str(topology) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p-128", "'v5p-128' is not CHIP:SHAPE, such as v5p:4x4x4"),
        ("v5f:4x4", "no chip 'v5f'; did you mean v5e?"),
        ("v5p:8x8", "a slice of v5p has 3 dimensions, such as v5p:4x4x4"),
        ("v5e:4x4x4", "a slice of v5e has 2 dimensions, such as v5e:4x4"),
        ("v5e:0x4", "2 dimensions"),
        ("2*v4:4x4x4", "between slices of v4 is not published; plan one slice: v4:4x4x4"),
    ],
)
def test_what_is_no_topology(text, message):
    with pytest.raises(PlugError, match=message.replace("*", r"\*")):
        parse_topology(text)
