"""MinHash signatures against exact similarities, and which documents of a group are dropped."""

import itertools

import numpy as np
import pytest

from plug_jax.data.caching.deduplication import (
    PERMUTATIONS,
    SHINGLE_CHARACTERS,
    Deduplication,
    band_keys,
    digest,
    later_members,
    link_similar,
    signature,
)
from plug_jax.errors import PlugError

ALPHABET = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]


def similarity(one, other):
    """The exact Jaccard similarity."""
    sets = [
        {text[i : i + SHINGLE_CHARACTERS] for i in range(len(text) - SHINGLE_CHARACTERS + 1)}
        for text in (one, other)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def random_text(rng, length):
    return "".join(rng.choice(ALPHABET, length))


def edited(rng, text, edits):
    """The text with this many characters replaced."""
    letters = list(text)
    for place in rng.choice(len(text), edits, replace=False):
        letters[place] = ALPHABET[rng.integers(len(ALPHABET))]
    return "".join(letters)


def estimate(one, other):
    return np.mean(signature(one) == signature(other))


def test_signatures_as_in_the_docstring():
    assert similarity("abcdefgh", "abcdefgx") == 3 / 5
    # 3 / 5 within four standard errors of 128 draws.
    assert abs(estimate("abcdefgh", "abcdefgx") - 3 / 5) < 4 * np.sqrt(0.24 / PERMUTATIONS)


def test_signatures_estimate_the_similarity_without_bias():
    rng = np.random.default_rng(0)
    errors, sizes = [], []
    for edits in (1, 3, 6, 10, 20, 40):
        for _ in range(20):
            text = random_text(rng, 300)
            other = edited(rng, text, edits)
            true = similarity(text, other)
            errors.append(estimate(text, other) - true)
            sizes.append(true * (1 - true) / PERMUTATIONS)
    errors, sizes = np.array(errors), np.array(sizes)
    assert abs(errors.sum()) < 4 * np.sqrt(sizes.sum())
    # The spread is that of 128 independent draws, not of fewer.
    assert np.mean(errors**2 / sizes) == pytest.approx(1, abs=0.5)


def test_signatures_know_sets_not_texts():
    text = "天地玄黄宇宙洪荒日月盈昃"
    assert np.array_equal(signature(text), signature(text))
    assert signature(text).dtype == np.uint32
    assert signature(text).shape == (PERMUTATIONS,)
    assert np.array_equal(signature("一" * 50), signature("一" * 5000))
    assert estimate("天地", "天地") == 1
    assert estimate("天地", "天人") < 0.1
    assert np.array_equal(signature("𠀀𠀁𠀂𠀃𠀄𠀀𠀁𠀂𠀃𠀄𠀀"), signature("𠀀𠀁𠀂𠀃𠀄" * 3))


def test_long_texts_are_hashed_in_pieces(monkeypatch):
    text = random_text(np.random.default_rng(0), 1000)
    whole = signature(text)
    monkeypatch.setattr("plug_jax.data.caching.deduplication._SHINGLES_AT_ONCE", 7)
    assert np.array_equal(signature(text), whole)


def test_bands_meet_as_often_as_their_formula_says():
    bands, rows = Deduplication(0.8).bands()
    assert bands * rows <= PERMUTATIONS
    assert 1 - (1 - 0.8**rows) ** bands > 0.8  # a pair at the threshold is mostly found
    assert 1 - (1 - 0.4**rows) ** bands < 0.01  # a pair far below it is hardly ever compared
    rng = np.random.default_rng(1)
    meet, expected = [], []
    for _ in range(150):
        text = random_text(rng, 250)
        other = edited(rng, text, 8)
        keys = band_keys(np.array([signature(text), signature(other)]), bands, rows)
        meet.append((keys[0] == keys[1]).any())
        expected.append(1 - (1 - similarity(text, other) ** rows) ** bands)
    spread = np.sqrt(sum(p * (1 - p) for p in expected))
    assert abs(sum(meet) - sum(expected)) < 4 * spread


def test_keys_are_equal_where_bands_are():
    signatures = np.random.default_rng(0).integers(0, 3, (200, PERMUTATIONS), np.uint32)
    keys = band_keys(signatures, 40, 3)
    assert keys.shape == (200, 40)
    assert keys.dtype == np.uint64
    for one, other in itertools.combinations(range(200), 2):
        same = (signatures[one, :120] == signatures[other, :120]).reshape(40, 3).all(axis=1)
        assert np.array_equal(keys[one] == keys[other], same)


def test_links_are_made_to_the_first_and_do_not_depend_on_the_order():
    def values(same):
        return np.r_[np.zeros(same, np.uint32), np.arange(1, PERMUTATIONS - same + 1)]

    zeros, near, far = values(PERMUTATIONS), values(110), values(40)
    members = [((0, 5), zeros), ((1, 2), near), ((0, 9), far), ((2, 0), zeros)]
    for order in itertools.permutations(members):
        assert link_similar(order, 0.8) == [((1, 2), (0, 5)), ((2, 0), (0, 5))]
    assert link_similar(members, 0.9) == [((2, 0), (0, 5))]


def test_groups_as_in_the_docstring():
    links = [((0, 7), (0, 2)), ((1, 0), (0, 7))]
    for order in itertools.permutations(links):
        assert later_members(order) == {(0, 7), (1, 0)}


def test_groups_against_their_definition():
    rng = np.random.default_rng(2)
    for _ in range(30):
        links = [tuple((0, int(n)) for n in rng.integers(0, 30, 2)) for _ in range(20)]
        groups = {(0, n): {(0, n)} for n in range(30)}
        for one, other in links:
            merged = groups[one] | groups[other]
            groups.update(dict.fromkeys(merged, merged))
        expected = {place for place, group in groups.items() if place != min(group)}
        assert later_members(links) == expected


def test_digests():
    assert digest("天".encode()) == digest("天".encode())
    assert len({digest(text.encode()) for text in ("天", "天 ", "", "地")}) == 4


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 1.5])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(PlugError, match="must lie between 0 and 1"):
        Deduplication(threshold)


def test_a_threshold_too_close_to_1_is_refused_at_once():
    assert Deduplication(0.99).bands() == (2, 64)
    with pytest.raises(PlugError, match=r"0\.995, is too close to 1 .*give 0\.99 or less"):
        Deduplication(0.995)
