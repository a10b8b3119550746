"""Comparing meshes, batches and remat policies by what the compiler makes of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from plug_jax.config import PlugConfig, RematPolicy
from plug_jax.errors import PlugError
from plug_jax.planning.plan import Plan, make_plan, with_batch_size
from plug_jax.planning.topologies import Topology
from plug_jax.training.program import TrainConfig


@dataclasses.dataclass(frozen=True)
class Grid:
    """Values to combine; `data` follows from fsdp and tensor."""

    fsdp: tuple[int, ...]
    tensor: tuple[int, ...]
    batch: tuple[int, ...]
    micro_batches: tuple[int, ...]
    models: tuple[PlugConfig, ...]  # the run's with different remat

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        topology: Topology,
        fsdp: Sequence[int] | None = None,
        tensor: Sequence[int] | None = None,
        batch: Sequence[int] | None = None,
        micro_batches: Sequence[int] | None = None,
        remat: Sequence[str] | None = None,
    ) -> Grid:
        """Where values are not given: tensor 1 to 8, each with all of a slice that is left or half
        of it as fsdp; of the rest the run's own. `remat` as `with_remat` reads it."""
        in_slice = topology.num_devices // topology.slices
        tensor = tuple(tensor or (n for n in (1, 2, 4, 8) if in_slice % n == 0))
        if fsdp is None:
            left = [in_slice // n for n in tensor]
            fsdp = sorted({n for size in left for n in (size, size // 2) if n}, reverse=True)
        return cls(
            fsdp=tuple(fsdp),
            tensor=tensor,
            batch=tuple(batch or (config.train_data.batch_size,)),
            micro_batches=tuple(micro_batches or (config.step.micro_batches,)),
            models=tuple(with_remat(config.model, text) for text in remat or (config.model.remat,)),
        )

    def configs(self, config: TrainConfig, topology: Topology) -> Iterator[TrainConfig]:
        """The run with every combination that multiplies to the devices of whole slices."""
        for fsdp, tensor, batch, micro_batches, model in itertools.product(
            self.fsdp, self.tensor, self.batch, self.micro_batches, self.models
        ):
            data, rest = divmod(topology.num_devices, fsdp * tensor)
            if rest or data % topology.slices:
                continue
            yield dataclasses.replace(
                with_batch_size(config, batch),
                partitioner=dataclasses.replace(
                    config.partitioner, data=data, fsdp=fsdp, tensor=tensor, slices=topology.slices
                ),
                step=dataclasses.replace(config.step, micro_batches=micro_batches),
                model=model,
            )


def sweep(
    config: TrainConfig, topology: Topology, grid: Grid, report: Callable[[str], None]
) -> list[Plan]:
    """A plan of every combination, the highest MFU first, those that do not fit last.

    The MFU is the expected one, or that as compiled on a chip without published runs. Each is
    compiled in turn; `report` gets a line before and after. A combination that does not divide the
    model or the batch, or on which the compiler fails, is reported and left out. PlugError when
    none is left.
    """
    configs = list(grid.configs(config, topology))
    if not configs:
        raise PlugError(
            f"nothing to compare: no fsdp of {grid.fsdp} times tensor of {grid.tensor} divides the "
            f"devices of {topology}"
        )
    plans = []
    for number, candidate in enumerate(configs, 1):
        partitioner = candidate.partitioner
        report(
            f"[{number}/{len(configs)}] data={partitioner.data} fsdp={partitioner.fsdp} "
            f"tensor={partitioner.tensor} batch={candidate.train_data.batch_size} "
            f"micro_batches={candidate.step.micro_batches} remat={candidate.model.remat} ..."
        )
        try:
            plan = make_plan(candidate, topology)
        except PlugError as error:
            report(f"  left out: {error}")
            continue
        plans.append(plan)
        report(f"  {plan.outcome}{_bounds(plan)}")
    if not plans:
        raise PlugError(f"nothing to compare: all {len(configs)} were left out, as said above")
    return sorted(plans, key=_mfu, reverse=True)


def _mfu(plan: Plan) -> float:
    if plan.speed is None:
        return 0.0
    expected = plan.speed.expected
    return plan.speed.mfu_scheduled if expected is None else expected.mfu


def with_remat(model: PlugConfig, text: str) -> PlugConfig:
    """The model with another remat: `full`, or `names=qkv,out,wi`, as `PlugConfig.remat` says it.

    Raises:
        PlugError: no such policy, or no such name.
    """
    policy, _, names = text.partition("=")
    return dataclasses.replace(
        model,
        remat_policy=cast(RematPolicy, policy),
        remat_saved_names=cast(Any, names.split(",")) if names else model.remat_saved_names,
    )


def _bounds(plan: Plan) -> str:
    if plan.speed is None:
        return ""
    expected = plan.speed.expected
    return (
        f"; MFU at most {plan.speed.mfu_bound:.1%}, as compiled {plan.speed.mfu_scheduled:.1%}"
        + ("" if expected is None else f", expected {expected.mfu:.0%}")
    )
