"""Time accounting of a step, and profiler traces."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from plug_jax.metrics import Mean
from plug_jax.partitioning import Partitioner
from plug_jax.training.profiling import StepProfile
from plug_jax.training.timing import StepTimer

SLOW = 0.1


def slow_step() -> jax.stages.Compiled:
    """A step over eight devices that takes `SLOW` seconds on them, after a fast dispatch."""

    def wait(total: np.ndarray) -> np.ndarray:
        time.sleep(SLOW)
        return total

    def step(x: jax.Array) -> jax.Array:
        total = jnp.sum(x)
        return jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), total)

    mesh = Partitioner(data=8).mesh
    rows = jax.ShapeDtypeStruct(
        (8, 2), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data"))
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, out_shardings=replicated).lower(rows).compile()


def run(timer: StepTimer, steps: int, *, data_seconds: float, step: jax.stages.Compiled) -> None:
    sharding = NamedSharding(Partitioner(data=8).mesh, PartitionSpec("data"))
    for _ in range(steps):
        with timer.part("data_wait"):
            time.sleep(data_seconds)
            batch = jax.device_put(np.ones((8, 2), np.float32), sharding)
        with timer.part("dispatch"):
            tokens = step(batch)
        timer.dispatched(Mean(tokens, tokens))
    timer.finish()


def test_slow_devices_show_as_device_wait() -> None:
    """Or as dispatch: on a CPU, dispatch may block until the previous step is done."""
    timer = StepTimer()
    run(timer, 5, data_seconds=0.0, step=slow_step())
    read = timer.read()
    assert read["step_seconds"] == pytest.approx(SLOW, rel=0.5)
    devices = read["device_wait_seconds"] + read["dispatch_seconds"]
    assert devices > 0.7 * read["step_seconds"] > 2 * read["data_wait_seconds"]
    assert read["tokens_per_second"] == pytest.approx(16 / read["step_seconds"])


def test_slow_data_show_as_data_wait() -> None:
    """Data that take as long as the devices, working meanwhile, do not count as device wait."""
    timer = StepTimer()
    run(timer, 5, data_seconds=2 * SLOW, step=slow_step())
    read = timer.read()
    assert read["step_seconds"] > 1.5 * SLOW
    assert read["data_wait_seconds"] > 0.7 * read["step_seconds"]
    # The last step has no later step to overlap with.
    assert read["device_wait_seconds"] < 0.5 * SLOW


def test_pauses_and_the_first_step_do_not_count() -> None:
    timer, step = StepTimer(), slow_step()
    run(timer, 1, data_seconds=5 * SLOW, step=step)
    assert timer.read() == {"tokens_per_second": 0.0}
    run(timer, 3, data_seconds=0.0, step=step)
    with timer.paused():
        time.sleep(5 * SLOW)
    read = timer.read()
    assert read["step_seconds"] == pytest.approx(SLOW, rel=0.5)
    parts = ("data_wait_seconds", "dispatch_seconds", "device_wait_seconds")
    assert sum(read[name] for name in parts) <= read["step_seconds"]
    assert timer.read() == {"tokens_per_second": 0.0}  # nothing since


@pytest.mark.parametrize(
    ("steps", "start", "traced"),
    [
        ((2, 3), 1, [2, 3]),
        ((1, 9), 1, [1, 2, 3, 4]),  # the run ends before
        ((2, 3), 3, [3]),  # resumed within
        ((2, 3), 4, []),  # resumed after
        (None, 1, []),
    ],
)
def test_which_steps_are_traced(
    steps: tuple[int, int] | None,
    start: int,
    traced: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on, seen = [False], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: on.__setitem__(0, True))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: on.__setitem__(0, False))
    profile = StepProfile("nowhere", steps, say=print)
    for number in range(start, 5):
        with profile.step(number):
            if on[0]:
                seen.append(number)
        if profile.ends_at(number):
            profile.close()
    profile.close()
    assert seen == traced and not on[0]


def test_a_trace_that_cannot_be_written_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop() -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: nowhere; No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    said: list[str] = []
    profile = StepProfile("nowhere", (1, 1), say=said.append)
    with profile.step(1):
        pass
    profile.close()
    profile.close()
    [line] = said
    assert line.startswith("the profile could not be written: ") and "No space left" in line


def test_a_trace_is_written(tmp_path: Path) -> None:
    profile = StepProfile(str(tmp_path), (1, 1), say=print)
    with profile.step(1):
        jnp.ones(3).sum().block_until_ready()
    profile.close()
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
