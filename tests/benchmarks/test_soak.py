"""Resource growth in a long run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plug_jax.benchmarks.soak import Watch
from plug_jax.cli.main import main


def test_slopes_are_of_the_second_half() -> None:
    watch = Watch(Path("nowhere"))
    for step in range(100):
        grown = 1000 * step if step < 50 else 50_000 + 7 * (step - 50)
        watch.samples.append({"step": step, "host_bytes": grown, "threads": 9})
    slopes = watch.slopes()
    assert slopes["host_bytes"]["a_step"] == pytest.approx(7, rel=1e-6)
    assert slopes["host_bytes"]["last"] == slopes["host_bytes"]["most"] == 50_343
    assert slopes["threads"]["a_step"] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.long
def test_a_run_holds_on_to_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Memory and threads still warm up in so few steps, but the number of files must not grow."""
    options = ["--steps", "120", "--eval_every", "20", "--save_every", "20", "--json"]
    assert main(["bench", "soak", *options, "--directory", str(tmp_path)]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["steps"] == 120 and not list(tmp_path.iterdir())
    assert abs(results["files"]["a_step"]) < 0.2
    assert results["host_bytes"]["most"] < 4 << 30 and results["threads"]["most"] < 1000
