"""Text generation: against the bare model, in batches, as streams, in slots and on a mesh."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from plug_jax.errors import PlugError
from plug_jax.inference.generator import generate, generate_long, stream
from plug_jax.inference.model import InferenceModel, NoNumbersError
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.inference.slots import Slots
from plug_jax.partitioning import Partitioner
from tests.inference_model import (
    CONFIG,
    NOT_TEXT,
    Letters,
    broken_model,
    jitted,
    lively_model,
    lively_params,
    padded,
)

PROMPTS = ["ABC", "ABC", "Z" * 40]
GREEDY = {"temperature": 0, "max_new_tokens": 10}
WILD = {"temperature": 5.0, "top_k": 0, "max_new_tokens": 12}


def texts(prompts=PROMPTS, model=None, *, seeds=None, **options):
    """Only the texts of each prompt."""
    found = generate(model or lively_model(), prompts, GenerationOptions(**options), seeds=seeds)
    return [[text.text for text in samples] for samples in found]


def uncached_logits(prompts, written, length):
    """[P, length, V] from the bare model, whose decoder reads [CLS] and the generated tokens."""
    params = lively_params(CONFIG)
    ids = padded([[2, *Letters().encode(prompt), 3] for prompt in prompts], 42)
    segment_ids = (ids != Letters.pad_id).astype(np.int32)
    encoded = jitted(CONFIG, "encode")(params, ids, segment_ids=segment_ids)
    tokens = padded([[2, *row][:length] for row in written], length)
    decode = jitted(CONFIG, "decode")
    return np.array(decode(params, tokens, encoded, encoder_segment_ids=segment_ids))


def test_greedy_texts_are_the_argmax_of_the_uncached_model():
    found = [text for (text,) in generate(lively_model(), PROMPTS, GenerationOptions(**GREEDY))]
    logits = uncached_logits(PROMPTS, [text.ids for text in found], 10)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    logits[..., NOT_TEXT] = -np.inf
    for row, text in enumerate(found):
        whole = [*text.ids, Letters.sep_id][:10]
        assert whole == logits[row].argmax(-1).tolist()[: len(whole)]
        expected = [log_probs[row, place, token] for place, token in enumerate(whole)]
        np.testing.assert_allclose(text.log_probs, expected, atol=1e-5)
        assert text.log_prob == pytest.approx(sum(expected), abs=1e-4)
    assert [len(text.ids) for text in found] == [10, 10, 7]  # the last one ended by itself
    assert [text.finish_reason for text in found] == ["length", "length", "stop"]
    assert found[0] == found[1] and len(set(found[0].ids)) > 3


def test_the_log_likelihood_of_a_text_is_the_sum_of_its_log_probs():
    model = lively_model()
    (samples,) = generate(model, ["HELLO"], GenerationOptions(num_samples=3, **WILD))
    targets = [[*t.ids, *([Letters.sep_id] if t.stopped else [])] for t in samples]
    (found,) = model.log_likelihoods([model.prompt_ids("HELLO")], [targets])
    for scores, text in zip(found, samples, strict=True):
        np.testing.assert_allclose(scores, text.log_probs, atol=1e-4)


def test_beam_search_finds_what_is_at_least_as_likely_as_greedy():
    greedy = generate(lively_model(), PROMPTS, GenerationOptions(**GREEDY))
    options = GenerationOptions(num_beams=4, num_samples=3, length_penalty=0.0, max_new_tokens=10)
    found = generate(lively_model(), PROMPTS, options)
    for (one,), best in zip(greedy, found, strict=True):
        assert len(best) == 3 and len({text.text for text in best}) == 3
        assert best[0].log_prob >= one.log_prob - 1e-4
        assert [t.score for t in best] == sorted((t.score for t in best), reverse=True)
    # The scores are the model's own.
    model = lively_model()
    for prompt, best in zip(PROMPTS, found, strict=True):
        targets = [[*t.ids, *([Letters.sep_id] if t.stopped else [])] for t in best]
        (scores,) = model.log_likelihoods([model.prompt_ids(prompt)], [targets])
        np.testing.assert_allclose([sum(s) for s in scores], [t.log_prob for t in best], atol=1e-4)


def test_only_text_ids_are_written_even_when_others_are_the_likeliest():
    params = lively_params(CONFIG)
    final_norm_bias = params["decoder"]["final_norm"]["bias"]
    params["embeddings"]["word_embeddings"][NOT_TEXT] = 50 * final_norm_bias
    model = InferenceModel(CONFIG, params, Letters())
    # Letters.decode asserts that every id is text.
    texts(model=model, **GREEDY)
    texts(model=model, num_samples=4, **WILD)
    texts(model=model, num_beams=2, max_new_tokens=10)


def test_samples_are_reproducible_differ_and_do_not_depend_on_how_many_there_are():
    found = texts(num_samples=4, seed=4, **WILD)
    assert found == texts(num_samples=4, seed=4, **WILD)
    assert found != texts(num_samples=4, seed=5, **WILD)
    assert [len(samples) for samples in found] == [4, 4, 4]
    assert len({text for samples in found for text in samples}) == 12
    assert [samples[:2] for samples in found] == texts(num_samples=2, seed=4, **WILD)
    assert found[:1] == texts(["ABC"], num_samples=4, seeds=[4], **WILD)


def test_limits_and_texts_to_force_and_to_forbid():
    (short,), _, _ = texts(max_new_tokens=3, temperature=0)
    (text,), _, _ = texts(**GREEDY)
    assert short == text[:3]
    ((ended,),) = texts(["Z" * 40], **GREEDY)
    ((longer,),) = texts(["Z" * 40], min_new_tokens=9, **GREEDY)
    assert len(longer) >= 9 > len(ended) and longer.startswith(ended)
    ((forced,),) = texts(["Z" * 40], forced_text="HELLO", **GREEDY)
    assert forced.startswith("HELLO") and len(forced) > 5
    ((without,),) = texts(["Z" * 40], forbidden_text=ended[0], **GREEDY)
    assert ended[0] not in without
    ((varied,),) = texts(["ABC"], no_repeat_ngram=1, **GREEDY)
    assert len(set(varied)) == len(varied)


def test_like_requests_compile_once():
    model = lively_model()
    texts(["A"], **GREEDY)
    sizes = (model._start._cache_size(), model._advance._cache_size())
    # The same bucket of 32 prompt tokens and of 32 new ones.
    texts(["B" * 30], temperature=0, max_new_tokens=25, min_new_tokens=3, seed=3)
    assert (model._start._cache_size(), model._advance._cache_size()) == sizes


def test_a_stream_grows_to_what_generate_gives():
    for options in (GREEDY, {**WILD, "seed": 3}):
        ((whole,),) = generate(lively_model(), ["ABC"], GenerationOptions(**options))
        grown = list(stream(lively_model(), "ABC", GenerationOptions(**options), every=3))
        assert grown[-1] == whole
        assert len(grown) == -(-(len(whole.ids) + whole.stopped) // 3)
        for before, after in itertools.pairwise(grown):
            assert after.text.startswith(before.text)


REQUESTS = [
    ("ABC", GREEDY),
    ("Z" * 40, GREEDY),
    ("HELLO", {**WILD, "seed": 7}),
    ("ABC", {"temperature": 1.0, "top_k": 5, "top_p": 0.8, "max_new_tokens": 20, "seed": 9}),
    ("", {"temperature": 2.0, "top_k": 3, "max_new_tokens": 1}),
    ("QQ", {**GREEDY, "no_repeat_ngram": 2, "forced_text": "AB"}),
    ("Z" * 40, {**GREEDY, "repetition_penalty": 1.5, "min_new_tokens": 9}),
]


def test_what_a_slot_writes_depends_neither_on_neighbours_nor_on_when_it_came():
    model = lively_model()
    slots = Slots(model, count=3, max_prompt_tokens=48, max_new_tokens=20)
    waiting, running, found = list(range(len(REQUESTS))), {}, {}
    rounds = 0
    while waiting or running:
        while waiting and slots.free:
            number = waiting.pop(0)
            prompt, options = REQUESTS[number]
            running[slots.admit(prompt, GenerationOptions(**options))] = number
        rounds += 1
        for slot, (text, ended) in slots.advance(1 + rounds % 4).items():
            if ended:
                found[running.pop(slot)] = text
    assert slots.free == 3 and slots.advance(5) == {}
    for number, (prompt, options) in enumerate(REQUESTS):
        ((alone,),) = generate(model, [prompt], GenerationOptions(**options))
        assert found[number].ids == alone.ids, number
        assert found[number].finish_reason == alone.finish_reason
        np.testing.assert_allclose(found[number].log_probs, alone.log_probs, atol=1e-4)


def test_a_released_slot_is_free_and_the_others_go_on():
    slots = Slots(lively_model(), count=2, max_prompt_tokens=48, max_new_tokens=20)
    first = slots.admit("ABC", GenerationOptions(**GREEDY))
    second = slots.admit("ABC", GenerationOptions(**GREEDY))
    slots.advance(2)
    slots.release(first)
    assert slots.free == 1
    ((text, ended),) = slots.advance(20).values()
    assert ended and text.text == texts(["ABC"], **GREEDY)[0][0] and second == 1


def test_a_mesh_writes_the_texts_of_one_device():
    partitioner = Partitioner(data=2, fsdp=2, tensor=2)
    model = InferenceModel(
        CONFIG, sharded(lively_params(CONFIG), partitioner), Letters(), partitioner
    )
    prompts = ["ABC", "HELLO", "Z" * 40]  # 3 prompts over 4 devices
    assert texts(prompts, model=model, **GREEDY) == texts(prompts, **GREEDY)
    options = {"num_samples": 2, "seed": 1, "max_new_tokens": 10}
    assert texts(prompts, model=model, **options) == texts(prompts, **options)
    beams = {"num_beams": 2, "max_new_tokens": 10}
    assert texts(prompts, model=model, **beams) == texts(prompts, **beams)
    slots = Slots(model, count=4, max_prompt_tokens=48, max_new_tokens=20)
    slots.admit("ABC", GenerationOptions(**GREEDY))
    assert slots.advance(20)[0][0].text == texts(["ABC"], **GREEDY)[0][0]
    with pytest.raises(PlugError, match="3 slots do not divide over the mesh; .* is 4"):
        Slots(model, count=3, max_prompt_tokens=48, max_new_tokens=20)


def sharded(params, partitioner):
    from plug_jax.checkpoints.parameters import abstract_params
    from plug_jax.models.plug import PlugModel

    shardings = partitioner.param_shardings(abstract_params(PlugModel(CONFIG)))
    return jax.device_put(params, shardings)


class AnyIds(Letters):
    """The released scheme forbids nothing: ids that are not text are dropped when decoding."""

    def encode(self, text):
        return super().encode("".join(c for c in text if c not in "\"'-"))

    def decode(self, ids):
        return super().decode([i for i in ids if i > 5])


def test_long_texts_exceed_the_models_positions():
    model = InferenceModel(CONFIG, lively_params(CONFIG), AnyIds())
    options = GenerationOptions(max_new_tokens=80, temperature=20.0, top_k=0, seed=1)
    prompts = ["“ABC——", "HELLO" * 12]  # the second is longer than the context: its end is read
    found = generate_long(model, prompts, options, chunk=16, context_length=32)
    assert min(map(len, found)) > CONFIG.max_positions
    assert "““" not in "".join(found) and "“" in "".join(found)
    alone = generate_long(model, prompts[:1], options, chunk=16, context_length=32)
    assert alone == found[:1]
    end = generate_long(model, ["X", ("HELLO" * 12)[-30:]], options, chunk=16, context_length=32)
    assert end[1] == found[1]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("Z" * 47, {}, "a prompt has 47 tokens; this model reads at most 46"),
        ("A", {"max_new_tokens": 49}, "max_new_tokens is 49; it must be between 1 and 48"),
        ("A", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (
            "A",
            {"max_new_tokens": 2**31},
            "max_new_tokens is 2147483648; it must be at least 1, bel",
        ),
        ("A", {"num_samples": 0}, "num_samples is 0"),
        (
            "A",
            {"num_samples": 10**10},
            "num_samples is 10000000000; .* 1 and 65536",
        ),
        ("A", {"num_beams": 2**31}, "num_beams is 2147483648; it must be between 1 and 65536"),
        ("A", {"seed": 2**32}, "seed is 4294967296; it must be 0 or more, below"),
        ("A", {"temperature": -1.0}, "temperature is -1.0; it must be 0 .greedy. or positive"),
        ("A", {"temperature": float("inf")}, "temperature must be a finite number, not inf"),
        ("A", {"temperature": 10**400}, "temperature must be a finite number, not 1000"),
        ("A", {"top_k": -1}, "top_k is -1"),
        ("A", {"top_k": 2.5}, "top_k must be a whole number, not 2.5"),
        ("A", {"top_k": True}, "top_k must be a whole number, not True"),
        ("A", {"top_k": "5"}, "top_k must be a whole number, not '5'"),
        ("A", {"top_k": float("nan")}, "top_k must be a whole number, not nan"),
        ("A", {"top_p": float("nan")}, "top_p must be a finite number, not nan"),
        ("A", {"top_p": None}, "top_p must be a finite number, not None"),
        ("A", {"repetition_penalty": 1e-40}, "repetition_penalty is 1e-40; .* 0.001 and 1000.0"),
        ("A", {"repetition_penalty": 1e39}, "repetition_penalty is 1e.39; .* 0.001 and 1000.0"),
        ("A", {"num_beams": 2, "length_penalty": 1e30}, "length_penalty is 1e.30; .* -5.0 and 5.0"),
        ("A", {"num_beams": 2, "length_penalty": -1e30}, "length_penalty is -1e.30"),
        ("A", {"num_beams": 2, "length_offset": -1.0}, "length_offset is -1.0; .* 0 and 65536"),
        ("A", {"forced_text": 5}, "forced_text must be a text in quotes, not 5"),
        ("A", {"top_p": 0.0}, "top_p is 0.0"),
        ("A", {"min_new_tokens": 5}, "min_new_tokens is 5; it must be 0 or more, and at most"),
        ("A", {"no_repeat_ngram": 9}, "no_repeat_ngram is 9; it must be between 0 .none. and 8"),
        ("A", {"num_beams": 2, "num_samples": 3}, "beam search gives num_beams texts at most, 2"),
        ("A", {"forced_text": "ABCDE"}, "forced_text has 5 tokens; there is room for 4"),
        ("A", {"forced_text": "="}, "forced_text '=' has characters that the vocabulary does not"),
    ],
)
def test_what_cannot_be_done_is_said(prompt, options, message):
    with pytest.raises(PlugError, match=message):
        texts([prompt], **{"max_new_tokens": 4, **options})


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"temperature": 1e-40}, {"temperature": 0}),
        ({"temperature": 5e-324}, {"temperature": 0}),
        ({"temperature": 1e300}, {"temperature": 1e30}),
        ({"top_p": 1e-300}, {"temperature": 0}),
        ({"top_k": 64}, {"top_k": 0}),
        ({"top_k": 2**31}, {"top_k": 0}),
        ({"top_k": 10**400}, {"top_k": 0}),
        ({"top_k": 20.0, "seed": 3.0}, {"top_k": 20, "seed": 3}),
    ],
)
def test_a_number_that_its_type_cannot_hold_writes_what_it_says(given, same):
    base = {"max_new_tokens": 12, "seed": 3}
    assert texts(**{**base, **given}) == texts(**{**base, **same})


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_penalties_leave_scores_that_are_numbers(sign):
    options = GenerationOptions(
        num_beams=3,
        num_samples=3,
        max_new_tokens=48,
        min_new_tokens=40,
        repetition_penalty=1000**sign,
        length_penalty=5 * sign,
    )
    (found,) = generate(lively_model(), ["ABC"], options)
    assert len(found) == 3
    assert [t.score for t in found] == sorted((t.score for t in found), reverse=True)
    for text in found:
        assert -np.inf < text.score < 0 and len(text.ids) >= 40
        # The score is of the penalised sum, between the model's own and 1000 times that.
        tokens = len(text.ids) + text.stopped
        ratio = text.score * tokens ** (5 * sign) / text.log_prob
        assert min(1, 1000**sign) * 0.999 <= ratio <= max(1, 1000**sign) * 1.001


def test_the_length_penalty_of_the_released_plug():
    options = {"num_beams": 3, "num_samples": 3, "max_new_tokens": 12, "min_new_tokens": 5}
    penalty = {"length_penalty": 0.6, "length_offset": 5.0}
    (found,) = generate(lively_model(), ["HELLO"], GenerationOptions(**options, **penalty))
    for text in found:
        tokens = len(text.ids) + text.stopped
        assert tokens >= 5
        assert text.score == pytest.approx(text.log_prob / ((5 + tokens) / 6) ** 0.6, rel=1e-5)


@pytest.mark.parametrize("number", [math.nan, 1e30])
@pytest.mark.parametrize("options", [GREEDY, WILD, {"num_beams": 2, "max_new_tokens": 10}])
def test_a_model_without_numbers_writes_nothing(options, number):
    model, options = broken_model(number), GenerationOptions(**options)
    with pytest.raises(NoNumbersError, match="gives no numbers"):
        generate(model, PROMPTS, options)
    if options.num_beams == 1:
        with pytest.raises(NoNumbersError):
            next(stream(model, "ABC", options))
        with pytest.raises(NoNumbersError):
            generate_long(model, ["ABC"], options)


def test_what_a_slot_has_no_room_for_is_said():
    slots = Slots(lively_model(), count=1, max_prompt_tokens=8, max_new_tokens=10)
    for prompt, options, message in [
        ("A" * 7, {}, "the prompt has 7 tokens; at most 6 here"),
        ("A", {"max_new_tokens": 11}, "max_new_tokens is 11; at most 10 here"),
        ("A", {"num_samples": 2}, "num_samples and num_beams must be 1"),
    ]:
        with pytest.raises(PlugError, match=message):
            slots.admit(prompt, GenerationOptions(**{"max_new_tokens": 4, **options}))
    assert slots.free == 1
    for count, longest, message in [
        (0, 8, "slots is 0; it must be between 1 and 65536"),
        (2**31, 8, "slots is 2147483648"),
        (1, 1, "max_prompt_tokens is 1; with .CLS. and .SEP. it is at least 2"),
        (1, 2**31, "max_prompt_tokens is 2147483648; it must be between 1 and 48"),
    ]:
        with pytest.raises(PlugError, match=message):
            Slots(lively_model(), count=count, max_prompt_tokens=longest, max_new_tokens=4)


def test_the_longest_prompt_and_text_fit():
    ((text,),) = texts(["Z" * 46], max_new_tokens=48, temperature=0)
    assert 0 < len(text) <= 48
    assert texts([]) == []


def test_other_models_are_refused():
    config = dataclasses.replace(CONFIG, num_decoder_layers=0)
    with pytest.raises(PlugError, match="no decoder.*INITIAL_CHECKPOINT.*evaluate.*export-hf"):
        InferenceModel(config, lively_params(CONFIG), Letters())
    config = dataclasses.replace(CONFIG, vocab_size=40, vocab_multiple=8)
    with pytest.raises(PlugError, match="the vocabulary has 60 pieces, the model rows for 40"):
        InferenceModel(config, lively_params(CONFIG), Letters())
