"""A run's compiled step over given batches without data: for tests of training."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.metrics import Mean, add
from plug_jax.objectives.composition import summarize_metrics
from plug_jax.objectives.stages import STRUCTBERT
from plug_jax.partitioning import Partitioner, put_batch
from plug_jax.tasks import pretrain
from plug_jax.training.checkpointing import CheckpointConfig
from plug_jax.training.optimizer import OptimizerConfig
from plug_jax.training.program import TrainConfig, TrainProgram, train_program
from plug_jax.training.state import TrainState, init_state
from plug_jax.training.step import StepConfig
from plug_jax.training.timing import StepTimer
from tests import synthetic, tiny_run

ONE_DEVICE = Partitioner(data=1, devices=tuple(jax.devices()[:1]))
MESH = Partitioner(data=2, fsdp=2, tensor=2)


def run_config(**changes: Any) -> TrainConfig:
    """Stage 1 of a tiny model on one device, batches as `synthetic.batch()` makes them."""
    values: dict[str, Any] = {
        "model_dir": "nowhere",
        "model": synthetic.tiny_config(num_decoder_layers=0),
        "objectives": STRUCTBERT,
        "train_data": DatasetConfig("none", {"encoder": 24}, "train", 8, shuffle=True, seed=0),
        "eval_data": None,
        "partitioner": ONE_DEVICE,
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.0, epsilon=1e-3),
        "step": StepConfig(),
        "checkpoint": CheckpointConfig(every=1),
        "train_steps": 10,
        "eval_every": 1,
        "seed": 3,
    }
    return TrainConfig(**(values | changes))


def write_task(root: Path, name: str) -> DatasetConfig:
    """A stage-1 task over 40 documents, vocabulary of 38 pieces; unpacked, in batches of 8."""
    rng = np.random.default_rng(0)
    documents = [
        "".join("".join(rng.choice(list(tiny_run.CHARACTERS), 6)) + "。" for _ in range(8))
        for _ in range(40)
    ]
    tiny_run.write_documents(root / "text.txt", documents)
    tiny_run.write_vocabulary(root / "vocab.txt")
    files = dict.fromkeys(("train_files", "validation_files"), str(root / "text.txt"))
    pretrain.structbert_text(**files, vocabulary=str(root / "vocab.txt"), max_length=24, name=name)
    return DatasetConfig(
        name, {"encoder": 24}, "train", batch_size=8, shuffle=True, seed=1, pack=False
    )


@contextlib.contextmanager
def program_of(config: TrainConfig) -> Iterator[TrainProgram]:
    """The program, within its mesh."""
    with config.partitioner.context():
        yield train_program(config)


def start(config: TrainConfig, program: TrainProgram) -> TrainState:
    return init_state(
        program.model, config.objectives, program.optimizer, program.layout, seed=config.seed
    )


def run(
    config: TrainConfig, batches: Sequence[Mapping[str, np.ndarray]]
) -> tuple[TrainState, TrainState, list[dict[str, float]]]:
    """The state before and after the steps, and the metrics of each."""
    with program_of(config) as program:
        before = jax.device_get(start(config, program))
        state, values = start(config, program), []
        for batch in batches:
            state, metrics = program.train_step(
                state, put_batch(batch, config.partitioner.batch_sharding)
            )
            values.append(summarize_metrics(config.objectives, add([metrics])))
        return before, jax.device_get(state), values


def assert_close(a: Any, b: Any, atol: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a real SIGINT in the step of this number."""
    dispatched = StepTimer.dispatched
    calls = []

    def interrupted(timer: StepTimer, tokens: Mean) -> None:
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)
        dispatched(timer, tokens)

    monkeypatch.setattr(StepTimer, "dispatched", interrupted)
