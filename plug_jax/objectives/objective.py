"""The Objective interface, for runs, plans and `inspect`.

To add one, write a subclass of `Objective` in its own file, and name it in OBJECTIVES.
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
from plug_jax.data.task_settings import AskedLengths, TaskSettings
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.metrics import Mean
from plug_jax.models.flops import RowShape
from plug_jax.models.torch_tensors import Entry
from plug_jax.objectives.examples import Corruption, Example, Fate, Section
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.shares import Tally


class Progress(NamedTuple):
    """The current step and the total number of steps."""

    step: jax.Array  # int32 scalar: steps done
    train_steps: int  # of the whole run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """A training objective.

    The run's loss is the sum over its objectives of `weight` times the mean loss per prediction.
    Axis letters below: B rows, E encoder and D decoder row length, M model.
    """

    weight: float = 1.0

    # Its loss is the metric NAME_loss, its own head's parameters are heads/NAME.
    name: ClassVar[str]
    stage: ClassVar[int | None] = None  # the stage of PLUG's training that it identifies
    packs: ClassVar[bool] = True  # whether a row may have several examples
    reads_encoder: ClassVar[bool] = True  # whether it needs encoder states
    # Features, one per side, with an example's original text.
    text_features: ClassVar[tuple[str, ...]] = ()
    # Meaning of token types, if they distinguish segments.
    segment_names: ClassVar[Mapping[int, str]] = {}
    # PyTorch tensors that only this objective needs.
    tensors: ClassVar[tuple[Entry, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.weight < float("inf"):
            raise PlugError(
                f"{type(self).__name__}.weight must be positive and finite, got {self.weight}; "
                "leave an objective that is not wanted out of OBJECTIVES"
            )

    # Inputs.

    @property
    @abc.abstractmethod
    def features(self) -> tuple[Feature, ...]:
        """The features required from a task. A batch has rows of them, [B,E] or [B,D] by side."""

    @property
    def texts_a_row(self) -> int:
        """Number of texts in an example that the encoder reads separately.

        Each has an equal part of the row, positions from 0 and its own segment id.
        """
        return 1

    def problem(self, config: PlugConfig) -> str | None:
        """Why it cannot train such a model, and what to do; None if it can."""
        return None

    # Computation.

    def head(self, config: PlugConfig) -> nn.Module | None:
        """Its own module, initialised with states [1,1,M]; None if the model has all it needs.

        Its parameters carry logical axes, like those of `plug_jax.models.layers`.
        """
        return None

    def prepare(self, batch: Batch, progress: Progress | None) -> Batch:
        """Prepare the whole batch, before micro-batching; `progress` None: evaluation."""
        return batch

    def uncorrupted(self, batch: Batch) -> Batch:
        """The batch with the encoder's original text."""
        return batch

    @abc.abstractmethod
    def predictions(self, batch: Batch) -> jax.Array:
        """float32 scalar: number of predictions in a prepared batch, the divisor of its loss."""

    @abc.abstractmethod
    def metrics(self, forward: Forward) -> dict[str, Mean]:
        """Sums over `forward.batch`; the loss is NAME_loss."""

    def outputs(self, forward: Forward) -> dict[str, jax.Array]:
        """Outputs for predictions, [B, ...] by name, if a row is one example; {}: none.

        The feature `example_index` attributes them to examples.
        """
        return {}

    def distributions(self, forward: Forward) -> tuple[jax.Array, jax.Array] | None:
        """Logits [..., C] of its predictions, and their int32 or float32 weights [...], whose sum
        is `predictions`; None if it predicts no distribution.
        """
        return None

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """Further values by name, derived from those summed over batches."""
        return {}

    @abc.abstractmethod
    def flops(self, config: PlugConfig, rows: RowShape) -> Mapping[str, int]:
        """FLOPs of its forward pass by part of the model, beyond the encoder's own."""

    def check_settings(self, settings: TaskSettings) -> None:
        """Raise PlugError if it cannot train on a task with these settings of its preprocessors."""
        return None

    # Display in `plug-jax inspect`.

    @property
    def fates(self) -> tuple[Fate, ...]:
        """The possible fates of an encoder token."""
        return ()

    def corruption(self, example: Example, vocabulary: PlugVocabulary) -> Corruption | None:
        """Its changes to the encoder's text; None: none."""
        return None

    def facts(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        """Names and texts to show for an example."""
        yield from ()

    def sections(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[Section]:
        """Texts of an example to show after the encoder's."""
        yield from ()

    def asked_lengths(self, settings: TaskSettings) -> dict[str, AskedLengths]:
        """The example lengths of a task with these settings, by side."""
        return {}

    def tally(self, vocabulary: PlugVocabulary, settings: TaskSettings) -> Tally | None:
        """Running counts over many examples of a task with these settings."""
        return None


def count(weights: jax.Array) -> jax.Array:
    """The sum of int32 weights as a float32 scalar, for most objectives' `predictions`."""
    return jnp.sum(weights).astype(jnp.float32)
