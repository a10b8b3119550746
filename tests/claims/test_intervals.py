"""Confidence intervals over seeds, against values computed by hand."""

import pytest

from claims.intervals import estimate, paired


def test_worked_example():
    """Deviation 1, standard error 1 / sqrt(3), and Student's t for 97.5%, 2 df: 4.3027."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    assert found.high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)
    assert not found.excludes_zero


def test_one_seed_has_no_interval():
    found = estimate([5.0])
    assert (found.mean, found.low, found.high, found.seeds) == (5.0, None, None, 1)
    assert not found.excludes_zero


def test_what_a_seed_does_to_both_is_left_alone():
    """Seeds differ by 100, arms by 1.0 to 1.2: the paired interval excludes 0."""
    ours, theirs = [101.0, 201.1, 301.2], [100.0, 200.0, 300.0]
    assert paired(ours, theirs).excludes_zero
    assert paired(ours, theirs).mean == pytest.approx(1.1)
    assert paired(theirs, ours).high < 0


def test_values_that_do_not_pair():
    with pytest.raises(ValueError):
        paired([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no values"):
        estimate([])
