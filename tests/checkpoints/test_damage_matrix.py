"""Every kind of file of a checkpoint, damaged in every way, for everything that reads one.

    pytest -m slow -s tests/checkpoints/test_damage_matrix.py

prints how many cases there were, how many of them were found, and how many changed nothing.
"""

from __future__ import annotations

import collections
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest
from etils import epath

from plug_jax.checkpoints.checksums import CHECKSUMS
from plug_jax.checkpoints.integrity import find_damage
from plug_jax.errors import PlugError
from tests.checkpoints.damages import damages, files_of, flips, kind_of
from tests.checkpoints.stored_run import NEW, OLD, read, resume, step_of, write_run

WAYS = ("truncate", "empty", "delete", "swap", "other dtype", "other shape", "flip")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The damaged runs, and others to swap files with."""
    return {
        "run": write_run(tmp_path_factory.mktemp("run")),
        "dtype": write_run(tmp_path_factory.mktemp("dtype"), jnp.bfloat16),
        "shape": write_run(tmp_path_factory.mktemp("shape"), repeats=2),
    }


def doing(runs: dict[str, Path], way: str) -> Callable[[Path, str], None]:
    if way.startswith("other"):
        return damages(step_of(runs[way.removeprefix("other ")]))["swap"]
    return damages(step_of(runs["run"], OLD))[way]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("way", "checked"), [*((way, True) for way in WAYS), ("truncate", False), ("flip", False)]
)
def test_no_damage_goes_unseen_or_ends_in_a_traceback(
    runs: dict[str, Path], tmp_path: Path, way: str, checked: bool
) -> None:
    """Without checksums, flipped bytes may go unnoticed: then only tracebacks are failures."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    seen: set[str] = set()
    for name in files_of(step_of(runs["run"])):
        damaging = [doing(runs, way)] if way != "flip" else list(flips(step_of(runs["run"]), name))
        for damage in damaging:
            # Training and commands are slow: they get one file of each kind, damaged once.
            first = kind_of(name) not in seen
            seen.add(kind_of(name))
            if not checked and (name == CHECKSUMS or not first):
                continue
            run = shutil.copytree(runs["run"], tmp_path / "run")
            if not checked:
                for step in (OLD, NEW):
                    (step_of(run, step) / CHECKSUMS).unlink()
            damage(step_of(run), name)
            for reader in (_verified, read, resume) if first else (_verified,):
                counts[reader.__name__, _outcome(run, f"{way} {name}", reader, checked)] += 1
            shutil.rmtree(run)
    shown = ", ".join(f"{reader} {what} {n}" for (reader, what), n in sorted(counts.items()))
    print(f"\nMATRIX {way}, {checked=}: {shown}")
    assert counts["_verified", "found"] > 10 or not checked


def _verified(run: Path) -> int | PlugError:
    damage = find_damage(epath.Path(step_of(run)))
    return NEW if damage is None else PlugError(damage.of(epath.Path(step_of(run))))


def _outcome(run: Path, case: str, reader: Callable[[Path], int | PlugError], checked: bool) -> str:
    """The newest step was read correctly, or damage was found: an older step, or an error."""
    try:
        got = reader(run)
    except AssertionError:  # wrong values
        assert not checked, case
        return "unseen"
    except Exception as error:
        raise AssertionError(f"{case}: {error!r}") from error
    if isinstance(got, PlugError):
        assert "\n" not in str(got), case
        return "found"
    assert got in (OLD, NEW), case
    return "harmless" if got == NEW else "found"
