"""Labels, couples and cuts of a window's groups, from which sentence pairs are made."""

import collections

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from plug_jax.data.preprocessors.groups import locate_groups
from plug_jax.data.preprocessors.sentence_order import (
    choose_segments,
    draw_cuts,
    draw_labels,
    trim_pair,
)


def bert_trim(a, b, budget):
    while a + b > budget:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    return a, b


def test_trimming_is_berts_rule():
    a, b, budget = (grid.ravel() for grid in np.mgrid[1:15, 1:15, 2:14])
    for limit in range(2, 14):
        here = budget == limit
        trimmed = trim_pair(tf.constant(a[here]), tf.constant(b[here]), limit)
        expected = [bert_trim(x, y, limit) for x, y in zip(a[here], b[here], strict=True)]
        np.testing.assert_array_equal(np.stack(trimmed, axis=1), expected)


def over_seeds(draw, seeds):
    """`draw(seed)` for int64 scalars 0 to `seeds`, stacked."""
    numbers = tf.data.Dataset.range(seeds).map(draw, num_parallel_calls=2)
    return [values.numpy() for values in tf.nest.flatten(next(iter(numbers.batch(seeds))))]


def four_seeds(seed):
    """Four different seeds; those of other numbers differ too."""
    return [tf.stack([104_729 * seed + 7 * i, 7919 * i - seed]) for i in range(4)]


WINDOWS = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40)


@tf.function(
    input_signature=[
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None], tf.bool),
        tf.TensorSpec([], tf.int64),
    ]
)
def draw_window(documents, has_b, seed):
    return draw_labels(documents, has_b, four_seeds(seed))


def label_window(documents, has_b, seed):
    drawn = draw_window(
        tf.constant(documents, tf.int64), tf.constant(has_b, tf.bool), tf.constant(seed, tf.int64)
    )
    labels, partners = (tensor.numpy() for tensor in drawn)
    assert labels.dtype == np.int32 and partners.dtype == np.int64
    return labels, partners


@settings(deadline=None, max_examples=200)
@given(WINDOWS, st.integers(0, 1000))
def test_partners_are_exchanged_between_documents(window, seed):
    documents, has_b = (np.array(column) for column in zip(*window, strict=True))
    labels, partners = label_window(documents, has_b, seed)
    receivers = np.flatnonzero(labels == 0)
    assert sorted(partners[receivers]) == receivers.tolist()
    np.testing.assert_array_equal(partners[partners[receivers]], receivers)  # couples
    assert not np.any(documents[partners[receivers]] == documents[receivers])
    assert np.all(has_b[labels != 0] | (labels[labels != 0] == -1))
    assert not np.any(has_b[labels == -1])
    # The groups left over are from one document, and groups with a B were not preferred.
    left = np.unique(documents[labels == -1])
    assert left.size <= 1
    assert not np.any(has_b[(labels == 0) & np.isin(documents, left)])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 1000))
def test_as_many_partners_as_possible(documents, seed):
    labels, _ = label_window(documents, [False] * len(documents), seed)
    total, largest = len(documents), np.bincount(documents).max()
    even = total - total % 2
    assert np.count_nonzero(labels == 0) == min(even, 2 * (total - largest))
    assert set(labels) <= {0, -1}


def test_an_empty_window():
    labels, partners = label_window([], [], 0)
    assert labels.shape == partners.shape == (0,)


def test_documents_meet_at_random():
    """No document always gets its partner from the same other document."""
    met = {label_window([0, 1, 2, 3], [False] * 4, seed)[1][0] for seed in range(40)}
    assert met == {1, 2, 3}


@pytest.mark.parametrize(("groups", "runs"), [(3, 20_000), (8, 5_000)])
def test_small_windows_keep_the_labels_equally_likely(groups, runs):
    documents, has_b = tf.range(groups, dtype=tf.int64), tf.ones([groups], tf.bool)
    labels, _ = over_seeds(lambda seed: draw_labels(documents, has_b, four_seeds(seed)), runs)
    assert np.all(np.count_nonzero(labels == 0, axis=1) % 2 == 0)
    for label in range(3):
        # Test each group separately; those of a window are dependent.
        for count in np.count_nonzero(labels == label, axis=0):
            assert scipy.stats.binomtest(int(count), runs, 1 / 3).pvalue > 1e-5
        shares = np.mean(labels == label, axis=1)
        error = max(np.std(shares), 1e-9) / runs**0.5
        assert abs(np.mean(shares) - 1 / 3) < 4 * error + 1e-9


def test_groups_of_a_sentence_leave_the_others_their_labels():
    runs = 5_000
    documents = tf.range(9, dtype=tf.int64)
    has_b = tf.constant([False, True, True, True, True, False, True, True, False])
    labels, _ = over_seeds(lambda seed: draw_labels(documents, has_b, four_seeds(seed)), runs)
    assert np.all(labels[:, ~has_b.numpy()] == 0)
    for label in range(3):
        for count in np.count_nonzero(labels[:, has_b.numpy()] == label, axis=0):
            assert scipy.stats.binomtest(int(count), runs, 1 / 3).pvalue > 1e-5


def test_labels_and_partners_draw_on_their_own():
    runs = 5_000
    documents, has_b = tf.range(6, dtype=tf.int64), tf.ones([6], tf.bool)
    labels, partners = over_seeds(lambda s: draw_labels(documents, has_b, four_seeds(s)), runs)
    assert np.all(np.count_nonzero(labels == 0, axis=1) == 2)
    pairs = collections.Counter(tuple(np.flatnonzero(row == 0)) for row in labels)
    assert len(pairs) == 15 and scipy.stats.chisquare(list(pairs.values())).pvalue > 1e-4
    assert np.all(partners[labels == 0] < 6)
    table = np.zeros([2, 2])  # the labels of the first two groups that keep their text
    for row in labels:
        one, two = row[row > 0][:2]
        table[one - 1, two - 1] += 1
    assert scipy.stats.chisquare(table.ravel()).pvalue > 1e-4


# Where groups are cut.


def couple(first, second):
    """A window of two groups, lists of tokens of their sentences, that exchange their B."""
    groups = locate_groups(
        tf.constant([*first, *second], tf.int64),
        tf.constant([len(first), len(second)], tf.int64),
    )
    return groups, tf.constant([0, 0]), tf.constant([1, 0], tf.int64)


def cut_couple(first, second, runs):
    """A's lengths in the two groups, [runs, 2]."""
    window = couple(first, second)
    (cuts,) = over_seeds(lambda seed: draw_cuts(*window, tf.stack([7919 * seed, -seed])), runs)
    return cuts


@pytest.mark.parametrize("longer", [0, 1])
def test_partners_are_cut_alike(longer):
    """The longer has a boundary wherever one is wanted, so both examples have the same length."""
    runs = 4000
    lengths = [[1] * 40, [5, 9, 4]]
    if not longer:
        lengths.reverse()
    totals = np.array([sum(group) for group in lengths])
    cuts = cut_couple(*lengths, runs)
    shorter, long_cuts = cuts[:, longer], cuts[:, 1 - longer]
    assert collections.Counter(shorter.tolist()).keys() == {5, 14}
    assert scipy.stats.binomtest(int(np.sum(shorter == 5)), runs).pvalue > 1e-4
    a_aligned = long_cuts == shorter
    b_aligned = totals[1 - longer] - long_cuts == totals[longer] - shorter
    assert np.all(a_aligned ^ b_aligned)
    assert scipy.stats.binomtest(int(a_aligned.sum()), runs).pvalue > 1e-4
    table = [np.bincount(shorter[which], minlength=15)[[5, 14]] for which in (a_aligned, b_aligned)]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-4
    examples = cuts + (totals - cuts)[:, ::-1]
    np.testing.assert_array_equal(np.sort(examples), np.tile(np.sort(totals), [runs, 1]))


def test_the_nearest_boundary_is_taken():
    cuts = cut_couple([10, 20, 30, 7], [9, 16], 200)  # boundaries 10, 30, 60; and 9
    # A as long as 9, or B as long as 16, which is a cut at 51.
    assert set(map(tuple, cuts.tolist())) == {(10, 9), (60, 9)}
    cuts = cut_couple([3, 2], [100, 30, 1], 200)  # wanted: 3, or 129
    assert set(map(tuple, cuts.tolist())) == {(3, 100), (3, 130)}


def test_groups_of_equal_length_follow_one_another():
    cuts = cut_couple([1] * 30, [1] * 30, 500)
    assert np.all(cuts[:, 0] == cuts[:, 1])
    assert set(cuts[:, 0]) == set(range(1, 30))


def test_groups_of_a_sentence_are_not_cut():
    cuts = cut_couple([30], [4, 4, 4], 200)
    assert set(map(tuple, cuts.tolist())) == {(30, 4), (30, 8)}


def test_all_sentence_borders_are_equally_likely():
    """For groups that keep their text, and for the shorter group of each couple."""
    window = 4000
    groups = locate_groups(
        tf.fill([window * 5], tf.constant(2, tf.int64)), tf.fill([window], tf.constant(5, tf.int64))
    )
    partners = tf.reverse(tf.reshape(tf.range(window, dtype=tf.int64), [-1, 2]), [1])
    partners = tf.reshape(partners, [-1])
    for labels in (tf.tile([1, 2], [window // 2]), tf.zeros([window], tf.int32)):
        cuts = draw_cuts(groups, labels, partners, tf.constant([1, 2])).numpy()[::2]
        counts = np.bincount(cuts, minlength=11)[[2, 4, 6, 8]]
        assert counts.sum() == window // 2 and scipy.stats.chisquare(counts).pvalue > 1e-3


def test_only_couples_are_cut_alike():
    groups, _, _ = couple([1] * 50, [1] * 30)
    # A partner's number is meaningless without label 0.
    draws = over_seeds(
        lambda seed: draw_cuts(
            groups, tf.constant([1, 2]), tf.constant([1, 0], tf.int64), tf.stack([seed, 5 * seed])
        ),
        300,
    )
    (cuts,) = draws
    alike = (cuts[:, 0] == cuts[:, 1]) | (50 - cuts[:, 0] == 30 - cuts[:, 1])
    assert np.mean(alike) < 0.2


def test_segments_are_chosen_by_label():
    groups = locate_groups(
        tf.constant([2, 3, 4, 5, 6, 7, 8], tf.int64), tf.constant([2, 2, 1, 2], tf.int64)
    )  # starts 0, 5, 14, 20; lengths 5, 9, 6, 15
    cuts = tf.constant([2, 4, 6, 7], tf.int64)
    chosen = {
        (1, 2, -1, 1): [[[0, 2], [2, 3]], [[9, 5], [5, 4]], [[20, 7], [27, 8]]],
        (0, 0, -1, 2): [[[0, 2], [9, 5]], [[5, 4], [2, 3]], [[27, 8], [20, 7]]],
        # The group without a B gives away its whole text.
        (1, 1, 0, 0): [[[0, 2], [2, 3]], [[5, 4], [9, 5]], [[14, 6], [27, 8]], [[20, 7], [14, 6]]],
    }
    partners = tf.constant([1, 0, 3, 2], tf.int64)
    for labels, expected in chosen.items():
        segments = choose_segments(groups, cuts, tf.constant(labels), partners)
        assert segments.numpy().tolist() == expected
