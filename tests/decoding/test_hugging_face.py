"""Beam search and constraints against `transformers`' generate, over the same model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.decoding.beam import beam_search
from plug_jax.decoding.generate import advance, start
from plug_jax.decoding.sampling import Sampling, row_rngs
from tests.decoding.test_generate import constraints

PAD, START, END, VOCAB, ROOM = 0, 1, 2, 30, 14
KINDS = {
    "plain": {},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "min_length": {"min_new_tokens": 9},
    "all": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 6},
}


@pytest.fixture(scope="module")
def bart():
    """A tiny model with random weights, whose texts sometimes end."""
    torch = pytest.importorskip("torch")
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(3)
    config = BartConfig(
        vocab_size=VOCAB,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        init_std=1.0,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=START,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
    )
    return BartForConditionalGeneration(config).eval()


PROMPTS = np.random.default_rng(0).integers(3, VOCAB, (6, 5))


def their_texts(bart, kind, **options):
    """[(ids without [start], sequence score or None)] for each prompt, its texts in order."""
    import torch

    found = bart.generate(
        torch.tensor(PROMPTS),
        max_new_tokens=ROOM,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        use_cache=False,
        suppress_tokens=[PAD, START],  # theirs counts the start token as generated
        **KINDS[kind],
        **options,
    )
    texts = []
    for row in found.sequences.tolist():
        ids = row[1:]
        ids = ids[: ids.index(END) + 1] if END in ids else [i for i in ids if i != PAD]
        texts.append(ids)
    return texts, found.get("sequences_scores")


def bart_to_logits(bart, beams):
    """The model behind `TokensToLogits`; the cache holds each row's tokens and their number."""
    import torch

    prompts = np.repeat(PROMPTS, beams, axis=0)

    def logits_of(texts, lengths):
        with torch.no_grad():
            logits = bart(
                input_ids=torch.tensor(prompts), decoder_input_ids=torch.tensor(np.asarray(texts))
            ).logits
        return np.asarray(logits)[np.arange(len(prompts)), np.asarray(lengths) - 1]

    def tokens_to_logits(tokens, cache, active):
        texts, lengths = cache
        texts = jax.vmap(lambda row, token, at: row.at[at].set(token))(texts, tokens, lengths)
        lengths = lengths + 1
        shape = jax.ShapeDtypeStruct((len(prompts), VOCAB), jnp.float32)
        return jax.pure_callback(logits_of, shape, texts, lengths), (texts, lengths)

    empty = (jnp.zeros((len(prompts), ROOM), jnp.int32), jnp.zeros(len(prompts), jnp.int32))
    return tokens_to_logits, empty, jnp.full(len(prompts), START)


def limits(rows, kind):
    ours = {
        "repetition_penalty": np.full(rows, KINDS[kind].get("repetition_penalty", 1), np.float32),
        "no_repeat_ngram": np.full(rows, KINDS[kind].get("no_repeat_ngram_size", 0), np.int32),
        "min_length": np.full(rows, KINDS[kind].get("min_new_tokens", 0), np.int32),
    }
    forbidden = np.isin(np.arange(VOCAB), [PAD, START])
    return constraints(rows, max_length=ROOM, vocab_size=VOCAB, forbidden=forbidden, **ours)


def whole(ids, length, ended):
    return [*np.asarray(ids)[:length].tolist(), *([END] if ended else [])]


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts(bart, kind):
    expected, _ = their_texts(bart, kind)
    tokens_to_logits, cache, starts = bart_to_logits(bart, 1)
    rows = len(PROMPTS)
    greedy = Sampling(
        row_rngs(jax.random.key(0), rows),
        jnp.zeros(rows),
        jnp.zeros(rows, jnp.int32),
        jnp.ones(rows),
    )
    decoding = start(cache, start_tokens=starts, max_new_tokens=ROOM, end_token=END)
    found = advance(
        tokens_to_logits,
        decoding,
        limits(rows, kind),
        greedy,
        steps=ROOM,
        end_token=END,
        candidates=1,
        penalties=kind != "plain",
    )
    texts = [whole(*row) for row in zip(found.tokens, found.lengths, found.stopped, strict=True)]
    assert texts == expected


@pytest.mark.parity
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_beam_search(bart, kind, length_penalty):
    beams = 4
    expected, scores = their_texts(
        bart,
        kind,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=length_penalty,
        early_stopping="never",  # like ours: until no beam can improve
    )
    tokens_to_logits, cache, starts = bart_to_logits(bart, beams)
    found = beam_search(
        tokens_to_logits,
        cache,
        lambda cache, parents: jax.tree.map(lambda leaf: leaf[parents], cache),
        limits(len(starts), kind),
        start_tokens=starts,
        num_beams=beams,
        max_new_tokens=ROOM,
        end_token=END,
        length_penalty=length_penalty,
        penalties=kind != "plain",
    )
    scores = np.asarray(scores).reshape(-1, beams)
    for prompt in range(len(PROMPTS)):
        theirs = expected[prompt * beams : (prompt + 1) * beams]
        ours = [
            whole(found.tokens[prompt, b], found.lengths[prompt, b], found.ended[prompt, b])
            for b in range(beams)
        ]
        assert ours == theirs
        np.testing.assert_allclose(found.scores[prompt], scores[prompt], rtol=1e-4)
