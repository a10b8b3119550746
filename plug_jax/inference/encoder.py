"""An encoder for inference: states, vectors, masked tokens; one program per length bucket.

Axis letters: R rows, one text each, L tokens of a text, M model, P masked tokens of a text, V
padded vocabulary, K candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.checkpoints.parameters import HEADS
from plug_jax.config import PlugConfig
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.inference.placement import PlacedModel, power_of_two, to_host
from plug_jax.inference.programs import Params, apply
from plug_jax.inference.request_options import Pooling
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner


class EncoderModel(PlacedModel):
    """Encoder, masked LM head and vocabulary of any checkpoint, without decoder and other heads.

    Texts are [CLS] text [SEP], padded to a bucket (the next power of two, at least 32); batches are
    padded with copies of the last text. A text's result does not depend on its neighbours.
    """

    READS_DECODER = False

    def __init__(
        self,
        config: PlugConfig,
        params: Mapping[str, Any],
        vocabulary: PlugVocabulary,
        partitioner: Partitioner | None = None,
    ) -> None:
        """Take the needed part of `params`, from training or another inference model.

        Raises:
            PlugError: the vocabulary is not the one that the model was trained with.
        """
        config = dataclasses.replace(config, num_decoder_layers=0)
        own = {name: part for name, part in params.items() if name not in ("decoder", HEADS)}
        super().__init__(config, own, vocabulary, partitioner)
        programs = EncoderPrograms(PlugModel(config), vocabulary.vocab_size)
        # Programs compile on their first call.
        self._states = jax.jit(programs.states)
        self._vectors = jax.jit(programs.vectors)
        self._fill = jax.jit(programs.fill, static_argnames="candidates")

    @classmethod
    def of(cls, model: PlacedModel) -> EncoderModel:
        """The encoder of an existing model, sharing its parameters."""
        return cls(model.config, model.params, model.vocabulary, model.partitioner)

    def states(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The encoder's states of each text, float32 [its tokens, M]; ids have [CLS] and [SEP].

        All processes of a mesh must call it, with the same texts.
        """
        with self.context():
            found = to_host(self._states(self.params, *self.batch(texts)))
        return [found[row, : len(ids)] for row, ids in enumerate(texts)]

    def vectors(self, texts: Sequence[Sequence[int]], pooling: Pooling) -> np.ndarray:
        """A vector per text, float32 [texts, M]; see `EncoderPrograms.vectors`."""
        with self.context():
            found = to_host(self._vectors(self.params, *self.batch(texts))[pooling])
        vectors: np.ndarray = found[: len(texts)]
        return vectors

    def fill(
        self, texts: Sequence[Sequence[int]], places: Sequence[Sequence[int]], candidates: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The likeliest pieces at given positions of each text, best first.

        Args:
            texts: ids with [CLS] and [SEP].
            places: indices into a text's ids, at least one per text.
            candidates: number of pieces, at most the vocabulary size.

        Returns:
            For each text log-probabilities, float32 [places, candidates], and ids, int32 of the
            same shape. Probabilities over the whole vocabulary sum to 1.
        """
        most = power_of_two(max(map(len, places)))
        positions = np.zeros((len(texts), most), np.int32)
        for row, of_text in enumerate(places):
            positions[row, : len(of_text)] = of_text
        static = min(power_of_two(candidates), self.vocabulary.vocab_size)
        tokens, segment_ids = self.batch(texts)
        with self.context():
            log_probs, ids = to_host(
                self._fill(
                    self.params,
                    tokens,
                    segment_ids,
                    self.padded(positions, len(tokens)),
                    candidates=static,
                )
            )
        return [
            (log_probs[row, : len(of_text), :candidates], ids[row, : len(of_text), :candidates])
            for row, of_text in enumerate(places)
        ]


@dataclasses.dataclass(frozen=True)
class EncoderPrograms:
    """Functions for `jax.jit`; keyword arguments are static.

    tokens and segment_ids are int32 [R, L]: [CLS] text [SEP] is segment 1, padding segment 0.
    """

    model: PlugModel
    vocab_size: int  # pieces; further rows of the embedding table are padding

    def states(self, params: Params, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """float32 [R, L, M]; meaningless at padding."""
        encoded = apply(self.model, params, "encode", tokens, segment_ids=segment_ids)
        states: jax.Array = encoded.astype(jnp.float32)
        return states

    def vectors(
        self, params: Params, tokens: jax.Array, segment_ids: jax.Array
    ) -> dict[Pooling, jax.Array]:
        """float32 [R, M] each: the state at [CLS], and the mean over the text's tokens.

        The mean excludes [CLS], [SEP] and padding; it is 0 for an empty text. One program has both,
        so that a server is ready for both.
        """
        states = self.states(params, tokens, segment_ids)
        places = jnp.arange(tokens.shape[1])
        lengths = jnp.sum(segment_ids > 0, axis=1, keepdims=True)
        inside = (places >= 1) & (places < lengths - 1)
        total = jnp.sum(jnp.where(inside[..., None], states, 0.0), axis=1)
        return {"cls": states[:, 0], "mean": total / jnp.maximum(lengths - 2, 1)}

    def fill(
        self,
        params: Params,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        *,
        candidates: int,
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities float32 [R, P, K] and ids int32 [R, P, K] at int32 [R, P]."""
        encoded = apply(self.model, params, "encode", tokens, segment_ids=segment_ids)
        hidden = jnp.take_along_axis(encoded, positions[..., None], axis=1)
        logits = apply(self.model, params, "mlm_logits", hidden)
        is_piece = jnp.arange(logits.shape[-1]) < self.vocab_size
        log_probs = jax.nn.log_softmax(jnp.where(is_piece, logits, -jnp.inf))
        best, ids = jax.lax.top_k(log_probs, candidates)
        return best, ids
