"""`plug-jax generate`: continue a text with a trained checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from plug_jax.cli import gin_config
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    import numpy as np

    from plug_jax.config import PlugConfig
    from plug_jax.data.vocabularies import PlugVocabulary
    from plug_jax.ops.kv_cache import DecoderCache

SUMMARY = "Continue a text with a stage-2 checkpoint."
EXAMPLE = """example:
  plug-jax generate --checkpoint /path/to/model_dir --prompt '今天天气' --num_samples 3
"""

_SMALLEST_BUCKET = 32


UNKNOWN_ARGUMENTS = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What runs/generate.gin and the options describe."""

    checkpoint: str
    prompt: str
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    num_samples: int
    seed: int


# Each option sets the macro of its name in the gin file, which has the defaults.
_OPTIONS: dict[str, tuple[type, str]] = {
    "checkpoint": (str, "checkpoint directory (a run's MODEL_DIR, or one step)"),
    "prompt": (str, "the text to continue"),
    "max_new_tokens": (int, "stop after so many tokens (128)"),
    "temperature": (float, "0 is greedy (0.9)"),
    "top_k": (int, "draw from the k likeliest, 0 = all (20)"),
    "top_p": (float, "draw from this much probability (1.0)"),
    "seed": (int, "same seed, same texts (0)"),
    "num_samples": (int, "how many texts to write (1)"),
}
_MACROS = {"seed": "RANDOM_SEED"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax generate`."""
    for name, (kind, text) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    gin_config.add_arguments(parser, default="runs/generate.gin")


def run(args: argparse.Namespace) -> int:
    """Print each sample's text to stdout and the speed to stderr."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.training.checkpointing import load_for_inference

    given = {_MACROS.get(n, n.upper()): getattr(args, n) for n in _OPTIONS}
    bindings = [f"{macro} = {value!r}" for macro, value in given.items() if value is not None]
    request = gin_config.configured(
        GenerateConfig,
        files=args.gin_file,
        bindings=[*bindings, *gin_config.overrides(args.unknown)],
    )
    config, params, vocabulary = load_for_inference(request.checkpoint)
    started = time.monotonic()
    (samples,) = generate_ids(
        config,
        params,
        vocabulary,
        [request.prompt],
        num_samples=request.num_samples,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        seed=request.seed,
    )
    seconds = time.monotonic() - started
    for ids in samples:
        print(vocabulary.decode(ids))
    tokens = sum(len(ids) for ids in samples)
    speed = f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f} tokens/s"
    print(f"{speed}, compilation included", file=sys.stderr)
    return 0


class GenerateOptions(TypedDict, total=False):
    """The options of `generate_ids`, which documents them."""

    num_samples: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


def generate_texts(
    config: PlugConfig,
    params: Mapping[str, Any],
    vocabulary: PlugVocabulary,
    prompts: Sequence[str],
    **options: Unpack[GenerateOptions],
) -> list[list[str]]:
    """For each prompt, the texts of its samples: `generate_ids`, decoded."""
    batches = generate_ids(config, params, vocabulary, prompts, **options)
    return [[vocabulary.decode(ids) for ids in samples] for samples in batches]


def generate_ids(
    config: PlugConfig,
    params: Mapping[str, Any],
    vocabulary: PlugVocabulary,
    prompts: Sequence[str],
    *,
    num_samples: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 0.9,
    top_k: int = 20,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[list[int]]]:
    """For each prompt, the token ids of `num_samples` continuations, without [CLS] and [SEP].

    The encoder reads [CLS] prompt [SEP], the decoder starts from [CLS] and a [SEP] ends the text;
    padding, [UNK], [CLS], [MASK] and ids beyond the vocabulary are never written. A first call with
    these options, this many texts and this length of prompts (to the next power of two) compiles.
    The draws of sample s of prompt p depend on (seed, p, s) alone.

    Args:
      config: of a model with a decoder.
      params: the parameters of `PlugModel(config)`.
      vocabulary: the one the model was trained with.
      prompts: texts to continue; nothing is cut from them.
      num_samples: texts for each prompt.
      max_new_tokens: at most `config.max_positions`, the positions that the decoder has.
      temperature, top_k, top_p: see `plug_jax.decoding.sampling.sample_token`.
      seed: of the draws.

    Raises:
      PlugError: the model has no decoder, a prompt or `max_new_tokens` exceeds the positions of the
        model, or an option is out of range.
    """
    import jax
    import numpy as np

    from plug_jax.decoding.sampling import row_rngs

    _check_request(config, num_samples=num_samples, max_new_tokens=max_new_tokens)
    tokens, segment_ids = _encoder_batch(config, vocabulary, prompts)
    by_prompt = row_rngs(jax.random.key(seed), len(prompts))
    rngs = jax.vmap(lambda rng: row_rngs(rng, num_samples))(by_prompt).reshape(-1)
    generator = _compiled_generator(
        config, num_samples, max_new_tokens, temperature, top_k, top_p, vocabulary.sep_id
    )
    start_tokens = np.full(len(rngs), vocabulary.cls_id, np.int32)
    forbidden = _forbidden_ids(config, vocabulary)
    generated = jax.device_get(
        generator(params, tokens, segment_ids, start_tokens, rngs, forbidden)
    )
    texts = [
        row[:length].tolist()
        for row, length in zip(generated.tokens, generated.lengths, strict=True)
    ]
    return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]


@functools.lru_cache(maxsize=8)
def _compiled_generator(
    config: PlugConfig,
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    end_token: int,
) -> Callable[..., Any]:
    """One jitted function for these options: encode each prompt once, then write its samples."""
    import jax
    import jax.numpy as jnp

    from plug_jax.decoding.generate import Generated, generate
    from plug_jax.models.plug import PlugModel

    apply: Callable[..., Any] = PlugModel(config).apply

    @jax.jit
    def generator(
        params: Mapping[str, Any],
        encoder_tokens: jax.Array,  # int32 [P, E]
        encoder_segment_ids: jax.Array,  # int32 [P, E]
        start_tokens: jax.Array,  # int32 [P * num_samples]
        rngs: jax.Array,  # keys [P * num_samples]
        forbidden: jax.Array,  # bool [V]
    ) -> Generated:
        variables = {"params": params}
        encoded = apply(variables, encoder_tokens, segment_ids=encoder_segment_ids, method="encode")
        cache = apply(
            variables,
            jnp.repeat(encoded, num_samples, axis=0),
            encoder_segment_ids=jnp.repeat(encoder_segment_ids, num_samples, axis=0),
            max_length=max_new_tokens,
            method="start_cache",
        )

        def tokens_to_logits(
            tokens: jax.Array, cache: DecoderCache
        ) -> tuple[jax.Array, DecoderCache]:
            logits, cache = apply(variables, tokens[:, None], cache, method="decode_step")
            return logits[:, 0], cache

        return generate(
            tokens_to_logits,
            cache,
            start_tokens=start_tokens,
            rngs=rngs,
            max_new_tokens=max_new_tokens,
            end_token=end_token,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            forbidden=forbidden,
        )

    return generator


def _check_request(config: PlugConfig, *, num_samples: int, max_new_tokens: int) -> None:
    if config.num_decoder_layers == 0:
        raise PlugError(
            "this checkpoint has no decoder (it is a stage-1 encoder); "
            "generating needs a stage-2 checkpoint"
        )
    if num_samples < 1:
        raise PlugError(f"num_samples is {num_samples}; it must be at least 1")
    if not 1 <= max_new_tokens <= config.max_positions:
        raise PlugError(
            f"max_new_tokens is {max_new_tokens}; it must be between 1 and {config.max_positions}, "
            "the positions that this model has"
        )


def _encoder_batch(
    config: PlugConfig, vocabulary: PlugVocabulary, prompts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Token and segment ids, int32 [P, E]: [CLS] prompt [SEP] is segment 1, padding segment 0."""
    import numpy as np

    rows = [[vocabulary.cls_id, *vocabulary.encode(text), vocabulary.sep_id] for text in prompts]
    longest = max(len(row) for row in rows)
    if longest > config.max_positions:
        raise PlugError(
            f"a prompt has {longest - 2} tokens; this model reads at most "
            f"{config.max_positions - 2} ({config.max_positions} positions, less [CLS] and [SEP]). "
            "Shorten the prompt"
        )
    length = min(max(_SMALLEST_BUCKET, 1 << (longest - 1).bit_length()), config.max_positions)
    tokens = np.full((len(rows), length), vocabulary.pad_id, np.int32)
    segment_ids = np.zeros((len(rows), length), np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        segment_ids[index, : len(row)] = 1
    return tokens, segment_ids


def _forbidden_ids(config: PlugConfig, vocabulary: PlugVocabulary) -> np.ndarray:
    """Bool [padded vocabulary]: true for ids that are no text, but [SEP], which ends the text."""
    import numpy as np

    forbidden = np.arange(config.padded_vocab_size) >= vocabulary.vocab_size
    forbidden[list(vocabulary.special_ids)] = True
    forbidden[vocabulary.sep_id] = False
    return forbidden
