"""A forward pass over one batch, shared by the objectives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from plug_jax.config import PlugConfig
from plug_jax.models.plug import PlugModel

Batch = Mapping[str, jax.Array]


class Forward:
    """A forward pass; the encoder runs once for all objectives.

    In training, with dropout, all objectives read the states of the batch's (corrupted) text. In
    evaluation the decoder reads those of uncorrupted text, as in use, so that its metrics before
    and after masked LM is dropped are comparable.
    """

    def __init__(
        self,
        model: PlugModel,
        params: Any,
        batch: Batch,
        *,
        uncorrupted: Callable[[Batch], Batch],
        texts_a_row: int = 1,
        rng: jax.Array | None = None,
        chunk: int = 0,
        perturbation: jax.Array | None = None,
    ) -> None:
        """With `rng` it is training; `chunk`: see `losses.chunked_score`.

        A row of several texts is encoded as several rows, so that attention covers single texts.
        `perturbation` float32 [B,E,M] is added to the encoder's first layer's input.
        """
        self.batch = batch
        self.chunk = chunk
        self.deterministic = rng is None
        self._model, self._params, self._uncorrupted = model, params, uncorrupted
        self._texts_a_row = texts_a_row
        self._perturbation = perturbation
        self._encoder_rng: jax.Array | None = None
        self._rng: jax.Array | None = None
        if rng is not None:
            self._encoder_rng, self._rng = jax.random.split(rng)

    @property
    def config(self) -> PlugConfig:
        """The model's configuration."""
        return self._model.config

    @functools.cached_property
    def encoded(self) -> jax.Array:
        """Encoder states [B,E,M] of the batch's text."""
        return self._encode(self.batch)

    @functools.cached_property
    def context(self) -> jax.Array:
        """Encoder states [B,E,M] that the decoder reads."""
        if not self.deterministic:
            return self.encoded
        clean = self._uncorrupted(self.batch)
        same = clean["encoder_input_tokens"] is self.batch["encoder_input_tokens"]
        return self.encoded if same else self._encode(clean)

    def apply(
        self, method: str, *args: jax.Array | None, dropout: bool = False, **kwargs: Any
    ) -> Any:
        """A method of `PlugModel`; with `dropout`, one that takes `deterministic`."""
        return self._apply(method, *args, rng=self._rng, dropout=dropout, **kwargs)

    def apply_head(self, name: str, head: nn.Module | None, *args: jax.Array, **kwargs: Any) -> Any:
        """Apply the head of the objective with this name, with a dropout key in training."""
        assert head is not None
        rngs = None if self._rng is None else {"dropout": self._rng}
        params = self._params["heads"][name]
        return head.apply({"params": params}, *args, rngs=rngs, **kwargs)

    def _encode(self, batch: Batch) -> jax.Array:
        names = ("input_tokens", "positions", "token_types", "segment_ids")
        rows, length = batch["encoder_input_tokens"].shape
        tokens, positions, token_types, segment_ids = (
            batch[f"encoder_{name}"].reshape(rows * self._texts_a_row, -1) for name in names
        )
        added = self._perturbation
        states: jax.Array = self._apply(
            "encode",
            tokens,
            rng=self._encoder_rng,
            dropout=True,
            positions=positions,
            token_types=token_types,
            segment_ids=segment_ids,
            perturbation=None if added is None else added.reshape(*tokens.shape, -1),
        )
        return states.reshape(rows, length, -1)

    def _apply(
        self,
        method: str,
        *args: jax.Array | None,
        rng: jax.Array | None,
        dropout: bool,
        **kwargs: Any,
    ) -> Any:
        if dropout:
            kwargs["deterministic"] = self.deterministic
        rngs = {"dropout": rng} if dropout and rng is not None else None
        return self._model.apply(
            {"params": self._params}, *args, rngs=rngs, method=method, **kwargs
        )
