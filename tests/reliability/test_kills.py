"""A few kills of a real run; `make kills` does fifty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.kills import Harness

pytestmark = pytest.mark.slow


def test_a_killed_run_leaves_what_an_uninterrupted_one_leaves(tmp_path: Path) -> None:
    harness = Harness(tmp_path, seed=3)
    harness.run(3)
    assert harness.differences and not any(harness.differences.values()), harness.differences
