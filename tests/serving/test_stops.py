"""Stop strings, whatever the number of tokens per step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plug_jax.inference.generator import GeneratedText
from plug_jax.serving import stops

PIECES = ["x", "ab", "ac", "b", "ca", "c"]


def decode(ids):
    return "".join(PIECES[i] for i in ids)


def written(ids):
    log_probs = [-float(i) for i in range(len(ids))]
    total = float(sum(log_probs))
    return GeneratedText(list(ids), decode(ids), log_probs, total, total, False)


@pytest.mark.parametrize(
    ("text", "strings", "place"),
    [("abcde", ("de", "bc"), 1), ("abcde", ("f",), None), ("abc", (), None), ("aab", ("ab",), 1)],
)
def test_the_first_stop_string(text, strings, place):
    assert stops.first_stop(text, strings) == place


@pytest.mark.parametrize(
    ("text", "strings", "sure"),
    [
        ("abcd", ("cde",), "ab"),
        ("abcd", ("cde", "bcdx"), "a"),
        ("abab", ("abac",), "ab"),
        ("abcd", (), "abcd"),
        ("", ("a",), ""),
        ("你\ufffd", (), "你"),
        ("停\n", ("\n\n",), "停"),
    ],
)
def test_what_may_become_a_stop_string_is_not_certain(text, strings, sure):
    assert stops.certain(text, strings) == sure


def test_a_cut_text_has_the_ids_that_complete_the_stop_string():
    shorter = stops.cut(written([0, 1, 2, 0]), ("c", "ba"), decode, known=0)
    assert (shorter.text, shorter.ids, shorter.finish_reason) == ("xa", [0, 1, 2], "stop")
    assert shorter.log_probs == [0.0, -1.0, -2.0]
    assert shorter.log_prob == -3.0
    assert stops.cut(written([0, 1, 2, 0]), ("z",), decode, known=0) is None


@given(
    ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=12),
    strings=st.lists(st.text("abcx", min_size=1, max_size=4), max_size=3),
    steps=st.integers(1, 5),
)
def test_the_parts_of_a_stream_are_the_text_of_looking_after_each_token(ids, strings, steps):
    whole = stops.cut(written(ids), strings, decode, known=0) or written(ids)
    shown, known = "", 0
    for count in [*range(steps, len(ids), steps), len(ids)]:
        shorter = stops.cut(written(ids[:count]), strings, decode, known=known)
        if shorter is not None or count == len(ids):
            last = shorter or written(ids)
            assert last.text.startswith(shown)
            assert last == whole
            return
        sure = stops.certain(decode(ids[:count]), strings)
        assert sure.startswith(shown)
        shown, known = sure, count
