"""benchmarks/cpu_operations.py: what it times is the same in both, and its table."""

import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cpu_operations.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("cpu_operations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def test_both_compute_the_same(script):
    """But for dropout, where both drop as often."""
    sizes = script.Sizes(width=128, rows=2, length=16, predictions=8, pieces=50)
    for operation in script.operations(sizes):
        ours = [np.asarray(array) for array in jax.tree.leaves(operation.ours())]
        theirs = [tensor.detach().numpy() for tensor in jax.tree.leaves(operation.theirs())]
        assert len(ours) == len(theirs) > 0
        for mine, other in zip(ours, theirs, strict=True):
            if "dropout" in operation.name:
                assert abs(np.mean(mine == 0) - np.mean(other == 0)) < 0.06
            else:
                np.testing.assert_allclose(
                    mine, other, rtol=1e-4, atol=1e-5, err_msg=operation.name
                )


def test_the_table(script, monkeypatch, capsys):
    small = script.Sizes(width=64, rows=1, length=16, predictions=8, pieces=50)
    monkeypatch.setattr(script, "Sizes", lambda width: small)
    monkeypatch.setattr(sys, "argv", ["x", "--width", "64", "--rounds", "1", "--round_seconds=0"])
    script.main()
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("width 64 | ") and rule.startswith("---") and len(rows) == 11
    for row in rows:
        ours, theirs, times = (float(cell.split()[0]) for cell in row.split(" | ")[1:])
        assert ours > 0 and theirs > 0 and times > 0


def test_a_width_without_whole_heads_is_refused(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--width", "100"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--width must be a multiple of 64, not 100" in capsys.readouterr().err
