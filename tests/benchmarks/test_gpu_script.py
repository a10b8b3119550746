"""benchmarks/gpu.sh in dry-run mode, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "gpu.sh"


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    """Each part writes its result, and none fails."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    run = subprocess.run(
        [SCRIPT, tmp_path / "out", "--dry-run"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("train_tiny_structbert", "train_tiny_palm"):
        found = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert found["ways"]["plug_jax"]["real_tokens_per_second"] > 0
    assert json.loads((tmp_path / "out" / "decode.json").read_text())
    assert "passed" in (tmp_path / "out" / "attention.txt").read_text()
    assert (tmp_path / "out" / "demo" / "report.md").exists()


def test_it_wants_a_place_for_its_results() -> None:
    run = subprocess.run([SCRIPT], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "usage: benchmarks/gpu.sh OUT [--dry-run]" in run.stderr
