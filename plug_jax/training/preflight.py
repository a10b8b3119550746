"""Preflight checks: errors that can be found before the first step."""

from __future__ import annotations

import math
import shutil
from typing import Any

import jax
from etils import epath

from plug_jax.atomic_files import is_remote
from plug_jax.checkpoints.format import CHECKPOINTS, PlainPath
from plug_jax.checkpoints.integrity import steps_in
from plug_jax.data.pipeline.file_checks import check_files
from plug_jax.data.pipeline.pipeline import find_task
from plug_jax.errors import PlugError
from plug_jax.objectives.composition import check_settings
from plug_jax.training.evaluate import Evaluator
from plug_jax.training.feed import Feed
from plug_jax.training.program import TrainConfig


def check_data(config: TrainConfig, feed: Feed, evaluator: Evaluator | None) -> None:
    """PlugError unless a first batch can be made of both splits, from undamaged files.

    The batches are the first of training and evaluation. The first process checks the files. Also
    PlugError unless evaluations have the metric for the best checkpoint, and if an objective cannot
    train on the task.
    """
    for data in filter(None, (config.train_data, config.eval_data)):
        check_settings(config.objectives, find_task(data.mixture_or_task_name), data.split)
        if jax.process_index() == 0:
            check_files(data)
    if evaluator is not None:
        evaluator.read_ahead()
        if config.best is not None:
            config.best.check(evaluator.metric_names())
    feed.read_ahead()


def check_space(config: TrainConfig, state: Any, *, start: int) -> None:
    """PlugError unless MODEL_DIR's disk has room for the coming checkpoints.

    `state`: ShapeDtypeStructs of everything in a checkpoint; `start`: the step from which the run
    resumes. Stores such as gs://, and quotas, cannot be checked.
    """
    if is_remote(config.model_dir) or start >= config.steps or jax.process_index() > 0:
        return
    model_dir = PlainPath.of(config.model_dir)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    count = _to_come(config, model_dir, start)
    free = shutil.disk_usage(model_dir).free
    if size * count > free:
        raise PlugError(
            f"{model_dir} has room for {_text(free)}, and the {count} checkpoints to come need "
            f"{_text(size * count)}, {_text(size)} each: one is written before an older one is "
            "deleted. "
            "Make room, keep fewer (CheckpointConfig.keep), or choose another MODEL_DIR"
        )


def _to_come(config: TrainConfig, model_dir: epath.Path, start: int) -> int:
    """How many checkpoints will be added before old ones are removed, at the most."""
    every, keep = config.checkpoint.every, config.checkpoint.keep

    def multiples(number: int) -> int:
        return config.steps // number - start // number

    evaluated, ends = config.eval_every, config.steps % every > 0  # one more save
    saves = regular = multiples(every) + ends
    if config.best is not None:  # every evaluation may be the best so far, and be saved
        saves += multiples(evaluated) - multiples(math.lcm(every, evaluated))
        saves -= ends and config.steps % evaluated == 0  # the last, counted twice
    if keep is None:
        return saves
    for_good = config.checkpoint.keep_every or config.steps + 1
    passing = sum(step % for_good > 0 for step in steps_in(model_dir / CHECKPOINTS))
    # The best is one more than the newest once `keep` others have followed it. Those are regular,
    # and one more save is to come: the last.
    followed = config.best is not None and regular - 1 + max(passing - 1, 0) >= keep
    return min(saves, multiples(for_good) + max(1, keep + 1 + followed - passing))


def _text(size: int) -> str:
    """Such as 1.50 GB, or 20.3 MB."""
    number = float(size)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.2f} GB"
