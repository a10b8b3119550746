"""The functions to compile: the decoder and its cache in the loops of `plug_jax.decoding`.

Axis letters: P prompts, E encoder length, B rows (texts; those of a prompt next to each other), N
room for new tokens, T target length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax.decoding import beam, generate, rolling
from plug_jax.decoding.constraints import Constraints
from plug_jax.decoding.generate import Decoding, TokensToLogits
from plug_jax.decoding.sampling import Sampling
from plug_jax.inference.quantization import dequantize_projections
from plug_jax.models.plug import PlugModel
from plug_jax.ops import kv_cache
from plug_jax.ops.kv_cache import DecoderCache

Params = Mapping[str, Any]

_SCORED_AT_A_TIME = 128  # positions per row whose logits are in memory at a time


@dataclasses.dataclass(frozen=True)
class Programs:
    """Functions for `jax.jit`; keyword arguments are static.

    tokens and segment_ids are int32 [P, E]: [CLS] prompt [SEP] is segment 1, padding segment 0.
    """

    model: PlugModel  # with `unstacked_layers`
    cls_id: int
    sep_id: int

    def start(
        self,
        params: Params,
        tokens: jax.Array,
        segment_ids: jax.Array,
        *,
        max_decode_length: int,
        rows_per_prompt: int,
    ) -> Decoding:
        """Encode the prompts and open `rows_per_prompt` texts each, up to `max_decode_length`."""
        cache = self._open_cache(params, tokens, segment_ids, max_decode_length, rows_per_prompt)
        return _by_rows(
            generate.start(
                cache,
                start_tokens=self._cls(len(tokens) * rows_per_prompt),
                max_new_tokens=max_decode_length,
                end_token=self.sep_id,
            )
        )

    def advance(
        self,
        params: Params,
        decoding: Decoding,
        constraints: Constraints,
        sampling: Sampling,
        steps: jax.Array,
        *,
        candidates: int,
        penalties: bool,
    ) -> Decoding:
        """Generate up to `steps` (int32 []) more tokens."""
        return _by_rows(
            generate.advance(
                self._tokens_to_logits(params),
                decoding,
                constraints,
                sampling,
                steps=steps,
                end_token=self.sep_id,
                candidates=candidates,
                penalties=penalties,
            )
        )

    def beam_search(
        self,
        params: Params,
        tokens: jax.Array,
        segment_ids: jax.Array,
        constraints: Constraints,
        length_penalty: jax.Array,
        length_offset: jax.Array,
        *,
        num_beams: int,
        max_decode_length: int,
        penalties: bool,
    ) -> beam.Hypotheses:
        """The best texts of each prompt; length_* are float32 []."""
        return beam.beam_search(
            self._tokens_to_logits(params),
            self._open_cache(params, tokens, segment_ids, max_decode_length, num_beams),
            kv_cache.reorder,
            constraints,
            start_tokens=self._cls(len(tokens) * num_beams),
            num_beams=num_beams,
            max_new_tokens=max_decode_length,
            end_token=self.sep_id,
            length_penalty=length_penalty,
            length_offset=length_offset,
            penalties=penalties,
        )

    def write_chunk(
        self,
        params: Params,
        tokens: jax.Array,
        segment_ids: jax.Array,
        sampling: Sampling,
        rows: Mapping[str, jax.Array],
        *,
        scheme: rolling.RollingScheme,
        candidates: int,
    ) -> rolling.Chunk:
        """One chunk after the contexts; `rows` has written, asked, draws and active per row."""
        return rolling.write_chunk(
            self._tokens_to_logits(params),
            self._open_cache(params, tokens, segment_ids, scheme.chunk + 1, 1),
            sampling,
            scheme,
            **rows,
            candidates=candidates,
        )

    def score(
        self,
        params: Params,
        tokens: jax.Array,
        segment_ids: jax.Array,
        targets: jax.Array,
        *,
        rows_per_prompt: int,
    ) -> jax.Array:
        """float32 [B, T]: log-probability of int32 targets [B, T], each given its predecessors."""
        rows, length = targets.shape
        cache = self._open_cache(params, tokens, segment_ids, length, rows_per_prompt)
        inputs = jnp.concatenate([self._cls(rows)[:, None], targets[:, :-1]], axis=1)
        states, _ = self._apply(params, "extend", inputs, cache)
        scores = self._apply(params, "decoder_scores", states, targets, chunk=_SCORED_AT_A_TIME)
        return -scores.losses

    def _apply(self, params: Params, method: str, *args: Any, **kwargs: Any) -> Any:
        return apply(self.model, params, method, *args, **kwargs)

    def _open_cache(
        self,
        params: Params,
        tokens: jax.Array,
        segment_ids: jax.Array,
        max_decode_length: int,
        each: int,
    ) -> DecoderCache:
        encoded = self._apply(params, "encode", tokens, segment_ids=segment_ids)
        cache: DecoderCache = self._apply(
            params,
            "init_cache",
            encoded,
            encoder_segment_ids=segment_ids,
            max_length=max_decode_length,
            rows_per_prompt=each,
        )
        return cache

    def _tokens_to_logits(self, params: Params) -> TokensToLogits[DecoderCache]:
        def tokens_to_logits(
            tokens: jax.Array, cache: DecoderCache, active: jax.Array
        ) -> tuple[jax.Array, DecoderCache]:
            logits, cache = self._apply(
                params, "decode_step", tokens[:, None], cache, active=active
            )
            return logits[:, 0], cache

        return tokens_to_logits

    def _cls(self, rows: int) -> jax.Array:
        return jnp.full(rows, self.cls_id, jnp.int32)


def apply(model: PlugModel, params: Params, method: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a method of the model, with float or int8 kernels."""
    with nn.intercept_methods(dequantize_projections):
        return model.apply({"params": params}, *args, **kwargs, method=method)


def _by_rows(decoding: Decoding) -> Decoding:
    """Constrain rows to the same devices in every call; the cache has its own constraints."""

    def rows(leaf: jax.Array) -> jax.Array:
        return nn.with_logical_constraint(leaf, ("activation_batch",) + (None,) * (leaf.ndim - 1))

    cache = dataclasses.replace(
        decoding.cache,
        cross_mask=rows(decoding.cache.cross_mask),
        lengths=rows(decoding.cache.lengths),
    )
    others = {f.name: rows(getattr(decoding, f.name)) for f in dataclasses.fields(decoding)[:-1]}
    return Decoding(**others, cache=cache)
