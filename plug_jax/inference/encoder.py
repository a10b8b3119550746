"""An encoder ready to read: states, vectors and masked tokens, one program for each bucket.

Axis letters: R rows, a text each, L tokens of a text, M model, P masked tokens of a text, V padded
vocabulary, K candidates.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.config import ComputeDtype, PlugConfig
from plug_jax.data.vocabularies import PlugVocabulary
from plug_jax.inference.placement import PlacedModel, power_of_two, to_host
from plug_jax.inference.programs import Params, apply
from plug_jax.inference.quantization import quantize
from plug_jax.inference.request_options import Pooling
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner
from plug_jax.training.saved_model import load_for_inference
from plug_jax.training.state import HEADS


class EncoderModel(PlacedModel):
    """Encoder, masked LM head and vocabulary of any checkpoint; a decoder and other heads are not.

    Texts are [CLS] text [SEP], padded to a bucket (the next power of two, 32 at least); rows beyond
    the texts of a call are copies of its last. What a text gives does not depend on its neighbours.
    """

    def __init__(
        self,
        config: PlugConfig,
        params: Mapping[str, Any],
        vocabulary: PlugVocabulary,
        partitioner: Partitioner | None = None,
    ) -> None:
        """Take over of `params`, as training or another model of inference has them, what it reads.

        Raises:
            PlugError: the vocabulary is not the one that the model was trained with.
        """
        config = dataclasses.replace(config, num_decoder_layers=0)
        own = {name: part for name, part in params.items() if name not in ("decoder", HEADS)}
        super().__init__(config, own, vocabulary, partitioner)
        programs = EncoderPrograms(PlugModel(config), vocabulary.vocab_size)
        # Nothing is compiled before its first call.
        self._states = jax.jit(programs.states)
        self._vectors = jax.jit(programs.vectors, static_argnames="pooling")
        self._fill = jax.jit(programs.fill, static_argnames="candidates")

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str],
        partitioner: Partitioner | None = None,
        dtype: ComputeDtype | None = None,
        *,
        int8: bool = False,
        verify: bool = True,
    ) -> EncoderModel:
        """Of a MODEL_DIR or one of its checkpoints, read straight into its shardings and dtype.

        Options are as in `InferenceModel.load`.

        Raises:
            PlugError: no checkpoint there, or one without a vocabulary.
        """
        config, params, vocabulary = load_for_inference(
            checkpoint, partitioner, dtype, decoder=False, verify=verify
        )
        return cls(config, quantize(params) if int8 else params, vocabulary, partitioner)

    @classmethod
    def of(cls, model: PlacedModel) -> EncoderModel:
        """The encoder of a model that is there already; the parameters are in memory once."""
        return cls(model.config, model.params, model.vocabulary, model.partitioner)

    def states(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The encoder's states of each text, float32 [its tokens, M]; ids have [CLS] and [SEP].

        All processes of a mesh must call it, with the same texts.
        """
        with self.context():
            found = to_host(self._states(self.params, *self.batch(texts)))
        return [found[row, : len(ids)] for row, ids in enumerate(texts)]

    def vectors(self, texts: Sequence[Sequence[int]], pooling: Pooling) -> np.ndarray:
        """A vector of each text, float32 [texts, M]; see `EncoderPrograms.vectors`."""
        with self.context():
            found = to_host(self._vectors(self.params, *self.batch(texts), pooling=pooling))
        vectors: np.ndarray = found[: len(texts)]
        return vectors

    def fill(
        self, texts: Sequence[Sequence[int]], places: Sequence[Sequence[int]], candidates: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """What may stand at some places of each text: the likeliest pieces, best first.

        Args:
            texts: ids with [CLS] and [SEP].
            places: indices into a text's ids, one or more of each text.
            candidates: how many pieces; as many as the vocabulary has, at most.

        Returns:
            For each text log-probabilities, float32 [places, candidates], and ids, int32 of the
            same shape. The probabilities of the whole vocabulary add up to 1.
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
    vocab_size: int  # pieces; the rows of the embedding table beyond are none

    def states(self, params: Params, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """float32 [R, L, M]; those of padding mean nothing."""
        encoded = apply(self.model, params, "encode", tokens, segment_ids=segment_ids)
        states: jax.Array = encoded.astype(jnp.float32)
        return states

    def vectors(
        self, params: Params, tokens: jax.Array, segment_ids: jax.Array, *, pooling: Pooling
    ) -> jax.Array:
        """float32 [R, M]: the state at [CLS], or the mean of those of the text's own tokens.

        [CLS], [SEP] and padding are no part of the mean. Of a text without a token it is 0.
        """
        states = self.states(params, tokens, segment_ids)
        if pooling == "cls":
            return states[:, 0]
        places = jnp.arange(tokens.shape[1])
        lengths = jnp.sum(segment_ids > 0, axis=1, keepdims=True)
        inside = (places >= 1) & (places < lengths - 1)
        total = jnp.sum(jnp.where(inside[..., None], states, 0.0), axis=1)
        return total / jnp.maximum(lengths - 2, 1)

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
