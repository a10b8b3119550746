"""A fine-tuned model for inference: encoder and head, one program per length bucket.

Axis letters: R rows, one example each, T texts of a row, L tokens of a text.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from plug_jax.checkpoints.saved_model import open_checkpoint
from plug_jax.config import ComputeDtype, PlugConfig
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.examples import Examples
from plug_jax.downstream.formats import Format, Outputs
from plug_jax.downstream.kinds import described_format
from plug_jax.inference.placement import PlacedModel, power_of_two, read_parts, to_host
from plug_jax.inference.quantization import dequantize_projections
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import predict
from plug_jax.partitioning import Partitioner

Example = Mapping[str, np.ndarray]  # features by name, [T, L] each, with L of the longest text


class FineTunedModel(PlacedModel):
    """Encoder, head, vocabulary and format, all from one checkpoint.

    Texts are padded to a bucket, the next power of two from 32 up to the format's `max_length`, and
    rows to a power of two. Outputs equal those of a training run's evaluation.
    """

    def __init__(
        self,
        config: PlugConfig,
        params: Mapping[str, Any],
        vocabulary: PlugVocabulary,
        format: Format,
        partitioner: Partitioner | None = None,
        *,
        batch_size: int = 32,
    ) -> None:
        """`params` of the model and the format's objective; `batch_size` in texts."""
        super().__init__(config, params, vocabulary, partitioner)
        self.format = format
        objective = format.make_objective()
        self.texts_a_row = objective.texts_a_row
        self._most_rows = self.rows(max(1, batch_size // self.texts_a_row))
        self._predict = jax.jit(functools.partial(predict, (objective,), PlugModel(config)))

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str],
        partitioner: Partitioner | None = None,
        dtype: ComputeDtype | None = None,
        *,
        int8: bool = False,
        batch_size: int = 32,
        verify: bool = True,
    ) -> FineTunedModel:
        """Like `PlacedModel.load`, with the head, which `int8` does not change.

        At most `batch_size` texts are processed at a time.

        Raises:
            PlugError: no checkpoint, or one that was not fine-tuned.
        """
        format_ = described_format(open_checkpoint(checkpoint).task)
        objectives = (format_.make_objective(),)
        parts = read_parts(
            checkpoint, partitioner, dtype, int8=int8, verify=verify, objectives=objectives
        )
        return cls(*parts, format_, partitioner, batch_size=batch_size)

    @property
    def longest(self) -> int:
        """Tokens of the longest text of an example."""
        return self.format.max_length

    def examples(self, examples: Examples) -> list[Example]:
        """The examples one by one, as `outputs` takes them."""
        bounds = zip(examples.splits[:-1], examples.splits[1:], strict=True)
        rows = [
            {name: values[first:last] for name, values in examples.values.items()}
            for first, last in bounds
        ]
        return [_by_texts(row, self.texts_a_row) for row in rows]

    def outputs(self, examples: Sequence[Example]) -> Outputs:
        """The objective's outputs for each example, [n, ...] by name; texts are padded to a bucket.

        All processes of a mesh must call it, with the same examples.
        """
        length = self.bucket(max(map(text_length, examples)))
        made = [
            self._outputs_of_rows(examples[first : first + self._most_rows], length)
            for first in range(0, len(examples), self._most_rows)
        ]
        return {name: np.concatenate([one[name] for one in made]) for name in made[0]}

    def _outputs_of_rows(self, examples: Sequence[Example], length: int) -> Outputs:
        rows = self.rows(min(power_of_two(len(examples)), self._most_rows))
        batch = {
            name: np.stack([_padded(example[name], length) for example in examples])
            for name in examples[0]
        }
        with self.context(), nn.intercept_methods(dequantize_projections):
            made = to_host(self._predict(self.params, self.padded(batch, rows)))
        return {name: values[: len(examples)] for name, values in made.items()}


def text_length(example: Example) -> int:
    """Length of its longest text in tokens."""
    return int(example["encoder_segment_ids"].shape[1])


def _by_texts(row: Mapping[str, np.ndarray], texts: int) -> Example:
    """An example's features [T * L] as [T, L'], adding segment ids and positions if missing.

    L' excludes positions that are padding in all texts.
    """
    example = {name: values.reshape(texts, -1) for name, values in row.items()}
    tokens = example["encoder_input_tokens"]
    example.setdefault("encoder_segment_ids", np.ones_like(tokens))
    example.setdefault(
        "encoder_positions", np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    )
    longest = int((example["encoder_segment_ids"] > 0).sum(axis=1).max())
    return {
        name: values[:, :longest].astype(np.float32 if values.dtype.kind == "f" else np.int32)
        for name, values in example.items()
    }


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """[T, L] as [T * length]."""
    return np.pad(values, ((0, 0), (0, length - values.shape[1]))).reshape(-1)
