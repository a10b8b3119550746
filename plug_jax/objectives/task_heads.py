"""Common parts of the fine-tuning objectives: a small head on the encoder's states."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax.config import PlugConfig
from plug_jax.data.features import ENCODER_TEXT, EXAMPLE_INDEX, Feature
from plug_jax.errors import PlugError
from plug_jax.models.flops import RowShape
from plug_jax.models.layers import Dropout, projection
from plug_jax.models.torch_tensors import Entry, linear
from plug_jax.objectives.forward import Forward
from plug_jax.objectives.objective import Objective

OUT_OF_QUESTION = -1e9  # the logit of an impossible answer: its exp is 0


class TaskHead(nn.Module):
    """Dropout and a linear layer; with `pooler`, BERT's tanh pooler before them."""

    config: PlugConfig
    features: int
    dropout_rate: float
    pooler: bool

    def setup(self) -> None:
        """Declare the layers."""
        c = self.config
        if self.pooler:
            self.dense = projection(c, c.hidden_size, axes=("embed", "mlp"))
        self.dropout = Dropout(self.dropout_rate)
        self.output = projection(c, self.features, axes=("embed", None))

    def __call__(self, states: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """[...,M] -> float32 [...,features]."""
        if self.pooler:
            states = nn.tanh(self.dense(states))
        states = self.dropout(states, deterministic=deterministic)
        return self.output(states).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskObjective(Objective):
    """A fine-tuning objective: `width` outputs from an encoder state."""

    dropout_rate: float = 0.1  # on the head's input
    # Whether it reads states through BERT's pooler: the model's if it has one, else its own.
    pooler: bool = False

    # Names in transformers of the model with the head, and of the head's linear layer.
    torch_class: ClassVar[str]
    torch_name: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout_rate < 1:
            raise PlugError(
                f"{type(self).__name__}.dropout_rate must be in [0, 1), got {self.dropout_rate}"
            )

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Number of outputs per state."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """The text, the example's index, and the objective's own features."""
        return (*ENCODER_TEXT, EXAMPLE_INDEX)

    @property
    def tensors(self) -> tuple[Entry, ...]:  # type: ignore[override]
        """The head's linear layers; its pooler has the name of BERT's."""
        pooler = linear(f"heads/{self.name}/dense", "bert.pooler.dense") if self.pooler else ()
        return (*pooler, *linear(f"heads/{self.name}/output", self.torch_name))

    @property
    def torch_labels(self) -> tuple[str, ...]:
        """Names of the head's outputs, for transformers."""
        return ()

    def head(self, config: PlugConfig) -> TaskHead:
        """The head, which uses the model's pooler if there is one."""
        own_pooler = self.pooler and not config.use_pooler
        return TaskHead(config, self.width, self.dropout_rate, own_pooler)

    def logits(self, forward: Forward, states: jax.Array) -> jax.Array:
        """float32 [...,width] of encoder states [...,M]."""
        if self.pooler and forward.config.use_pooler:
            states = forward.apply("pool", states)
        logits: jax.Array = forward.apply_head(
            self.name, self.head(forward.config), states, deterministic=forward.deterministic
        )
        return logits

    def flops(self, config: PlugConfig, rows: RowShape) -> Mapping[str, int]:
        """The head at every position of a row."""
        a_token = config.hidden_size * (self.width + (config.hidden_size if self.pooler else 0))
        return {f"{self.name}_head": 2 * rows.batch_size * rows.encoder * a_token}


def check_labels(objective: TaskObjective, labels: tuple[str, ...]) -> None:
    """PlugError for fewer than two labels, or a duplicate."""
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise PlugError(
            f"{type(objective).__name__}.labels must be two different ones or more, got {labels}"
        )
