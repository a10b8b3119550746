"""Continuous batching: a fixed number of rows, each reused when its text ends.

Axis letters: B slots, E encoder length, N room for new tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from plug_jax.decoding.generate import Decoding
from plug_jax.errors import PlugError
from plug_jax.inference.generator import GeneratedText, host_rows, read_row
from plug_jax.inference.model import InferenceModel
from plug_jax.inference.options import (
    constraints_of,
    prompt_rngs,
    sample_rng,
    sample_rngs,
    sampling_of,
)
from plug_jax.inference.request_options import MAX_TEXTS, GenerationOptions

_FORCED_PLACES = 32  # maximum tokens of forced_text per slot
_PLAIN = GenerationOptions(max_new_tokens=1)
_ALL_TOKENS = GenerationOptions(max_new_tokens=1, top_k=0)


class Slots:
    """`count` texts generated at a time. Not thread-safe: one thread admits and advances.

    A request's text equals `generate`'s, independent of its neighbours, its arrival time, and the
    number of tokens per advance.
    """

    def __init__(
        self, model: InferenceModel, *, count: int, max_prompt_tokens: int, max_new_tokens: int
    ) -> None:
        """Allocate `count` prompts of `max_prompt_tokens` (including [CLS] and [SEP]).

        Raises:
            PlugError: no slots or too many, lengths beyond the model's positions, no room for [CLS]
                and [SEP], or a mesh that does not divide the slots.
        """
        if not 1 <= count <= MAX_TEXTS:
            raise PlugError(f"slots is {count}; it must be between 1 and {MAX_TEXTS}")
        model.check_length("max_prompt_tokens", max_prompt_tokens)
        if max_prompt_tokens < len(model.prompt_ids("")):
            raise PlugError(
                f"max_prompt_tokens is {max_prompt_tokens}; with [CLS] and [SEP] it is at least 2"
            )
        model.check_length("max_new_tokens", max_new_tokens)
        if model.rows(count) != count:
            raise PlugError(
                f"{count} slots do not divide over the mesh; the next number that does is "
                f"{model.rows(count)}"
            )
        self.model = model
        self.count = count
        self.max_new_tokens = max_new_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self._requests: list[GenerationOptions | None]
        self._decoding: Any
        self._settings: Any
        # Keep all placements: another would recompile the next program.
        self._shardings = jax.tree.map(lambda leaf: leaf.sharding, self._empty())
        self._insert = jax.jit(_insert, donate_argnums=(0, 1), out_shardings=self._shardings)
        self._end = jax.jit(
            lambda ended, slot: ended | (jnp.arange(count) == slot),
            out_shardings=self._shardings[0].ended,
        )
        self.reset()

    def reset(self) -> None:
        """Empty all slots, reallocating their state whatever its condition."""
        self._requests = [None] * self.count
        self._decoding = self._settings = None  # free it first: there may not be room for two
        self._decoding, self._settings = jax.device_put(self._empty(), self._shardings)
        for slot in range(self.count):
            self.release(slot)

    def _empty(self) -> tuple[Decoding, Any]:
        """State and settings of empty slots."""
        model, options = self.model, [_PLAIN] * self.count
        decoding = model.start(
            [model.prompt_ids("")] * self.count,
            max_new_tokens=self.max_new_tokens,
            bucket=model.bucket(self.max_prompt_tokens),
        )
        settings = (
            constraints_of(options, model.config, model.vocabulary, forced_places=_FORCED_PLACES),
            sampling_of(options, sample_rngs(prompt_rngs(0, self.count), 1)),
        )
        return decoding, model.padded(settings, self.count)

    @property
    def intact(self) -> bool:
        """Whether texts can continue: a failed program may have consumed its donated state."""
        leaves = jax.tree.leaves((self._decoding, self._settings))
        return not any(leaf.is_deleted() for leaf in leaves)

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self._requests.count(None)

    def check(self, prompt: str, options: GenerationOptions) -> list[int]:
        """The prompt's ids. PlugError if the request does not fit a slot, or is invalid."""
        if options.num_beams > 1 or options.num_samples > 1:
            raise PlugError("a slot writes one sampled text: num_samples and num_beams must be 1")
        if options.max_new_tokens > self.max_new_tokens:
            raise PlugError(
                f"max_new_tokens is {options.max_new_tokens}; at most {self.max_new_tokens} here"
            )
        ids = self.model.prompt_ids(prompt)
        if len(ids) > self.max_prompt_tokens:
            raise PlugError(
                f"the prompt has {len(ids) - 2} tokens; at most {self.max_prompt_tokens - 2} here"
            )
        return ids

    def admit(self, prompt: str, options: GenerationOptions, *, sample: int = 0) -> int:
        """Encode the prompt into a free slot; return its number.

        `sample` numbers the texts of a request for several.

        Raises:
            PlugError: see `check`; an invalid forced or forbidden text.
        """
        return self._admit_ids(self.check(prompt, options), options, sample)

    def _admit_ids(self, ids: Sequence[int], options: GenerationOptions, sample: int) -> int:
        model, slot = self.model, self._requests.index(None)
        rngs = sample_rng(prompt_rngs(options.seed, 1), sample)
        settings = (
            constraints_of([options], model.config, model.vocabulary, forced_places=_FORCED_PLACES),
            sampling_of([options], rngs),
        )
        one = model.start([ids], max_new_tokens=self.max_new_tokens)
        self._decoding, self._settings = self._insert(
            self._decoding, self._settings, one, settings, jnp.int32(slot)
        )
        self._requests[slot] = options
        return slot

    def advance(self, steps: int) -> dict[int, tuple[GeneratedText, bool]]:
        """Generate up to `steps` tokens in every busy slot: slot -> (text so far, has it ended).

        Slots with finished texts become free.
        """
        taken = {slot: o for slot, o in enumerate(self._requests) if o is not None}
        if not taken:
            return {}
        self._write(
            steps,
            # There is no separate greedy program: batches would rarely be all greedy.
            candidates=max(o.candidates(self.model.config) for o in (_PLAIN, *taken.values())),
            penalties=any(o.penalties for o in taken.values()),
        )
        rows = host_rows(self._decoding, self.count)
        for slot in taken:
            if rows[slot].ended:
                self._requests[slot] = None
        return {slot: (read_row(self.model, rows[slot]), rows[slot].ended) for slot in taken}

    def _write(self, steps: int, *, candidates: int, penalties: bool) -> None:
        self._decoding = self.model.advance(
            self._decoding,
            *self._settings,
            steps=steps,
            candidates=candidates,
            penalties=penalties,
        )

    def warm_up(self) -> Iterator[str]:
        """Compile all programs that requests may need, in a free slot; yield a name before each.

        There is one per prompt bucket, and one per kind of sampling.
        """
        model, longest = self.model, self.max_prompt_tokens
        for length in sorted({model.bucket(n) for n in range(1, longest + 1)}):
            yield f"prompts of up to {min(length, longest)} tokens"
            ids = [model.vocabulary.cls_id] * min(length, longest)
            self.release(self._admit_ids(ids, _PLAIN, sample=0))
        few, all_tokens = (o.candidates(model.config) for o in (_PLAIN, _ALL_TOKENS))
        for penalties in (False, True):
            for candidates in sorted({few, all_tokens}):
                yield f"{candidates} candidates per token{', with penalties' if penalties else ''}"
                self._write(0, candidates=candidates, penalties=penalties)

    def release(self, slot: int) -> None:
        """Abandon a slot's text."""
        self._requests[slot] = None
        ended = self._end(self._decoding.ended, jnp.int32(slot))
        self._decoding = dataclasses.replace(self._decoding, ended=ended)


def _insert(
    decoding: Decoding, settings: Any, one: Decoding, its_settings: Any, slot: jax.Array
) -> tuple[Decoding, Any]:
    """Insert row 0 of `one` and of its settings as row `slot`, padding the encoder length."""

    def put(into: jax.Array, row: jax.Array) -> jax.Array:
        missing = [n - m for n, m in zip(into.shape[1:], row.shape[1:], strict=True)]
        row = row[:1]
        if any(missing):
            row = jnp.pad(row, [(0, 0), *((0, n) for n in missing)])
        return jax.lax.dynamic_update_slice_in_dim(into, row, slot, axis=0)

    inserted: tuple[Decoding, Any] = jax.tree.map(put, (decoding, settings), (one, its_settings))
    return inserted
