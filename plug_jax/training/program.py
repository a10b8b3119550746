"""A run's program, defined before any array exists: the loop runs it, `plan` compiles it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax

from plug_jax.checkpoints.best import Best
from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.config import PlugConfig
from plug_jax.data.features import Feature, feature_lengths, row_features
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.hosts.watchdog import WatchdogConfig
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import (
    Objectives,
    check_objectives,
    check_rows,
    features_of,
    texts_a_row,
)
from plug_jax.partitioning import Partitioner
from plug_jax.techniques.techniques import NO_TECHNIQUES, Techniques
from plug_jax.training import optimizer as optimizer_lib
from plug_jax.training.checkpointing import CheckpointConfig
from plug_jax.training.epochs import rows_of_an_epoch, steps_of
from plug_jax.training.learning_rates import learning_rate_scales
from plug_jax.training.optimizer import OptimizerConfig
from plug_jax.training.safety import DEFAULT_SAFETY, SafetyConfig
from plug_jax.training.state import StateLayout, state_layout
from plug_jax.training.step import StepConfig, make_train_step
from plug_jax.training.trained import Trained

_MOST_STEPS = 2**31 - 1  # the state counts them in int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run: what `plug-jax train` builds from its gin files."""

    model_dir: str
    model: PlugConfig
    objectives: Objectives
    train_data: DatasetConfig
    eval_data: DatasetConfig | None  # scored every `eval_every` steps and at the end
    partitioner: Partitioner
    optimizer: OptimizerConfig
    step: StepConfig
    checkpoint: CheckpointConfig
    train_steps: int | None = None  # alternative to `epochs`
    epochs: float | None = None  # passes over all examples, which are counted first
    eval_every: int
    log_every: int = 10
    seed: int = 0
    initial_checkpoint: str | None = None  # parameters to start from when MODEL_DIR has none
    techniques: Techniques = NO_TECHNIQUES
    best: Best | None = None  # keep the best checkpoint by a metric; early stopping
    safety: SafetyConfig = DEFAULT_SAFETY  # skipped updates and rollbacks
    watchdog: WatchdogConfig = dataclasses.field(default_factory=WatchdogConfig)
    profile_steps: tuple[int, int] | None = None  # (first, last) to trace to MODEL_DIR/profile
    compilation_cache_dir: str | None = None  # keeps compiled programs for later runs
    # Its gin text, written to MODEL_DIR/config.gin.
    config_gin: str | None = dataclasses.field(default=None, compare=False)
    # XLA options for the train step, such as from a mesh/ file.
    compiler_options: Mapping[str, str | bool | int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        check_objectives(self.objectives, self.model)
        check_rows(self.objectives, pack=self.train_data.pack)
        if self.eval_data is not None:
            check_rows(self.objectives, pack=self.eval_data.pack, predict=True)
        if not self.model_dir.strip():
            raise PlugError(
                f"MODEL_DIR is {self.model_dir!r}; name the directory that the run is to write"
            )
        texts = texts_a_row(self.objectives)
        if (self.train_steps is None) == (self.epochs is None):
            raise PlugError(
                "give TRAIN_STEPS or EPOCHS, and set the other to None; got "
                f"{self.train_steps} and {self.epochs}"
            )
        for name in ("train_steps", "eval_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlugError(f"TrainConfig.{name} must be 1 or more, got {value}")
        if self.epochs is not None and not self.epochs > 0:
            raise PlugError(f"EPOCHS must be positive, got {self.epochs}")
        if self.train_steps is not None and self.train_steps > _MOST_STEPS:
            raise PlugError(f"TRAIN_STEPS is at most {_MOST_STEPS:,}, got {self.train_steps:,}")
        if self.best is not None and self.eval_data is None:
            raise PlugError(
                f"the best checkpoint by {self.best.metric!r} needs evaluations, and there is no "
                "EVAL_DATA"
            )
        if not 0 <= self.seed < 2**32:  # jax's keys are made of 32 bits
            raise PlugError(f"RANDOM_SEED must be 0 or more, below 2**32, got {self.seed}")
        for data in filter(None, (self.train_data, self.eval_data)):
            longest = max(data.feature_lengths.values(), default=0)
            if longest % texts:
                raise PlugError(
                    f"a row of {longest:,} tokens cannot be divided into {texts} texts of equal "
                    "length; change TASK_FEATURE_LENGTHS"
                )
            if not data.pack and longest > texts * self.model.max_positions:
                raise PlugError(
                    f"without packing a row of {longest:,} tokens is one example"
                    f"{f' of {texts} texts' if texts > 1 else ''}, and the model has "
                    f"{self.model.max_positions:,} positions; shorten TASK_FEATURE_LENGTHS, or pack"
                )
        if self.profile_steps is not None:
            first, last = self.profile_steps
            if not 1 <= first <= last <= (self.train_steps or _MOST_STEPS):
                raise PlugError(
                    "PROFILE_STEPS must be (first, last), two steps in order between 1 and "
                    f"TRAIN_STEPS {self.train_steps}, got {self.profile_steps}"
                )

    @property
    def steps(self) -> int:
        """Number of steps, once known (see `in_steps`)."""
        assert self.train_steps is not None, "epochs were not counted"
        return self.train_steps

    def in_steps(self) -> TrainConfig:
        """The same run with its length in steps; for epochs this reads the data once."""
        if self.epochs is None:
            return self
        rows = rows_of_an_epoch(self.train_data, features_of(self.objectives))
        steps = steps_of(self.epochs, rows, self.train_data.batch_size)
        return dataclasses.replace(self, epochs=None, train_steps=steps)


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """The jitted step of a run, and its parts."""

    model: PlugModel
    optimizer: optax.GradientTransformation
    layout: StateLayout  # of the TrainState
    batch: dict[str, jax.ShapeDtypeStruct]  # [B, row length], with shardings
    train_step: Any  # jitted (state, batch) -> (state, metrics); the state is donated

    def trace(self) -> Any:
        """The step as traced by the first call of `train_step`: `.jaxpr`, `.lower()`."""
        return self.train_step.trace(self.layout.with_shardings(), self.batch)

    def lower(self) -> jax.stages.Lowered:
        """The step lowered for the mesh."""
        lowered: jax.stages.Lowered = self.trace().lower()
        return lowered


def train_program(config: TrainConfig) -> TrainProgram:
    """Build the program; call it, and use it, within `config.partitioner.context()`.

    Uses neither data nor device memory, so the mesh may consist of devices that are only compiled
    for. Raises PlugError if the mesh does not divide the model or the batch.
    """
    partitioner, data = config.partitioner, config.train_data
    partitioner.check_batch(data.batch_size, config.step.micro_batches)
    model = PlugModel(config.model)
    lora = config.techniques.lora
    params = nn.unbox(abstract_params(model, config.objectives, lora))
    frozen = config.optimizer.freeze + (lora.frozen(params) if lora else ())
    trained = Trained.of(frozen, params)
    scales = learning_rate_scales(
        config.optimizer.layer_decay, config.optimizer.learning_rate_multipliers, params
    )
    child_tuning = config.techniques.child_tuning
    schedule = optimizer_lib.make_schedule(config.optimizer, config.steps)
    optimizer = optimizer_lib.make_optimizer(
        config.optimizer,
        schedule,
        scales=None if scales is None else trained.take(scales),
        masking=child_tuning.transformation(config.seed) if child_tuning else None,
    )
    layout = state_layout(model, config.objectives, optimizer, partitioner, trained, lora)
    train_step = make_train_step(
        model,
        config.objectives,
        optimizer,
        schedule,
        config.step,
        train_steps=config.steps,
        seed=config.seed,
        grad_shardings=layout.gradients,
        trained=trained,
        techniques=config.techniques,
        safety=config.safety,
    )
    return TrainProgram(
        model=model,
        optimizer=optimizer,
        layout=layout,
        batch=abstract_batch(data, features_of(config.objectives), partitioner),
        train_step=jax.jit(
            train_step,
            in_shardings=(layout.shardings, partitioner.batch_sharding),
            out_shardings=(layout.shardings, partitioner.replicated),
            donate_argnums=0,
            compiler_options=dict(config.compiler_options),
        ),
    )


def abstract_batch(
    data: DatasetConfig, features: Sequence[Feature], partitioner: Partitioner
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of `data`: rows [B, row length] for the row features of `features`."""
    rows = {one.name: one.dtype for one in row_features(features)}
    return {
        name: jax.ShapeDtypeStruct(
            (data.batch_size, length), rows[name], sharding=partitioner.batch_sharding
        )
        for name, length in feature_lengths(data.feature_lengths, rows).items()
    }
