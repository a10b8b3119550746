"""Fine-tuned runs and their outputs on a split."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from plug_jax.atomic_files import write_whole
from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.checkpoints.saved_model import SavedModel, open_checkpoint
from plug_jax.checkpoints.saving import REFUSALS, reason_of
from plug_jax.data.features import ENCODER
from plug_jax.downstream.formats import Answer, Outputs
from plug_jax.downstream.kinds import described_format
from plug_jax.downstream.record_task import RecordTask, SplitRecords, read_as, register
from plug_jax.models.plug import PlugModel
from plug_jax.training.evaluate import Evaluator
from plug_jax.training.program import TrainConfig

_OUTPUTS = "outputs"  # in MODEL_DIR: cached outputs
# By everything that affects compilation, so that the runs of a sweep share a program.
_evaluators: dict[str, Evaluator] = {}


@dataclasses.dataclass(frozen=True)
class FineTunedRun:
    """A run's checkpoint, and its task's records in the checkpoint's format."""

    path: str
    task: str  # the seqio task's name
    saved: SavedModel
    config: TrainConfig
    records: SplitRecords

    @classmethod
    def of(cls, path: str | os.PathLike[str], config: TrainConfig) -> FineTunedRun:
        """The run in a MODEL_DIR; `config` is the run's.

        Format, labels and vocabulary are the checkpoint's.

        Raises:
            PlugError: no checkpoint, or it was not fine-tuned for the task of `config`.
        """
        saved = open_checkpoint(path)
        task = config.train_data.mixture_or_task_name
        records = read_as(task, described_format(saved.task), saved.vocabulary())
        return cls(os.fspath(path), task, saved, config, records)

    def outputs(self, split: str) -> Outputs:
        """The model's outputs for each example of a split, cached in MODEL_DIR/outputs.

        They are recomputed for another checkpoint, if the records have changed, or if the cache is
        damaged. A cache that cannot be written is reported and left out.
        """
        records = repr(self.records.records(split)).encode()
        made_of = {
            "checkpoint": [self.saved.step, self.saved.path.stat().mtime],
            "task": self.saved.task,
            "records": hashlib.sha256(records).hexdigest(),
        }
        path = epath.Path(self.path) / _OUTPUTS / f"{self.task}-{split}.npz"
        kept = _read(path, made_of)
        if kept is None:
            kept = self._compute(split)
            if jax.process_index() == 0:
                _write(path, made_of, kept)
        return kept

    def answers(self, split: str) -> Sequence[Answer]:
        """The answers to each record of a split."""
        return self.records.answers(split, self.outputs(split))

    def metrics(self, split: str) -> dict[str, float]:
        """Metrics in percent."""
        return self.records.metrics(split, self.outputs(split))

    def _compute(self, split: str) -> Outputs:
        config = self.config
        data = dataclasses.replace(
            config.eval_data or config.train_data,
            feature_lengths={ENCODER: self.records.format.row_length},
            split=split,
            shuffle=False,
            num_epochs=1,
            pack=False,
            streams=None,
        )
        register(RecordTask(self.task, self.records))  # another run may have the name by now
        objectives = (self.records.format.make_objective(),)
        model = dataclasses.replace(self.saved.config, attention=config.model.attention)
        key = repr((model, objectives, data, config.partitioner, config.step))
        if key not in _evaluators:
            _evaluators[key] = Evaluator(model, objectives, data, config.partitioner, config.step)
        boxed = abstract_params(PlugModel(model), objectives)
        params = self.saved.params(config.partitioner.param_shardings(boxed), "float32")
        return _evaluators[key].outputs(params)


def _read(path: epath.Path, made_of: Mapping[str, object]) -> Outputs | None:
    """Cached outputs, if made from the same checkpoint and records; None if unreadable."""
    try:
        if not path.exists():
            return None
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["made_of"]) != _text(made_of):
                return None
            return {name: arrays[name] for name in arrays.files if name != "made_of"}
    except Exception as error:  # numpy, zipfile and zlib raise many classes for damaged bytes
        print(f"{path} is computed again: it is unreadable ({reason_of(error)})", file=sys.stderr)
        return None


def _write(path: epath.Path, made_of: Mapping[str, object], outputs: Outputs) -> None:
    """Cache the outputs; says it if that is impossible."""
    arrays: dict[str, Any] = {"made_of": np.array(_text(made_of)), **outputs}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue(), shared=True)  # commands may score a run at once
    except REFUSALS as error:  # such as a run of others, which is read-only
        print(f"{path} is not kept for the next time: {reason_of(error)}", file=sys.stderr)


def _text(made_of: Mapping[str, object]) -> str:
    return json.dumps(made_of, ensure_ascii=False, sort_keys=True)
