"""What an objective is: a value that says all that a run, a plan and `inspect` must know of it.

To add one, write a subclass of `Objective` in a file of its own, and name it in OBJECTIVES.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax.config import PlugConfig
from plug_jax.data.features import Feature
from plug_jax.data.vocabularies import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.evaluation.decoded_examples import Corruption, Example, Fate, Section
from plug_jax.evaluation.task_counting import Tally
from plug_jax.evaluation.task_settings import AskedLengths, TaskSettings
from plug_jax.field_types import check_fields
from plug_jax.metrics import Mean
from plug_jax.models.flops import RowShape
from plug_jax.models.torch_tensors import Entry
from plug_jax.objectives.forward import Batch, Forward


class Progress(NamedTuple):
    """How far training is."""

    step: jax.Array  # int32 scalar: steps done
    train_steps: int  # of the whole run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """One of the things that a run trains.

    The run's loss is the sum over its objectives of `weight` times the mean loss of a prediction.
    Axis letters below: B rows, E encoder and D decoder row length, M model.
    """

    weight: float = 1.0

    # Its loss is the metric NAME_loss, the parameters of a head of its own are heads/NAME.
    name: ClassVar[str]
    stage: ClassVar[int | None] = None  # PLUG's stage of training that it tells
    packs: ClassVar[bool] = True  # whether a row may hold several examples
    reads_encoder: ClassVar[bool] = True  # whether it needs the states of an encoder
    # Features, one a side, that hold the text of an example as it was written.
    text_features: ClassVar[tuple[str, ...]] = ()
    # What token types stand for, where they tell segments apart.
    segment_names: ClassVar[Mapping[int, str]] = {}
    # Tensors of PyTorch's checkpoints that it alone needs.
    tensors: ClassVar[tuple[Entry, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.weight < float("inf"):
            raise PlugError(
                f"{type(self).__name__}.weight must be positive and finite, got {self.weight}; "
                "leave an objective that is not wanted out of OBJECTIVES"
            )

    # What it reads.

    @property
    @abc.abstractmethod
    def features(self) -> tuple[Feature, ...]:
        """What a task must give for it. A batch has rows of them, [B,E] or [B,D] by their side."""

    @property
    def texts_a_row(self) -> int:
        """How many texts an example is, that the encoder reads apart.

        Each has an equal part of the row, positions from 0 and a segment id of its own.
        """
        return 1

    def problem(self, config: PlugConfig) -> str | None:
        """Why it cannot train such a model, and what to do; None: it can."""
        return None

    # What it computes.

    def head(self, config: PlugConfig) -> nn.Module | None:
        """A module of its own, which is initialised with states [1,1,M]; None: the model has all.

        Its parameters carry logical axes, as those of `plug_jax.models.layers` do.
        """
        return None

    def prepare(self, batch: Batch, progress: Progress | None) -> Batch:
        """The whole batch before it is divided into micro-batches; `progress` None: evaluation."""
        return batch

    def uncorrupted(self, batch: Batch) -> Batch:
        """The batch with the encoder's text as it was written."""
        return batch

    @abc.abstractmethod
    def predictions(self, batch: Batch) -> jax.Array:
        """float32 scalar: how many predictions of a prepared batch its loss is the mean of."""

    @abc.abstractmethod
    def metrics(self, forward: Forward) -> dict[str, Mean]:
        """Sums over `forward.batch`; the loss is NAME_loss."""

    def outputs(self, forward: Forward) -> dict[str, jax.Array]:
        """What predictions are made of, [B, ...] by name, where a row is one example; {}: nothing.

        With the feature `example_index`, which says whose they are.
        """
        return {}

    def distributions(self, forward: Forward) -> tuple[jax.Array, jax.Array] | None:
        """Logits [..., C] of what it predicts, and int32 or float32 weights [...] of each
        prediction; None: it predicts no distribution.
        """
        return None

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """Further values by name, of those that were summed over the batches."""
        return {}

    @abc.abstractmethod
    def flops(self, config: PlugConfig, rows: RowShape) -> Mapping[str, int]:
        """FLOPs of its forward pass by part of the model; the encoder's own are counted already."""

    # What `plug-jax inspect` shows of it.

    @property
    def fates(self) -> tuple[Fate, ...]:
        """What can become of a token of the encoder."""
        return ()

    def corruption(self, example: Example, vocabulary: PlugVocabulary) -> Corruption | None:
        """What it changed in the encoder's text; None: nothing."""
        return None

    def facts(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        """Names and texts to show of an example."""
        yield from ()

    def sections(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[Section]:
        """Texts of an example to show after the encoder's."""
        yield from ()

    def asked_lengths(self, settings: TaskSettings) -> dict[str, AskedLengths]:
        """How long a task with these settings makes its examples, by side."""
        return {}

    def tally(self, vocabulary: PlugVocabulary, settings: TaskSettings) -> Tally | None:
        """What counts it over many examples of a task with these settings."""
        return None


def count(weights: jax.Array) -> jax.Array:
    """The sum of int32 weights as a float32 scalar: what most objectives' `predictions` are."""
    return jnp.sum(weights).astype(jnp.float32)
