"""What a run computes, before any array exists: the loop runs it, the planner compiles it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from plug_jax.config import PlugConfig
from plug_jax.data.feature_converters import model_feature_lengths
from plug_jax.data.pipeline import DatasetConfig
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner
from plug_jax.training import optimizer as optimizer_lib
from plug_jax.training.checkpointing import CheckpointConfig
from plug_jax.training.optimizer import OptimizerConfig
from plug_jax.training.state import StateLayout, state_layout
from plug_jax.training.step import StepConfig, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run: what `plug-jax train` builds from its gin files."""

    model_dir: str
    model: PlugConfig
    train_data: DatasetConfig
    eval_data: DatasetConfig | None  # scored every `eval_every` steps and at the end
    partitioner: Partitioner
    optimizer: OptimizerConfig
    step: StepConfig
    checkpoint: CheckpointConfig
    train_steps: int
    eval_every: int
    log_every: int = 10
    seed: int = 0
    initial_checkpoint: str | None = None  # parameters to start from when MODEL_DIR has none
    profile_steps: tuple[int, int] | None = None  # (first, last) to trace into MODEL_DIR/profile
    compilation_cache_dir: str | None = None  # keeps compiled programs for later runs
    # XLA's options for the train step, such as a mesh/ file has for its chips.
    compiler_options: Mapping[str, str | bool | int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("train_steps", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise PlugError(f"TrainConfig.{name} must be 1 or more, got {getattr(self, name)}")
        if self.profile_steps is not None:
            first, last = (*self.profile_steps, 0, 0)[:2]
            if len(self.profile_steps) != 2 or not 1 <= first <= last <= self.train_steps:
                raise PlugError(
                    "PROFILE_STEPS must be (first, last), two steps in order between 1 and "
                    f"TRAIN_STEPS {self.train_steps}, got {self.profile_steps}"
                )


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """The jitted step of a run, and what it is made of."""

    model: PlugModel
    optimizer: optax.GradientTransformation
    layout: StateLayout  # of the TrainState
    batch: dict[str, jax.ShapeDtypeStruct]  # int32 [B, row length], with shardings
    train_step: Any  # jitted (state, batch) -> (state, metrics); the state is donated

    def trace(self) -> Any:
        """The step as jax traces it at the first call of `train_step`: `.jaxpr`, `.lower()`."""
        return self.train_step.trace(self.layout.with_shardings(), self.batch)

    def lower(self) -> jax.stages.Lowered:
        """The step lowered for the mesh."""
        lowered: jax.stages.Lowered = self.trace().lower()
        return lowered


def train_program(config: TrainConfig) -> TrainProgram:
    """Build the program; call it, and use it, within `config.partitioner.context()`.

    Neither data nor a device's memory are touched, so the mesh may be of devices that can only be
    compiled for. Raises PlugError when the mesh does not divide the model or the batch.
    """
    partitioner, data = config.partitioner, config.train_data
    partitioner.check_batch(data.batch_size, config.step.micro_batches)
    model = PlugModel(config.model)
    schedule = optimizer_lib.make_schedule(config.optimizer, config.train_steps)
    optimizer = optimizer_lib.make_optimizer(config.optimizer, schedule)
    layout = state_layout(model, optimizer, partitioner)
    train_step = make_train_step(
        model,
        optimizer,
        schedule,
        config.step,
        train_steps=config.train_steps,
        seed=config.seed,
        grad_shardings=layout.gradients,
    )
    return TrainProgram(
        model=model,
        optimizer=optimizer,
        layout=layout,
        batch=abstract_batch(data, partitioner),
        train_step=jax.jit(
            train_step,
            in_shardings=(layout.shardings, partitioner.batch_sharding),
            out_shardings=(layout.shardings, partitioner.replicated),
            donate_argnums=0,
            compiler_options=dict(config.compiler_options),
        ),
    )


def abstract_batch(
    data: DatasetConfig, partitioner: Partitioner
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a batch of `data` will be: int32 [B, row length] of every model feature, sharded."""
    return {
        name: jax.ShapeDtypeStruct(
            (data.batch_size, length), jnp.int32, sharding=partitioner.batch_sharding
        )
        for name, length in model_feature_lengths(data.feature_lengths).items()
    }
