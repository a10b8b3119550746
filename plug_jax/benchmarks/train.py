"""`plug-jax bench train`: the compiled train step of a run, beside the same step in PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from plug_jax.benchmarks.torch_training import TorchTraining, check
from plug_jax.compilation import compile_program
from plug_jax.data.pipeline.pipeline import make_iterator
from plug_jax.objectives.composition import features_of
from plug_jax.partitioning import put_batch
from plug_jax.planning.flops import model_flops
from plug_jax.planning.topologies import peak_flops
from plug_jax.training.program import TrainConfig, train_program
from plug_jax.training.state import init_state

Batches = Sequence[Mapping[str, np.ndarray]]  # rows [B,S] of each feature


class Way(Protocol):
    """A way to train."""

    def train(self, batches: Batches) -> None:
        """A step on each batch; returns when the last is done."""


class Ours:
    """The step that `plug-jax train` runs. To be used within the mesh of the run."""

    def __init__(self, config: TrainConfig) -> None:
        """Compiles the step and makes the state, on random parameters."""
        program = train_program(config)
        self._sharding = config.partitioner.batch_sharding
        self._state = init_state(
            program.model, config.objectives, program.optimizer, program.layout, seed=config.seed
        )
        self.params = jax.device_get(self._state.params)
        self._program = compile_program(program.lower)

    def train(self, batches: Batches) -> None:
        """A step on each batch; the host prepares a step while the devices do the last one."""
        for batch in batches:
            self._state, _ = self._program.call(self._state, put_batch(batch, self._sharding))
        jax.block_until_ready(self._state)

    def to_json(self) -> dict[str, Any]:
        """Seconds until the step could run, and the bytes of a device that it takes."""
        memory: Any = self._program.call.memory_analysis()
        return {
            "trace_seconds": self._program.trace_seconds,
            "compile_seconds": self._program.compile_seconds,
            "device_bytes": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes  # the new state is written over the old
            + memory.temp_size_in_bytes,
        }


class PyTorch:
    """The same in PyTorch."""

    def __init__(self, config: TrainConfig, params: Any) -> None:
        self._training = TorchTraining(config, params)

    def train(self, batches: Batches) -> None:
        """A step on each batch."""
        for batch in batches:
            self._training.step(batch)


@dataclasses.dataclass(frozen=True)
class TrainSpeed:
    """What one way did in each round: a step on each of the batches."""

    config: TrainConfig  # its rows
    batches: Batches
    seconds: tuple[float, ...]

    def tokens_a_step(self, *, real: bool = False) -> float:
        """Places of the rows, or those that are no padding: the mean over the batches."""
        segments = [
            array
            for batch in self.batches
            for name, array in batch.items()
            if name.endswith("_segment_ids")
        ]
        counts = (int((array > 0).sum()) if real else array.size for array in segments)
        return sum(counts) / len(self.batches)

    def to_json(self) -> dict[str, Any]:
        """Rates by the median round, and the quartiles of a step's seconds over the rounds.

        Model FLOPs: what the rows need, padding included.
        """
        steps_per_second = len(self.batches) / statistics.median(self.seconds)
        data = self.config.train_data
        flops = model_flops(
            self.config.model, self.config.objectives, data.feature_lengths, data.batch_size
        )
        return {
            "step_seconds": _quartiles([s / len(self.batches) for s in self.seconds]),
            "steps_per_second": steps_per_second,
            "tokens_per_second": self.tokens_a_step() * steps_per_second,
            "real_tokens_per_second": self.tokens_a_step(real=True) * steps_per_second,
            "model_flops_per_second": flops.train_step * steps_per_second,
        }


def measure(
    config: TrainConfig,
    *,
    steps: int,
    rounds: int,
    against_torch: bool,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Speeds by way: "plug_jax", and against PyTorch "torch" and "torch_padded".

    Each round goes once through all ways, so that what else the machine does falls on all of them.
    "torch" trains on our rows; "torch_padded" on rows of one example, as released PLUG does, where
    ours hold several. `times` is our speed as a multiple, round by round: by all tokens of "torch",
    by real tokens of "torch_padded"; the median, and the quartiles.

    Args:
        config: the run; its length and what it would write do not matter.
        steps: of a round, each on a batch of its own.
        rounds: how often everything is timed.
        against_torch: whether there is PyTorch.
        report: called with a line for people who wait.

    Raises:
        PlugError: PyTorch is not installed, or has no such run; data that cannot be read.
    """
    if against_torch:
        check(config)
    batches = {"plug_jax": (config, _read(config, steps))}
    with config.partitioner.context():
        report("plug_jax: compiling")
        ours = Ours(config)
        ways: dict[str, Way] = {"plug_jax": ours}
        if against_torch:
            ways["torch"] = PyTorch(config, ours.params)
            batches["torch"] = batches["plug_jax"]
            if config.train_data.pack:
                padded = _padded(config)
                ways["torch_padded"] = PyTorch(padded, ours.params)
                batches["torch_padded"] = padded, _read(padded, steps)
        seconds = _timed(ways, {n: b for n, (_, b) in batches.items()}, rounds, report)
    speeds = {name: TrainSpeed(*batches[name], tuple(seconds[name])) for name in ways}
    results: dict[str, Any] = {name: speed.to_json() for name, speed in speeds.items()}
    results["plug_jax"] |= ours.to_json() | {"mfu": _mfu(results["plug_jax"], config)}
    for name, speed in speeds.items():
        if name == "plug_jax":
            continue
        real = name == "torch_padded"
        scale = speeds["plug_jax"].tokens_a_step(real=real) / speed.tokens_a_step(real=real)
        rounds_ = zip(speeds["plug_jax"].seconds, speed.seconds, strict=True)
        times = [scale * theirs / mine for mine, theirs in rounds_]
        results[name]["times"] = statistics.median(times)
        results[name]["times_quartiles"] = _quartiles(times)
    return results


def _mfu(ours: Mapping[str, float], config: TrainConfig) -> float | None:
    """Model FLOPs as a part of what all devices can do at best; None where that is not known."""
    devices = config.partitioner.mesh.devices
    peak = peak_flops(devices.flat[0].device_kind)
    return None if peak is None else ours["model_flops_per_second"] / (peak * devices.size)


def _quartiles(values: Sequence[float]) -> list[float]:
    """The first, the median and the third."""
    return [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))]


def _timed(
    ways: Mapping[str, Way],
    batches: Mapping[str, Batches],
    rounds: int,
    report: Callable[[str], None],
) -> dict[str, list[float]]:
    """The seconds of each round by way, after a first one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        report(f"round {round_} of {rounds}" if round_ else "first steps")
        for name, way in ways.items():
            started = time.perf_counter()
            way.train(batches[name])
            seconds[name].append(time.perf_counter() - started)
    return {name: counted for name, (_, *counted) in seconds.items()}


def _read(config: TrainConfig, count: int) -> Batches:
    rows = make_iterator(config.train_data, features_of(config.objectives))
    return list(itertools.islice(rows, count))


def _padded(config: TrainConfig) -> TrainConfig:
    """The run on rows of one example each, of the model's positions, about as many tokens a step.

    What is left of a row is padding.
    """
    data, positions = config.train_data, config.model.max_positions
    lengths = {side: min(length, positions) for side, length in data.feature_lengths.items()}
    longer = sum(data.feature_lengths.values()) // sum(lengths.values())
    rows = dataclasses.replace(
        data, pack=False, feature_lengths=lengths, batch_size=data.batch_size * longer
    )
    return dataclasses.replace(config, train_data=rows)
