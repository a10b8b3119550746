"""A model for generation: parameters on devices, one compiled program per length bucket.

Axis letters: P prompts, E encoder length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.checkpoints.saved_model import SavedModel
from plug_jax.config import PlugConfig
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.decoding.beam import Hypotheses
from plug_jax.decoding.constraints import Constraints
from plug_jax.decoding.generate import Decoding
from plug_jax.decoding.rolling import Chunk, RollingScheme
from plug_jax.decoding.sampling import Sampling
from plug_jax.errors import PlugError
from plug_jax.inference.placement import PlacedModel, to_host
from plug_jax.inference.programs import Programs
from plug_jax.models.decoder import split_layers
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner


class NoNumbersError(PlugError):
    """The model's logits are NaN or infinite."""

    def __init__(self) -> None:
        super().__init__(
            "the model gives no numbers (NaN or infinity in place of logits): its training has "
            "diverged, or its weights are damaged; use an earlier checkpoint"
        )


class InferenceModel(PlacedModel):
    """Parameters, vocabulary and the compiled programs of one checkpoint.

    A program is compiled on the first call with its static options and length bucket (the next
    power of two), and kept. With a partitioner, rows are sharded over data and fsdp, heads over
    tensor.
    """

    def __init__(
        self,
        config: PlugConfig,
        params: Mapping[str, Any],
        vocabulary: PlugVocabulary,
        partitioner: Partitioner | None = None,
    ) -> None:
        """Take over `params` (in training's layout) of a model with a decoder.

        Raises:
            PlugError: the model has no decoder, or another vocabulary.
        """
        check_decoder(config)
        super().__init__(config, split_layers(params), vocabulary, partitioner)
        programs = Programs(
            PlugModel(config, unstacked_layers=True), vocabulary.cls_id, vocabulary.sep_id
        )
        # Programs compile on their first call.
        self._start = jax.jit(
            programs.start, static_argnames=("max_decode_length", "rows_per_prompt")
        )
        self._advance = jax.jit(
            programs.advance, static_argnames=("candidates", "penalties"), donate_argnums=1
        )
        self._beam_search = jax.jit(
            programs.beam_search, static_argnames=("num_beams", "max_decode_length", "penalties")
        )
        self._write_chunk = jax.jit(programs.write_chunk, static_argnames=("scheme", "candidates"))
        self._score = jax.jit(programs.score, static_argnames="rows_per_prompt")

    @classmethod
    def check(cls, saved: SavedModel) -> None:
        """PlugError for a checkpoint without a decoder."""
        check_writes(saved)

    def prompt_ids(self, text: str) -> list[int]:
        """[CLS] text [SEP] for the encoder. PlugError if it is too long for the model."""
        v, longest = self.vocabulary, self.config.max_positions
        ids = [v.cls_id, *v.encode(text), v.sep_id]
        if len(ids) > longest:
            raise PlugError(
                f"a prompt has {len(ids) - 2} tokens; this model reads at most {longest - 2} "
                f"({longest} positions, less [CLS] and [SEP]). Shorten the prompt"
            )
        return ids

    def check_length(self, name: str, tokens: int) -> None:
        """PlugError unless the decoder has positions for this many tokens."""
        if not 1 <= tokens <= self.config.max_positions:
            raise PlugError(
                f"{name} is {tokens}; it must be between 1 and {self.config.max_positions}, the "
                "positions that this model has"
            )

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        rows_per_prompt: int = 1,
        max_new_tokens: int,
        bucket: int | None = None,
    ) -> Decoding:
        """Encode prompts (ids with [CLS] and [SEP]) and open `rows_per_prompt` texts for each.

        There is room for the bucket of `max_new_tokens`. On a mesh, rows are padded with copies of
        the last until the mesh divides them.
        """
        batch = self.batch(prompts, bucket)
        with self.context():
            decoding: Decoding = self._start(
                self.params,
                *batch,
                max_decode_length=self.bucket(max_new_tokens),
                rows_per_prompt=rows_per_prompt,
            )
        return decoding

    def advance(
        self,
        decoding: Decoding,
        constraints: Constraints,
        sampling: Sampling,
        *,
        steps: int,
        candidates: int,
        penalties: bool,
    ) -> Decoding:
        """Generate up to `steps` more tokens (`decoding.generate.advance`); donates `decoding`."""
        with self.context():
            after: Decoding = self._advance(
                self.params,
                decoding,
                *self.padded((constraints, sampling), len(decoding.lengths)),
                jnp.int32(steps),
                candidates=candidates,
                penalties=penalties,
            )
        return after

    def beam_search(
        self,
        prompts: Sequence[Sequence[int]],
        constraints: Constraints,
        *,
        num_beams: int,
        max_new_tokens: int,
        length_penalty: float,
        length_offset: float,
        penalties: bool,
    ) -> Hypotheses:
        """The best texts of each prompt; `constraints` has num_beams rows per prompt."""
        tokens, segment_ids = self.batch(prompts)
        with self.context():
            found: Hypotheses = self._beam_search(
                self.params,
                tokens,
                segment_ids,
                self.padded(constraints, len(tokens) * num_beams),
                jnp.float32(length_penalty),
                jnp.float32(length_offset),
                num_beams=num_beams,
                max_decode_length=self.bucket(max_new_tokens),
                penalties=penalties,
            )
        return found

    def write_chunk(
        self,
        contexts: Sequence[Sequence[int]],
        sampling: Sampling,
        scheme: RollingScheme,
        *,
        written: Sequence[int],
        asked: Sequence[int],
        draws: int,
        active: Sequence[bool],
        candidates: int,
    ) -> Chunk:
        """Encode contexts and generate one chunk; see `decoding.rolling.write_chunk`."""
        batch = self.batch(contexts)
        rows = {
            "written": np.asarray(written, np.int32),
            "asked": np.asarray(asked, np.int32),
            "draws": np.full(len(contexts), draws, np.int32),
            "active": np.asarray(active, bool),
        }
        with self.context():
            chunk: Chunk = self._write_chunk(
                self.params,
                *batch,
                *self.padded((sampling, rows), len(batch[0])),
                scheme=scheme,
                candidates=candidates,
            )
        return chunk

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[list[float]]]:
        """For each prompt and each of its targets, the log-probability of every target token.

        prompts: ids with [CLS] and [SEP]. targets: equally many per prompt, ids without [CLS],
        with a final [SEP] if it should count. All targets of a prompt share its encoding.
        """
        each = len(targets[0])
        rows = [list(target) for of_prompt in targets for target in of_prompt]
        assert len(rows) == len(prompts) * each
        length = self.bucket(max(map(len, rows)))
        labels = np.full((len(rows), length), self.vocabulary.pad_id, np.int32)
        for row, target in zip(labels, rows, strict=True):
            row[: len(target)] = target
        tokens, segment_ids = self.batch(prompts)
        with self.context():
            found = self._score(
                self.params,
                tokens,
                segment_ids,
                self.padded(labels, len(tokens) * each),
                rows_per_prompt=each,
            )
        found = to_host(found)
        scores = [found[i, : len(row)].tolist() for i, row in enumerate(rows)]
        return [scores[i : i + each] for i in range(0, len(scores), each)]


def check_writes(saved: SavedModel) -> None:
    """PlugError for a checkpoint that cannot generate; it says what the model is for."""
    if saved.task is not None and saved.config.num_decoder_layers == 0:
        commands = ("infer", "evaluate", *(["classify"] if saved.task["kind"] == "text" else []))
        raise PlugError(
            f"this checkpoint was fine-tuned for {saved.task['name']!r}: it answers with its own "
            "head, and neither generates nor scores texts; use it with "
            f"{', '.join(f'`plug-jax {command}`' for command in commands)}"
        )
    check_decoder(saved.config)


def check_decoder(config: PlugConfig) -> None:
    """PlugError unless a model has encoder and decoder; it says what the model is for."""
    if config.num_encoder_layers == 0:
        raise PlugError(
            "this checkpoint is a decoder alone, a baseline to compare PLUG with: `plug-jax "
            "evaluate` scores it on the task that it was trained on, with runs/evaluate.gin and "
            "objectives/language_model.gin; texts are written and scored by a model with an "
            "encoder and a decoder"
        )
    if config.num_decoder_layers == 0:
        raise PlugError(
            "this checkpoint has no decoder: it is an encoder alone (of stage 1, or a converted "
            "BERT), which reads text and writes or scores none. Stage 2 gives it a decoder "
            "(`plug-jax train --gin_file=runs/palm_pretrain.gin`, with the checkpoint as "
            "INITIAL_CHECKPOINT); as it is, `plug-jax embed` and `plug-jax fill-mask` use it, "
            "`plug-jax evaluate` scores its masked LM, and `plug-jax convert export-hf` writes it "
            "for transformers"
        )
