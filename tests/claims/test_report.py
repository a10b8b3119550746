"""The report from given scores."""

import json

import pytest

from claims.report import find, markdown, write_report
from claims.table import Claim, Quantity

PERPLEXITY = Quantity("perplexity", "ppl", less_is_better=True)
ACCURACY = Quantity("accuracy", "acc", percent=True, at={"ours": "ours_probe"})
CLAIM = Claim(
    "Ours against theirs", {"ours": "our way", "theirs": "their way"}, [PERPLEXITY, ACCURACY]
)
SCORED = {
    "ours": {0: {"ppl": 10.0}, 1: {"ppl": 12.0}, 2: {"ppl": 14.0}},
    "ours_probe": {0: {"acc": 0.5}, 1: {"acc": 0.6}, 2: {"acc": 0.7}},
    "theirs": {
        0: {"ppl": 20.0, "acc": 0.5},
        1: {"ppl": 22.0, "acc": 0.7},
        2: {"ppl": 24.1, "acc": 0.6},
    },
}


def test_runs_that_a_claim_needs():
    assert CLAIM.runs == ["ours", "theirs", "ours_probe"]


def test_values_means_and_differences():
    perplexity, accuracy = find(CLAIM, SCORED)
    assert perplexity.values == {"ours": [10.0, 12.0, 14.0], "theirs": [20.0, 22.0, 24.1]}
    assert perplexity.differences["theirs"].mean == pytest.approx(-10.033, abs=1e-3)
    assert accuracy.values["ours"] == [50.0, 60.0, 70.0]  # in percent, from the run that was scored
    assert perplexity.better("theirs") is True
    assert accuracy.better("theirs") is None


def test_less_is_better_and_more_is_better():
    worse = {**SCORED, "ours": {seed: {"ppl": 30.0 + seed} for seed in range(3)}}
    assert find(CLAIM, worse)[0].better("theirs") is False


def test_seeds_that_an_arm_lacks_are_left_out():
    some = {**SCORED, "theirs": {seed: SCORED["theirs"][seed] for seed in (0, 2)}}
    assert find(CLAIM, some)[0].seeds == [0, 2]
    no_probe = {name: scores for name, scores in SCORED.items() if name != "ours_probe"}
    assert [one.quantity for one in find(CLAIM, no_probe)] == [PERPLEXITY]


def test_table():
    text = markdown("x", CLAIM, find(CLAIM, SCORED))
    assert "## (x) Ours against theirs" in text
    assert "| | perplexity ↓, n = 3 | accuracy ↑, n = 3 |" in text
    assert "| our way | 12 ± 5 | 60 ± 25 |" in text
    assert "| our way − their way | **-10 [-10.2, -9.89]** better | +0 [-24.8, +24.8] |" in text


def test_files(tmp_path):
    later = Claim("Not trained yet", {"ours": "our way", "other": "another"}, [PERPLEXITY])
    assert write_report(tmp_path, {"x": CLAIM, "y": later}, SCORED) == ["(y) perplexity"]
    found = json.loads((tmp_path / "claims.json").read_text())
    assert list(found) == ["x"]
    assert found["x"]["quantities"][0]["values"]["ours"] == [10.0, 12.0, 14.0]
    assert (tmp_path / "claim_x.png").read_bytes().startswith(b"\x89PNG")
    assert "our way" in (tmp_path / "claims.md").read_text()
