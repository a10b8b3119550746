import argparse
import dataclasses
import functools
import itertools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from plug_jax.cli import generate as command
from plug_jax.config import PlugConfig
from plug_jax.decoding.generate import generate
from plug_jax.decoding.sampling import row_rngs
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from tests import reference_model

# --- the loop, over a Markov chain: the next token depends on the last one alone -----------------

END = 3
CHAIN = np.array(  # row: last token, column: probability of the next
    [
        [0.1, 0.6, 0.1, 0.2],
        [0.3, 0.1, 0.5, 0.1],
        [0.3, 0.15, 0.05, 0.5],
        [0.25, 0.25, 0.25, 0.25],
    ]
)


def chain_to_logits(tokens, calls):
    return jnp.log(jnp.asarray(CHAIN, jnp.float32))[tokens], calls + 1


STATIC = ("tokens_to_logits", "max_new_tokens", "end_token", "temperature", "top_k", "top_p")
jitted_generate = jax.jit(generate, static_argnames=STATIC)


def run_chain(start_tokens, *, seed=0, tokens_to_logits=chain_to_logits, **options):
    generated = jitted_generate(
        tokens_to_logits,
        jnp.int32(0),
        start_tokens=jnp.asarray(start_tokens),
        rngs=row_rngs(jax.random.key(seed), len(start_tokens)),
        end_token=END,
        **options,
    )
    return jax.device_get(generated)


def test_greedy_rows_end_each_at_its_own_end_token():
    # 0 -> 1 -> 2 -> END; the rows start at 0, 1 and 2.
    tokens, lengths = run_chain([0, 1, 2], max_new_tokens=5, temperature=0)
    assert tokens.tolist() == [[1, 2, 3, 3, 3], [2, 3, 3, 3, 3], [3, 3, 3, 3, 3]]
    assert lengths.tolist() == [2, 1, 0]
    assert tokens.dtype == lengths.dtype == np.int32


def test_a_row_without_end_token_fills_its_length():
    tokens, lengths = run_chain([0, 1], max_new_tokens=2, temperature=0)
    assert tokens.tolist() == [[1, 2], [2, 3]]
    assert lengths.tolist() == [2, 1]


def test_the_loop_stops_once_every_row_has_ended():
    reads = []

    def observed(tokens, cache):
        jax.debug.callback(lambda tokens: reads.append(tokens.tolist()), tokens)
        return chain_to_logits(tokens, cache)

    run_chain([0, 2], max_new_tokens=50, temperature=0, tokens_to_logits=observed)
    jax.effects_barrier()
    assert reads == [[0, 2], [1, END], [2, END]]


def test_a_forbidden_end_token_never_ends_a_row():
    forbidden = np.array([False, False, False, True])
    tokens, lengths = run_chain([0] * 8, max_new_tokens=20, forbidden=forbidden)
    assert lengths.tolist() == [20] * 8
    assert not (tokens == END).any()


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_k": 2}], ids=str)
def test_sampled_texts_follow_the_chain(options):
    rows, length = 20_000, 3
    step = CHAIN ** (1 / options.get("temperature", 1))
    if options:
        step = np.where(step >= np.sort(step, axis=1)[:, [-2]], step, 0)
        step[3] = 0  # the end token's row is never read
    step /= np.maximum(step.sum(1, keepdims=True), 1e-9)
    expected = {}
    for text in itertools.product(range(4), repeat=length):
        probability, last, ended = 1.0, 0, False
        for token in text:
            probability *= (token == END) if ended else step[last, token]
            last, ended = token, ended or token == END
        if probability > 0:
            expected[text] = probability
    tokens, lengths = run_chain([0] * rows, max_new_tokens=length, **options)
    found = {}
    for row in tokens.tolist():
        found[tuple(row)] = found.get(tuple(row), 0) + 1
    assert found.keys() <= expected.keys()
    assert abs(sum(expected.values()) - 1) < 1e-6
    counts = np.array([found.get(text, 0) for text in expected])
    assert stats.chisquare(counts, np.array(list(expected.values())) * rows).pvalue > 1e-4
    assert lengths.tolist() == (tokens != END).sum(1).tolist()


def test_the_seed_decides_and_a_row_depends_on_neither_its_neighbours_nor_the_limit():
    long = run_chain([0] * 16, max_new_tokens=12, seed=5).tokens
    np.testing.assert_array_equal(long, run_chain([0] * 16, max_new_tokens=12, seed=5).tokens)
    np.testing.assert_array_equal(long[:4, :7], run_chain([0] * 4, max_new_tokens=7, seed=5).tokens)
    assert (long != run_chain([0] * 16, max_new_tokens=12, seed=6).tokens).any()
    assert len({tuple(row) for row in long.tolist()}) > 8


def test_max_new_tokens_must_be_positive():
    with pytest.raises(PlugError, match="max_new_tokens is 0"):
        run_chain([0], max_new_tokens=0)


# --- the cached decoder against the whole-prefix decoder ------------------------------------------

CONFIG = PlugConfig(
    vocab_size=60,
    hidden_size=32,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    max_positions=48,
    vocab_multiple=64,
)
POST_NORM = dataclasses.replace(CONFIG, norm_placement="post", scan_layers=False)
PROMPT_LENGTHS = (3, 16, 9)
STEPS = 12


def lively_params(config):
    """Random parameters whose decoder listens to the prompt and writes more than one token."""
    params = reference_model.random_params(config, seed=0)
    params["embeddings"]["position_embeddings"] *= 3
    words = params["embeddings"]["word_embeddings"]
    words[[3, 15]] = words[[15, 3]]  # with [SEP] in this place, the greedy texts tried here end
    params["decoder"]["layers"]["cross_attention"]["out"]["kernel"] *= 4
    params["decoder"]["layers"]["mlp"]["wo"]["kernel"] *= 4
    if config.norm_placement == "pre":
        params["decoder"]["final_norm"]["bias"] *= 0.2
    return params


@functools.cache
def jitted(config, method, **options):
    return jax.jit(
        lambda params, *args, **arrays: PlugModel(config).apply(
            {"params": params}, *args, **arrays, **options, method=method
        )
    )


@pytest.mark.parametrize(
    ("config", "chunks", "cache_length"),
    [
        (CONFIG, [1] * STEPS, STEPS),
        (CONFIG, [STEPS], STEPS),
        (CONFIG, [4, 4, 1, 1, 1, 1], STEPS),
        (POST_NORM, [1] * STEPS, 30),
    ],
    ids=["steps", "prefill", "mixed", "post_norm"],
)
def test_cached_logits_equal_uncached_logits(config, chunks, cache_length):
    params = lively_params(config)
    rng = np.random.default_rng(0)
    segment_ids = (np.arange(16)[None] < np.array(PROMPT_LENGTHS)[:, None]).astype(np.int32)
    prompts = rng.integers(0, config.vocab_size, segment_ids.shape, np.int32) * segment_ids
    tokens = rng.integers(0, config.vocab_size, (len(prompts), STEPS), np.int32)
    encoded = jitted(config, "encode")(params, prompts, segment_ids=segment_ids)
    expected = jitted(config, "decode")(params, tokens, encoded, encoder_segment_ids=segment_ids)
    start_cache = jitted(config, "start_cache", max_length=cache_length)
    cache = start_cache(params, encoded, encoder_segment_ids=segment_ids)
    found = []
    for chunk in np.split(tokens, np.cumsum(chunks)[:-1], axis=1):
        logits, cache = jitted(config, "decode_step")(params, chunk, cache)
        found.append(logits)
    assert [logits.shape[1] for logits in found] == chunks
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=0, atol=1e-5)


# --- prompts to texts -----------------------------------------------------------------------------


class Letters:
    """A vocabulary of one id per letter, PLUG's special ids in front and an extra control id."""

    pad_id, unk_id, cls_id, sep_id, mask_id = range(5)
    special_ids = (0, 1, 2, 3, 4, 5)
    vocab_size = CONFIG.vocab_size

    def encode(self, text):
        return [ord(letter) - ord("A") + 6 for letter in text]

    def decode(self, ids):
        assert all(6 <= token < self.vocab_size for token in ids)
        return "".join(chr(token - 6 + ord("A")) for token in ids)


NOT_TEXT = [0, 1, 2, 4, 5, *range(CONFIG.vocab_size, CONFIG.padded_vocab_size)]
PARAMS = lively_params(CONFIG)
PROMPTS = ["ABC", "ABC", "Z" * 40]
GREEDY = {"temperature": 0, "max_new_tokens": 10}


def texts(prompts=PROMPTS, params=PARAMS, **options):
    return command.generate_texts(CONFIG, params, Letters(), prompts, **options)


def test_greedy_texts_are_the_argmax_of_the_uncached_model():
    found = texts(**GREEDY)
    prompts = padded([[2, *Letters().encode(prompt), 3] for prompt in PROMPTS], 42)
    written = [Letters().encode(text) for (text,) in found]
    segment_ids = (prompts != Letters.pad_id).astype(np.int32)
    encoded = jitted(CONFIG, "encode")(PARAMS, prompts, segment_ids=segment_ids)
    decoder_tokens = padded([[2, *ids][:10] for ids in written], 10)
    logits = np.array(
        jitted(CONFIG, "decode")(PARAMS, decoder_tokens, encoded, encoder_segment_ids=segment_ids)
    )
    logits[..., NOT_TEXT] = -np.inf
    for ids, expected in zip(written, logits.argmax(-1).tolist(), strict=True):
        assert [*ids, Letters.sep_id][:10] == expected[: len(ids) + 1]
    assert [len(ids) for ids in written] == [10, 10, 7]  # the last one ended by itself
    assert found[0] == found[1] and len(set(written[0])) > 3


def padded(rows, length):
    """Rows of ids as an int32 matrix, padded with [PAD] = 0."""
    return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)


def test_only_text_ids_are_written_even_when_others_are_the_likeliest():
    params = jax.tree.map(np.copy, PARAMS)
    final_norm_bias = params["decoder"]["final_norm"]["bias"]
    params["embeddings"]["word_embeddings"][NOT_TEXT] = 50 * final_norm_bias
    # Letters.decode asserts that every id is text.
    texts(params=params, **GREEDY)
    texts(params=params, num_samples=4, temperature=5.0, top_k=0, max_new_tokens=12)


def test_samples_are_reproducible_differ_and_do_not_depend_on_how_many_there_are():
    options = {"max_new_tokens": 12, "temperature": 5.0, "top_k": 0}
    found = texts(num_samples=4, seed=4, **options)
    assert found == texts(num_samples=4, seed=4, **options)
    assert found != texts(num_samples=4, seed=5, **options)
    assert [len(samples) for samples in found] == [4, 4, 4]
    assert len({text for samples in found for text in samples}) == 12
    assert [samples[:2] for samples in found] == texts(num_samples=2, seed=4, **options)


def test_the_padding_of_a_prompt_changes_nothing():
    assert texts(["ABC"], **GREEDY)[0] == texts(**GREEDY)[0]


def test_like_requests_compile_once():
    texts(["A"], **GREEDY)
    compiled = command._compiled_generator
    misses = compiled.cache_info().misses
    generator = compiled(CONFIG, 1, 10, 0, 20, 1.0, Letters.sep_id)
    programs = generator._cache_size()
    texts(["B" * 30], seed=3, **GREEDY)  # the same bucket of 32 as "A"
    assert (compiled.cache_info().misses, generator._cache_size()) == (misses, programs)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("Z" * 47, {}, "a prompt has 47 tokens; this model reads at most 46"),
        ("A", {"max_new_tokens": 49}, "max_new_tokens is 49; it must be between 1 and 48"),
        ("A", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("A", {"num_samples": 0}, "num_samples is 0"),
        ("A", {"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_what_the_model_cannot_do_is_said(prompt, options, message):
    with pytest.raises(PlugError, match=message):
        texts([prompt], **{"max_new_tokens": 4, **options})


def test_the_longest_prompt_and_text_fit():
    ((text,),) = texts(["Z" * 46], max_new_tokens=48, temperature=0)
    assert 0 < len(text) <= 48


def test_a_checkpoint_without_decoder_is_refused():
    config = dataclasses.replace(CONFIG, num_decoder_layers=0)
    with pytest.raises(PlugError, match="this checkpoint has no decoder"):
        command.generate_texts(config, PARAMS, Letters(), ["A"])


def test_the_command_prints_texts_to_stdout_and_speed_to_stderr(monkeypatch, capsys):
    checkpointing = types.ModuleType("plug_jax.training.checkpointing")
    checkpointing.load_for_inference = lambda path: (CONFIG, PARAMS, Letters())
    monkeypatch.setitem(sys.modules, "plug_jax.training.checkpointing", checkpointing)
    monkeypatch.setattr("plug_jax.cli.main.import_tensorflow", lambda: None)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = ["--checkpoint", "run", "--prompt", "HELLO", "--num_samples", "3", "--seed", "7"]
    args = parser.parse_args([*arguments, "--max_new_tokens", "6"])
    args.unknown = []
    assert command.run(args) == 0
    out, err = capsys.readouterr()
    (expected,) = texts(["HELLO"], num_samples=3, seed=7, max_new_tokens=6)
    assert out.splitlines() == expected
    assert f"{sum(map(len, expected))} tokens in" in err and "tokens/s" in err
