"""A MODEL_DIR of a tiny model with two different checkpoints, and its three readers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.checkpoints.best import Best
from plug_jax.checkpoints.format import CHECKPOINTS
from plug_jax.checkpoints.saved_model import open_checkpoint
from plug_jax.data.vocabularies.vocabulary import WordPieceVocabulary
from plug_jax.errors import PlugError
from plug_jax.training.checkpointing import CheckpointConfig, Checkpoints
from plug_jax.training.state import StateLayout, TrainState
from tests.inference_model import CONFIG, lively_params
from tests.stored_model import write_vocabulary

OLD, NEW = 100, 200
MODEL = dataclasses.replace(CONFIG, vocab_size=60)


@dataclasses.dataclass
class Place:
    """A data position."""

    position: int = 0

    def save(self, directory: Any) -> None:
        (directory / "place.json").write_text(json.dumps(self.position))

    def restore(self, directory: Any, *, restart_changed: bool = False) -> None:
        self.position = json.loads((directory / "place.json").read_text())


def arrays(step: int, dtype: Any = jnp.float32, *, repeats: int = 1) -> Any:
    """Parameters of a step, which also determine its slots."""
    params = lively_params(MODEL)
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.repeat(leaf + step, repeats, axis=0), dtype), params
    )


def open_run(model_dir: Path, *, verify: bool = True) -> Checkpoints:
    return Checkpoints(
        model_dir,
        CheckpointConfig(every=1, verify=verify),
        model=MODEL,
        vocabulary=WordPieceVocabulary(write_vocabulary(model_dir, MODEL.vocab_size)),
        best=Best("accuracy"),
    )


def save(run: Checkpoints, step: int, dtype: Any = jnp.float32, *, repeats: int = 1) -> None:
    params = arrays(step, dtype, repeats=repeats)
    state = TrainState(jnp.int32(step), params, {"mu": params})
    run.save(state, Place(step), best_metrics={"accuracy": step / 1000})


def write_run(model_dir: Path, dtype: Any = jnp.float32, *, repeats: int = 1) -> Path:
    run = open_run(model_dir)
    for step in (OLD, NEW):
        save(run, step, dtype, repeats=repeats)
    run.close()
    return model_dir


def layout() -> StateLayout:
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays(0))
    abstract = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, {"mu": params})
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return StateLayout(abstract, jax.tree.map(lambda _: device, abstract), None)


def resume(model_dir: Path, *, verify: bool = True) -> int | PlugError:
    """The step from which training resumes, after checking all its arrays; or the error."""
    run, place = open_run(model_dir, verify=verify), Place()
    try:
        state, _ = run.restore(layout(), place)
    except PlugError as error:
        return error
    finally:
        run.close()
    step = int(state.step)
    assert place.position == step
    right = arrays(step)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state["mu"]), (right,) * 2)
    return step


def read(model_dir: Path) -> int | PlugError:
    """The step that a command reads, after checking all its arrays; or the error."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    try:
        saved = open_checkpoint(model_dir)
        assert saved.vocabulary().vocab_size == MODEL.vocab_size
        params = saved.params(jax.tree.map(lambda _: device, arrays(0)))
    except PlugError as error:
        return error
    jax.tree.map(np.testing.assert_array_equal, params, arrays(saved.step))
    return saved.step


def step_of(model_dir: Path, step: int = NEW) -> Path:
    return model_dir / CHECKPOINTS / str(step)
