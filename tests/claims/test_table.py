"""The claims refer to existing runs."""

from pathlib import Path

import pytest

from claims.table import ARMS, CLAIMS, Arm, ByLength, Members

GIN = Path(__file__).resolve().parents[2] / "claims" / "gin"


@pytest.mark.parametrize("letter", CLAIMS)
def test_a_claim_compares_what_is_scored(letter):
    claim = CLAIMS[letter]
    assert len(claim.arms) > 1
    assert set(claim.runs) <= set(ARMS)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_begins_with_one_before_it(name):
    """So that none depends on itself."""
    arm, before = ARMS[name], list(ARMS)[: list(ARMS).index(name)]
    if isinstance(arm, Members):
        assert set(arm.arms) <= set(before)
    elif isinstance(arm, ByLength):
        assert arm.arm in before
    else:
        assert arm.start is None or arm.start in before


def test_each_gin_file_is_of_an_arm_or_of_others():
    used = {arm.gin for arm in ARMS.values() if isinstance(arm, Arm)}
    assert used | {"common", "of_length"} == {path.stem for path in GIN.glob("*.gin")}
