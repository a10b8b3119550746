"""Whether a run fits its TPUs, and how fast it can be: the facts of one compiled train step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from plug_jax.errors import PlugError
from plug_jax.models.attention import attention_kernel
from plug_jax.objectives.composition import stage_of
from plug_jax.partitioning import Partitioner
from plug_jax.planning.calibration import Expectation, Times, published
from plug_jax.planning.compile import Compiled, DoesNotFit, Memory, compile_step, memory_of
from plug_jax.planning.cost import Cost, cost_of
from plug_jax.planning.flops import model_flops
from plug_jax.planning.topologies import GIB, Topology, compile_only_devices
from plug_jax.training.program import TrainConfig, TrainProgram, train_program

# Tokens that PLUG was trained on in each stage.
_STAGE_TOKENS = {1: 300e9, 2: 100e9}
_DAY = 86400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed(Cost):
    """What the compiled step costs, and bounds that follow from it. Bytes are on one device."""

    model_flops: int
    mfu_bound: float  # model FLOPs at the peak of all chips, as a part of the step's lower bound
    mfu_scheduled: float  # the same, with collectives that compute waits for
    tokens_per_second: float  # places in rows, padding included, at the bound
    stage_tokens: float | None  # that PLUG was trained on in this stage, if it is one of PLUG's
    days: float | None  # for those tokens, at the bound
    expected: Expectation | None  # None: no published run on this chip to hold it against
    expected_days: tuple[float, float] | None  # for those tokens, at the most and at the least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plug-jax plan` says of one configuration. Bytes are on one device."""

    topology: str
    chips: int
    devices: int
    mesh: dict[str, int]
    stage: int | None  # of PLUG's training; None: objectives of another kind
    objectives: tuple[str, ...]  # their names
    parameters: int
    batch_size: int
    micro_batches: int
    lengths: dict[str, int]
    remat: str  # "full", "names=qkv,out"
    attention: str
    fits: bool
    hbm_needed: int | None  # None: the compiler does not say
    hbm_available: int
    memory: Memory | None  # None when it does not fit
    speed: Speed | None
    trace_seconds: float | None
    compile_seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with those that follow from others."""
        values = dataclasses.asdict(self)
        if self.speed is not None:
            values["speed"]["roofline"] = self.speed.roofline.to_dict()
        return values

    @property
    def verdict(self) -> str:
        """Fits or not, and then what to do."""
        advice = (
            ". Use more chips, a smaller BATCH_SIZE, more MICRO_BATCHES, more fsdp (or tensor), or "
            "a remat_policy that keeps less; --find_batch finds the largest batch"
        )
        return self.outcome if self.fits else self.outcome + advice

    @property
    def outcome(self) -> str:
        """Fits or not, and by how much."""
        mesh = " x ".join(f"{axis}={size}" for axis, size in self.mesh.items())
        what = f"batch {self.batch_size} on {self.topology} ({mesh})"
        available = f"{self.hbm_available / GIB:.2f} GiB"
        if self.fits:
            assert self.hbm_needed is not None
            share = self.hbm_needed / self.hbm_available
            return f"{what} fits: {self.hbm_needed / GIB:.2f} of {available} a device ({share:.0%})"
        needed = "more" if self.hbm_needed is None else f"{self.hbm_needed / GIB:.2f} GiB"
        return f"{what} does not fit: it needs {needed}, a device has {available}"


def make_plan(config: TrainConfig, topology: Topology) -> Plan:
    """Compile the run's train step for the topology, and account for it.

    Raises:
        PlugError: no TPU compiler, no such topology, or a mesh or batch that does not divide.
    """
    partitioner = dataclasses.replace(
        config.partitioner, devices=compile_only_devices(topology), slices=topology.slices
    )
    config = dataclasses.replace(config, partitioner=partitioner)
    with partitioner.context():
        program = train_program(config)
        try:
            compiled = compile_step(program)
        except DoesNotFit as error:
            return _plan(config, topology, program, error)
        return _plan(config, topology, program, compiled)


def _plan(
    config: TrainConfig, topology: Topology, program: TrainProgram, outcome: Compiled | DoesNotFit
) -> Plan:
    mesh = config.partitioner.mesh
    compiled = outcome if isinstance(outcome, Compiled) else None
    memory = None
    needed = outcome.needed if isinstance(outcome, DoesNotFit) else None
    if compiled is not None:
        memory = memory_of(compiled, program, _row_shards(config.partitioner))
        needed = memory.peak
    return Plan(
        topology=str(topology),
        chips=topology.num_chips,
        devices=topology.num_devices,
        mesh=dict(mesh.shape),
        stage=stage_of(config.objectives),
        objectives=tuple(one.name for one in config.objectives),
        parameters=sum(
            math.prod(leaf.shape) for leaf in jax.tree.leaves(program.layout.abstract.params)
        ),
        batch_size=config.train_data.batch_size,
        micro_batches=config.step.micro_batches,
        lengths=dict(config.train_data.feature_lengths),
        remat=config.model.remat,
        attention=attention_kernel(config.model, *config.train_data.feature_lengths.values()),
        fits=compiled is not None,
        hbm_needed=needed,
        hbm_available=topology.chip.usable_hbm_bytes,
        memory=memory,
        speed=_speed(config, topology, compiled) if compiled is not None else None,
        trace_seconds=compiled.trace_seconds if compiled else None,
        compile_seconds=compiled.compile_seconds if compiled else None,
    )


def _speed(config: TrainConfig, topology: Topology, compiled: Compiled) -> Speed:
    data = config.train_data
    cost = cost_of(compiled, topology, config.partitioner.mesh)
    needed = model_flops(config.model, config.objectives, data.feature_lengths, data.batch_size)
    at_peak = needed.train_step / topology.peak_flops
    tokens = data.batch_size * sum(data.feature_lengths.values())
    per_second = tokens / cost.roofline.overlapped
    stage = stage_of(config.objectives)
    stage_tokens = None if stage is None else _STAGE_TOKENS[stage]
    days = None if stage_tokens is None else stage_tokens / per_second / _DAY
    bound = at_peak / cost.roofline.overlapped
    expected = published().expect(topology.chip.name, Times.of(cost.roofline, at_peak))
    expected_days = None
    if expected is not None and days is not None:
        expected_days = days * bound / expected.high, days * bound / expected.low
    return Speed(
        **vars(cost),
        model_flops=needed.train_step,
        mfu_bound=bound,
        mfu_scheduled=at_peak / cost.roofline.scheduled,
        tokens_per_second=per_second,
        stage_tokens=stage_tokens,
        days=days,
        expected=expected,
        expected_days=expected_days,
    )


def find_batch(config: TrainConfig, topology: Topology, report: Callable[[Plan], None]) -> Plan:
    """The plan of the largest batch that fits; all else stays.

    It doubles the batch, then interpolates the memory between one that fits and one that does not,
    or halves where that gains less. Batches are multiples of the rows' shards times the
    micro-batches. `report` gets every plan as it is made. Raises PlugError when even the smallest
    does not fit.
    """
    devices = compile_only_devices(topology)
    partitioner = dataclasses.replace(config.partitioner, devices=devices, slices=topology.slices)
    multiple = config.step.micro_batches * _row_shards(partitioner)
    plans: dict[int, Plan] = {}

    def fits(count: int) -> bool:
        plan = make_plan(with_batch_size(config, count * multiple), topology)
        report(plan)
        plans[count] = plan
        return plan.fits

    low, high = 0, max(1, config.train_data.batch_size // multiple)
    while fits(high):
        low, high = high, 2 * high
    halve = low == 0
    while high - low > 1:
        middle = (low + high) // 2 if halve else _interpolated(plans, low, high)
        between = high - low
        low, high = (middle, high) if fits(middle) else (low, middle)
        halve = low == 0 or high - low > between // 2
    if low == 0:
        raise PlugError(f"no batch fits, not even {plans[1].verdict}")
    return plans[low]


def _interpolated(plans: Mapping[int, Plan], low: int, high: int) -> int:
    """Where memory would be full, were it linear in the batch; between `low` and `high`."""
    small, large = plans[low].hbm_needed, plans[high].hbm_needed
    if small is None or large is None or large <= small:
        return (low + high) // 2
    share = (plans[low].hbm_available - small) / (large - small)
    return min(max(low + int(share * (high - low)), low + 1), high - 1)


def with_batch_size(config: TrainConfig, batch_size: int) -> TrainConfig:
    """The same run with another batch size."""
    return dataclasses.replace(
        config, train_data=dataclasses.replace(config.train_data, batch_size=batch_size)
    )


def _row_shards(partitioner: Partitioner) -> int:
    """How many parts the rows of a batch are in."""
    devices: int = partitioner.mesh.size
    return devices // partitioner.batch_sharding.shard_shape((devices,))[0]
