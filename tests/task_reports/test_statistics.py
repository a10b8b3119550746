"""Confidence bounds and verdicts against scipy and hand-made counts."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from plug_jax.objectives.shares import Share, Verdict
from plug_jax.task_reports.statistics import Fill, Lengths, TaskStatistics


def share(count, total, target=None):
    return Share("key", "label", count, total, "cases", target, "luck")


@pytest.mark.parametrize(("count", "total"), [(15, 100), (0, 40), (40, 40), (1, 7), (1500, 10_000)])
def test_share_bounds_are_wilsons(count, total):
    expected = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert share(count, total).bounds == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_share_of_nothing_says_nothing():
    assert share(0, 0, 0.5).bounds == (0, 1)
    assert share(0, 0, 0.5).verdict is None
    assert share(3, 9).verdict is None


def test_the_verdict_is_within_exactly_while_the_bounds_hold_the_target():
    """Wilson's interval contains the targets that its score test does not reject."""
    for count in range(101):
        low, high = share(count, 100).bounds
        found = share(count, 100, 0.15).verdict
        assert (found is Verdict.WITHIN) == (low <= 0.15 <= high)


def test_verdicts_by_standard_errors():
    # 10,000 cases at 15%: the standard error is 35.7 cases.
    error = math.sqrt(10_000 * 0.15 * 0.85)
    for errors, expected in (
        (1.9, Verdict.WITHIN),
        (-1.9, Verdict.WITHIN),
        (2.1, Verdict.DOUBTFUL),
        (-3.2, Verdict.DOUBTFUL),
        (3.4, Verdict.OUTSIDE),
        (-3.4, Verdict.OUTSIDE),
    ):
        assert share(round(1500 + errors * error), 10_000, 0.15).verdict is expected


def test_what_must_never_happen_is_outside_when_it_happens_once():
    assert share(0, 10**6, 0.0).verdict is Verdict.WITHIN
    assert share(1, 10**6, 0.0).verdict is Verdict.OUTSIDE
    assert share(10**6, 10**6, 1.0).verdict is Verdict.WITHIN
    assert share(10**6 - 1, 10**6, 1.0).verdict is Verdict.OUTSIDE


def lengths(values, low=None, high=None, *, uniform=False):
    return Lengths("encoder", tuple(np.bincount(values).tolist()), low, high, uniform)


def test_the_mean_and_its_bounds():
    values = [3, 5, 5, 9]
    found = lengths(values)
    assert (found.total, found.mean, found.extremes) == (4, 5.5, (3, 9))
    expected = stats.norm.interval(0.95, loc=5.5, scale=stats.sem(values))
    assert found.mean_bounds == pytest.approx(expected)
    assert found.verdict is None and found.mean_asked is None and found.distance is None
    assert lengths([7]).mean_bounds is None


def test_the_distance_to_the_uniform_law_is_kolmogorovs():
    values = np.random.default_rng(0).integers(4, 12, size=50)
    found = lengths(values, 4, 11, uniform=True)
    law = stats.randint(4, 12)
    expected = max(abs(np.mean(values <= k) - law.cdf(k)) for k in range(20))
    assert found.distance == pytest.approx(expected)
    assert found.mean_asked == 7.5
    assert found.distance_bound == pytest.approx(math.sqrt(math.log(40) / 100))


def test_uniform_lengths_are_within_and_skewed_ones_outside():
    uniform = np.repeat(np.arange(32, 129), 10)
    assert lengths(uniform, 32, 128, uniform=True).distance == pytest.approx(0)
    assert lengths(uniform, 32, 128, uniform=True).verdict is Verdict.WITHIN
    # 970 lengths: 95% lie within 0.0436 of the distribution, 99.9% within 0.0626.
    for moved, expected in ((40, Verdict.WITHIN), (50, Verdict.DOUBTFUL), (70, Verdict.OUTSIDE)):
        skewed = uniform.copy()
        skewed[-moved:] = 32
        assert lengths(skewed, 32, 128, uniform=True).verdict is expected


def test_one_length_beyond_what_is_asked_is_outside():
    values = np.repeat(np.arange(4, 12), 100)
    for wrong in (3, 12):
        found = lengths([*values, wrong], 4, 11, uniform=True)
        assert (found.beyond, found.verdict) == (1, Verdict.OUTSIDE)
    assert lengths([5, 6], None, 6).verdict is Verdict.WITHIN
    assert lengths([5, 7], None, 6).verdict is Verdict.OUTSIDE


def test_fill():
    fill = Fill(9, 4, {"encoder": 10, "decoder": 20}, {"encoder": 30, "decoder": 76})
    assert fill.pad_fraction == pytest.approx({"encoder": 0.25, "decoder": 0.05})
    assert fill.examples_a_row == 2.25


def test_json_has_every_number_with_its_flag():
    statistics = TaskStatistics(
        examples=4,
        lengths=(lengths([3, 5, 5, 9], None, 8),),
        shares=(share(15, 100, 0.15), share(1, 3)),
        fill=None,
        vocabulary_use=None,
        drops={"empty_document": 2},
        changes={},
    )
    assert [item.label for item in statistics.compared] == ["encoder length", "label"]
    assert [item.label for item in statistics.disagreeing] == ["encoder length"]
    found = json.loads(json.dumps(statistics.to_json(), allow_nan=False))
    assert found["lengths"]["encoder"]["counts"] == [[3, 1], [5, 2], [9, 1]]
    assert found["lengths"]["encoder"]["verdict"] == "outside"
    assert found["lengths"]["encoder"]["ok"] is False
    assert found["drops"] == {"empty_document": 2}
    assert found["fill"] is None
    [only] = [found["shares"]["key"]]
    assert (only["ok"], only["verdict"], only["target"]) == (None, None, None)
