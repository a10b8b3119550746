"""The MFU to expect given published runs: the fit, leave-one-out errors, and printed lines."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from plug_jax.cli import main as dispatcher
from plug_jax.cli import plan as command
from plug_jax.planning import calibration
from plug_jax.planning.calibration import Calibration, Row, Times, fit
from plug_jax.planning.flops import model_flops
from plug_jax.planning.topologies import CHIPS, parse_topology
from tests.planning.test_plan import FILES, some_plan

ROOT = Path(__file__).resolve().parents[2]


def times(compute=1.0, hbm=0.0, interconnect=0.0, synchronous=0.0):
    return Times(compute, hbm, interconnect, synchronous)


def row(mfu, chip="v5p", **parts):
    return Row("a run", f"{chip}:4x4x4", mfu, times(**parts), source="", differs="")


def made_up(compute, hbm, synchronous):
    """Rows of two chips that the model fits exactly; `compute` by chip."""
    return [
        row(
            1 / (compute[chip] * parts[0] + hbm * parts[1] + synchronous * parts[2]),
            chip,
            **dict(zip(("compute", "hbm", "synchronous"), parts, strict=True)),
        )
        for chip, parts in (
            ("v5e", (1.3, 0.3, 0.0)),
            ("v5e", (1.0, 0.2, 0.2)),
            ("v5e", (1.1, 0.6, 0.1)),
            ("v5p", (1.2, 0.1, 0.05)),
            ("v5p", (1.0, 0.5, 0.15)),
        )
    ]


def test_rows_that_follow_the_model_give_its_coefficients_back():
    rows = made_up({"v5e": 1.1, "v5p": 1.3}, 0.5, 0.9)
    model = fit(rows)
    assert model.compute == pytest.approx({"v5e": 1.1, "v5p": 1.3})
    assert model.shared == pytest.approx({"hbm": 0.5, "synchronous": 0.9})
    assert Calibration.of(rows).errors == pytest.approx(np.zeros(5), abs=1e-9)


def test_no_coefficient_is_negative():
    """Waiting does not make a step faster."""
    model = fit(made_up({"v5e": 1.1, "v5p": 1.3}, 0.5, -0.3))
    assert model.shared["synchronous"] == 0 and model.shared["hbm"] > 0


def test_the_only_row_of_a_chip_left_out_is_expected_to_be_as_the_other_chips_are():
    rows = [row(0.5), row(0.5), row(0.4, "v5e"), row(0.4, "v5e"), row(0.3, "v4")]
    assert Calibration.of(rows).left_out[-1] == pytest.approx(1 / ((2 + 2.5) / 2))


def test_leaving_out_one_row_of_three():
    """With compute alone it is sum(mfu) / sum(mfu^2): 2 for 0.5 and 0.5; 0.9 / 0.41."""
    known = Calibration.of([row(0.5), row(0.5), row(0.4)])
    assert known.left_out == pytest.approx([0.41 / 0.9, 0.41 / 0.9, 0.5])
    assert known.errors == pytest.approx([0.82 / 0.9 - 1, 0.82 / 0.9 - 1, 0.25])
    assert known.median_error == pytest.approx(1 - 0.82 / 0.9)
    assert known.largest_error == pytest.approx(0.25)


def test_the_interval_is_what_left_out_rows_show_and_wider_for_a_chip_of_few_rows():
    known = Calibration.of([row(0.5), row(0.5), row(0.4), row(0.44, chip="v4")])
    most = known.expect("v5p", times(1.1))
    few = known.expect("v4", times(1.1))
    assert most.mfu == pytest.approx(1 / (1.1 * 1.4 / 0.66))
    assert few.mfu == pytest.approx(0.44 / 1.1)
    error = np.quantile(np.abs(known.errors), 0.9)
    assert most.low == pytest.approx(most.mfu / (1 + error * np.sqrt(4 / 3)))
    assert few.high == pytest.approx(few.mfu * (1 + error * np.sqrt(2)))
    assert (most.chip_rows, few.chip_rows, few.rows) == (3, 1, 4)


def test_no_run_is_expected_above_its_bound():
    known = Calibration.of([row(0.9), row(0.9), row(0.6)])
    assert known.expect("v5p", times(1.0, interconnect=1.05)).high == pytest.approx(1 / 1.05)
    slow = known.expect("v5p", times(1.0, interconnect=5.0))  # which the model does not read
    assert slow.mfu == slow.high == pytest.approx(1 / 5) and slow.low < slow.mfu


def test_what_no_row_shows_is_said():
    known = Calibration.of(made_up({"v5e": 1.1, "v5p": 1.3}, 0.5, 0.9))
    assert known.expect("v5p", times(1.1, hbm=0.5, synchronous=0.2)).outside == ()
    assert known.expect("v5p", times(1.1, hbm=0.7, synchronous=0.3)).outside == (
        *("hbm", "synchronous"),
    )


def test_a_chip_without_rows():
    assert Calibration.of([row(0.5), row(0.5), row(0.4)]).expect("v6e", times()) is None


def test_the_rows_of_the_package():
    known = calibration.published()
    assert len(known.model.coefficients) <= len(known.rows) / 3
    assert {row.chip for row in known.rows} <= set(CHIPS)
    assert len({row.name for row in known.rows}) == len(known.rows)
    for one in known.rows:
        assert one.mfu < one.mfu_scheduled <= one.mfu_bound < 1
        assert one.times.compute >= 1
        assert one.source
    json.dumps(known.to_dict())


def expectation(known, chip, *, days=None, **parts):
    """The printed expectation for a plan on 64 chips with these times."""
    config = command.configure(FILES, [])
    topology = parse_topology({"v6e": "v6e:8x8"}.get(chip, f"{chip}:4x4x4"))
    expected = known.expect(chip, times(**parts))
    plan = some_plan(config, topology, expected=expected, expected_days=days)
    return command._expectation(plan, plan.speed)


def test_what_is_printed():
    known = Calibration.of([row(0.5), row(0.5), row(0.4), row(0.44, chip="v4")])
    said = expectation(known, "v5p", days=(18.7, 23.1))
    assert said == (
        "Expected MFU 47% (38-58%), 18.7-23.1 days: what 3 published runs on v5p and 1 on other "
        "chips would have of these times (plug-jax plan --calibration)."
    )
    assert "what 1 published run on v4 and 3" in expectation(known, "v4")
    assert expectation(known, "v5p", hbm=0.3).endswith("Longer than in any of them: hbm.")
    assert expectation(known, "v6e") == (
        "No MFU to expect: there is no published run on v6e to hold these bounds against."
    )


def test_the_table_of_published_runs(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        dispatcher.main(["plan", "--calibration"])
    printed = capsys.readouterr().out
    known = calibration.published()
    for one in known.rows:
        assert one.name in printed
    assert f"{known.median_error:.1%} (median), {known.largest_error:.1%} at most" in printed
    with pytest.raises(SystemExit, match="^0$"):
        dispatcher.main(["plan", "--calibration=json"])
    values = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in values["rows"]] == [one.name for one in known.rows]
    assert values["median_error"] == known.median_error


@pytest.fixture(scope="module")
def published_runs():
    """benchmarks/calibration.py."""
    spec = importlib.util.spec_from_file_location("runs", ROOT / "benchmarks" / "calibration.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def test_ours_have_the_flops_of_the_published(published_runs):
    """Per layer and for the gin files, with half of the attention pairs counted, as here."""
    for name, run in published_runs.RUNS.items():
        words = published_runs.arguments(run)
        files = [word.partition("=")[2] for word in words if word.startswith("--gin_file=")]
        bindings = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
        config = command.configure(files, [word.replace("=", " = ", 1) for word in bindings])
        data = config.train_data
        flops = model_flops(
            config.model, config.objectives, data.feature_lengths, data.batch_size
        ).train_step
        same = dataclasses.replace(run.model, vocabulary=run.model.our_vocabulary)
        tokens = data.batch_size * run.length
        assert flops == tokens * same.flops_a_token(run.length, causal=True), name
        assert data.batch_size == run.rows * parse_topology(run.topology).num_chips


def test_the_rows_are_of_those_runs(published_runs):
    for one in calibration.published().rows:
        run = published_runs.RUNS[one.name]
        assert (one.topology, one.source, one.differs) == (run.topology, run.source, run.differs)
        assert one.mfu == pytest.approx(run.mfu, abs=1e-4)


def test_a_gated_mlp_computes_two_of_three_matrices_again(published_runs):
    run = published_runs.RUNS["v5e-32b"]  # recomputes a whole layer: a third of 3 x 8192 x 28,672
    speed = {
        "model_flops": 197 * 10**12 * 256,  # one second at the peak
        "roofline": dict.fromkeys(("compute", "hbm", "interconnect", "synchronous"), 1.0),
    }
    more = 2 * 4 * 2048 * 32 * 8192 * (2 * 28_672 - 43_008) / 197e12
    assert published_runs.row("v5e-32b", speed)["times"] == {
        **dict.fromkeys(("hbm", "interconnect", "synchronous"), 1.0),
        "compute": pytest.approx(1 + more, abs=1e-4),
    }
    kept = dataclasses.replace(run, remat="names=qkv,out,wi")
    assert kept.more_recomputed == 0


def test_the_documented_table_is_of_these_rows():
    page = (ROOT / "docs" / "about" / "plans.md").read_text("utf-8")
    known = calibration.published()
    for one, left_out, error in zip(known.rows, known.left_out, known.errors, strict=True):
        bounds = f"{one.mfu_bound:.1%} / {one.mfu_scheduled:.1%}"
        ratio = one.mfu / one.mfu_scheduled
        told = f"{one.mfu:.1%} | {ratio:.2f} | {left_out:.1%} | {error:+.1%}"
        assert f"| {one.name} | {one.topology} | {bounds} | {told} |" in page
    for value in known.model.coefficients.values():
        assert f"{value:.2f}" in page
    errors = f"a median error of {known.median_error:.1%} and {known.largest_error:.1%} at most"
    assert errors in " ".join(page.split())
