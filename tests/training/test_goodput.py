"""A run's time accounting, over kills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plug_jax.checkpoints.format import PlainPath
from plug_jax.training import goodput as goodput_lib
from plug_jax.training.goodput import CAUSES, GOODPUT_FILE, Goodput


class Clock:
    """A clock that advances only when told."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(goodput_lib, "time", clock)
    return clock


def start(directory: Path, clock: Clock, *, step: int) -> Goodput:
    """2 s until it opens the checkpoint, 3 s to read it, 5 s to compile."""
    goodput = Goodput(PlainPath.of(directory), writes=True)
    clock.now += 2
    with goodput.part("restore"):
        clock.now += 3
    goodput.resumed(step)
    with goodput.part("compile"):
        clock.now += 5
    goodput.stepping()
    return goodput


def run_steps(goodput: Goodput, clock: Clock, first: int, last: int, *, idle: bool) -> None:
    """Each waits 1 s for data and takes 3 s more."""
    for step in range(first, last + 1):
        with goodput.data_wait(lambda: idle):
            clock.now += 1
        clock.now += 3
        goodput.reached(step)


def test_each_second_has_one_cause(tmp_path: Path, clock: Clock) -> None:
    goodput = start(tmp_path, clock, step=0)
    run_steps(goodput, clock, 1, 10, idle=True)
    run_steps(goodput, clock, 11, 20, idle=False)  # hidden by the devices' work
    with goodput.part("save"):
        clock.now += 4
        with goodput.part("evaluation"):
            clock.now += 6
    goodput.write(ended=True)
    summary = goodput.summary()
    assert summary["seconds"] == {
        "start_up": 2, "restore": 3, "compile": 5, "step": 70, "data_wait": 10, "save": 4,
        "evaluation": 6, "lost": 0, "down": 0,
    }  # fmt: skip
    assert summary["goodput"] == pytest.approx(0.7) and summary["starts"] == 1
    table = goodput.table().splitlines()
    assert table[0] == "goodput 70.0% of 0:01:40, 1 start:"
    assert table[1].split() == ["step", "0:01:10", "70.0%", *CAUSES["step"].split()]
    assert goodput.scalars()["goodput/data_wait"] == pytest.approx(0.1)


def test_a_kill_costs_the_steps_after_the_checkpoint_and_the_time_until_the_restart(
    tmp_path: Path, clock: Clock
) -> None:
    first = start(tmp_path, clock, step=0)
    run_steps(first, clock, 1, 20, idle=False)
    first.write()
    clock.now += 50  # 8 s of it still working, then killed
    died = start(tmp_path, clock, step=10)  # and this one killed at once
    clock.now += 100
    last = start(tmp_path, clock, step=10)
    run_steps(last, clock, 11, 15, idle=False)
    last.write(ended=True)
    seconds = last.summary()["seconds"]
    assert died is not last
    assert seconds["lost"] == 40 and seconds["step"] == 40 + 20
    # The second start is known up to its last record, after reading the checkpoint.
    assert seconds["down"] == 50 + 105
    assert seconds["start_up"] == 6 and seconds["restore"] == 9 and seconds["compile"] == 10
    assert last.summary()["starts"] == 3
    assert sum(seconds.values()) == clock.now - 1000

    # A finished run is not down until it resumes.
    clock.now += 10_000
    longer = start(tmp_path, clock, step=15)
    longer.write()
    assert longer.summary()["seconds"]["down"] == seconds["down"]


def test_a_start_that_trains_nothing_changes_nothing(tmp_path: Path, clock: Clock) -> None:
    first = start(tmp_path, clock, step=0)
    run_steps(first, clock, 1, 5, idle=False)
    first.write(ended=True)
    kept = (tmp_path / GOODPUT_FILE).read_text()
    clock.now += 7
    assert Goodput(PlainPath.of(tmp_path), writes=True).summary() == first.summary()
    assert (tmp_path / GOODPUT_FILE).read_text() == kept


def test_it_is_written_now_and_then(tmp_path: Path, clock: Clock) -> None:
    """So a kill loses at most half a minute."""
    goodput = start(tmp_path, clock, step=0)
    run_steps(goodput, clock, 1, 9, idle=False)
    [written] = json.loads((tmp_path / GOODPUT_FILE).read_text())["open"]
    assert written["last_step"] in (7, 8, 9)


def test_a_file_that_lost_power_emptied_counts_from_here(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / GOODPUT_FILE).write_text("")
    assert start(tmp_path, clock, step=3).summary()["starts"] == 1
