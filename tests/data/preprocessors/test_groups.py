"""Groups fill examples, hold every token once and in order, and are drawn alternately."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from plug_jax.data.preprocessors.groups import chunks_in_turn, cut_groups, locate_groups

# Each document is a list of its sentences' tokens.
DOCUMENTS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), max_size=6)


def cut(documents, budget):
    document_lengths = tf.constant([sum(lengths) for lengths in documents], tf.int32)
    sentence_lengths = tf.constant([n for lengths in documents for n in lengths], tf.int32)
    groups = cut_groups(document_lengths, sentence_lengths, budget=budget)
    assert all(values.dtype == tf.int64 for values in groups.values())
    return {name: values.numpy() for name, values in groups.items()}


def pieces_of(groups):
    """(document, tokens of each piece) of each group."""
    ends = np.cumsum(groups["group_pieces"])
    pieces = np.split(groups["piece_lengths"], ends)
    assert pieces.pop().size == 0
    return [
        (document, here.tolist())
        for document, here in zip(groups["document"].tolist(), pieces, strict=True)
    ]


def test_docstring_example():
    groups = cut([[4, 9, 7, 6], [3]], budget=16)
    assert groups["piece_lengths"].tolist() == [4, 2, 2, 2, 2, 1, 7, 6, 3]
    assert groups["group_pieces"].tolist() == [7, 1, 1]
    assert groups["document"].tolist() == [0, 0, 1]


def group_by_hand(documents, budget):
    """The expected groups, piece by piece."""
    groups = []
    for number, sentences in enumerate(documents):
        pieces = []
        for length in sentences:
            parts = -(-length // max(budget // 8, 1)) if length > budget // 2 else 1
            pieces += [length // parts + (part < length % parts) for part in range(parts)]
        while pieces:
            count = 1
            while count < len(pieces) and sum(pieces[:count]) < budget:
                count += 1
            fewer = count
            while fewer and sum(pieces[fewer:]) < budget // 8:
                fewer -= 1
            if count < len(pieces) and fewer > 0:
                count = fewer  # the last piece needs an eighth
            groups.append((number, pieces[:count]))
            del pieces[:count]
    return groups


@settings(deadline=None, max_examples=200)
@given(DOCUMENTS, st.integers(2, 60))
def test_groups_are_filled_in_order(documents, budget):
    assert pieces_of(cut(documents, budget)) == group_by_hand(documents, budget)


@settings(deadline=None, max_examples=100)
@given(DOCUMENTS, st.integers(2, 60))
def test_what_a_group_promises(documents, budget):
    groups = pieces_of(cut(documents, budget))
    for document, sentences in enumerate(documents):
        sizes = [sum(pieces) for number, pieces in groups if number == document]
        assert sum(sizes) == sum(sentences)
        assert all(budget <= size < budget + budget // 2 for size in sizes[:-2])
        assert sizes[-1] < budget + budget // 2
        assert len(sizes) < 2 or sizes[-2] >= min(budget, budget - budget // 8 - budget // 2)
    assert all(1 <= piece <= budget // 2 for _, pieces in groups for piece in pieces)


def test_groups_end_with_sentences():
    sentences = np.random.default_rng(0).integers(1, 31, 1000)
    groups = cut([sentences.tolist()], budget=60)
    assert groups["piece_lengths"].tolist() == sentences.tolist()
    sizes = [sum(pieces) for _, pieces in pieces_of(groups)]
    assert min(sizes[:-2]) >= 60 and 4 < np.mean(sizes[:-2]) - 60 < 16


def test_no_document():
    groups = cut([], budget=9)
    assert all(values.size == 0 for values in groups.values())


# Chunks.


def make_block(first_token, groups, documents, budget):
    """A block with this many documents and groups, and the expected groups."""
    lengths = [[budget // 2] * (2 * groups) for _ in range(documents)]
    cut_up = cut(lengths, budget)
    tokens = np.arange(first_token, first_token + cut_up["piece_lengths"].sum())
    return cut_up | {"tokens": tokens.astype(np.int32)}


BLOCK = {
    name: tf.TensorSpec([None], tf.int32 if name == "tokens" else tf.int64)
    for name in ("piece_lengths", "group_pieces", "document", "tokens")
}


def chunk_up(shapes, budget=10):
    """Chunks of blocks of these shapes, (groups per document, documents), and the blocks."""
    blocks, first_token = [], 0
    for number, (groups, documents) in enumerate(shapes):
        block = make_block(first_token, groups, documents, budget)
        block["document"] += 100 * number
        first_token += block["tokens"].size
        blocks.append(block)
    dataset = tf.data.Dataset.from_generator(lambda: iter(blocks), output_signature=BLOCK)
    chunks = chunks_in_turn(dataset)
    assert chunks.element_spec == BLOCK
    return [without_padding(chunk) for chunk in chunks.as_numpy_iterator()], blocks


def without_padding(chunk):
    groups, pieces = (
        np.count_nonzero(chunk["group_pieces"]),
        np.count_nonzero(chunk["piece_lengths"]),
    )
    ends = {
        "document": groups,
        "group_pieces": groups,
        "piece_lengths": pieces,
        "tokens": chunk["piece_lengths"].sum(),
    }
    for name, end in ends.items():
        assert not chunk[name][end:].any()
    return {name: chunk[name][:end] for name, end in ends.items()}


def groups_with_tokens(part):
    """(document, tokens of each piece) of each group of a block or a chunk."""
    pieces = np.split(part["tokens"], np.cumsum(part["piece_lengths"]))
    assert pieces.pop().size == 0
    counts = [len(lengths) for _, lengths in pieces_of(part)]
    ends = np.cumsum(counts)
    return [
        (document, [piece.tolist() for piece in pieces[end - count : end]])
        for document, count, end in zip(part["document"].tolist(), counts, ends, strict=True)
    ]


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 16)] * 40,
        [(33, 2), (16, 1), (17, 1), (1, 3), (5, 16), (100, 1)] * 4,
        [(1, 1)],
        [(3, 0), (2, 2)],
    ],
)
def test_chunks_hold_every_group_once(shapes):
    chunks, blocks = chunk_up(shapes)
    found = [group for chunk in chunks for group in groups_with_tokens(chunk)]
    assert sorted(found) == sorted(group for block in blocks for group in groups_with_tokens(block))
    for chunk in chunks:
        assert 1 <= len(chunk["document"]) <= 16
        assert len({document // 100 for document in chunk["document"]}) == 1
        assert np.all(np.diff(chunk["tokens"]) == 1)
    for number, block in enumerate(blocks):
        sizes = [len(c["document"]) for c in chunks if c["document"][0] // 100 == number]
        assert len(sizes) == -(-len(block["document"]) // 16)


def test_blocks_take_turns():
    chunks, _ = chunk_up([(40, 1)] * 20)  # three chunks a block
    blocks = [int(chunk["document"][0]) // 100 for chunk in chunks]
    assert blocks == [i for first in range(0, 20, 4) for i in 3 * [*range(first, first + 4)]]


def test_documents_of_a_block_take_turns():
    chunks, _ = chunk_up([(48, 5)])  # three chunks a document
    assert [set(chunk["document"].tolist()) for chunk in chunks] == [{i} for i in range(5)] * 3
    tokens = [chunk["tokens"][0] for chunk in chunks]
    assert all(early < late for early, late in zip(tokens, tokens[5:], strict=False))


def test_short_documents_stay_in_order():
    chunks, blocks = chunk_up([(3, 16)])
    tokens = np.concatenate([chunk["tokens"] for chunk in chunks])
    np.testing.assert_array_equal(tokens, blocks[0]["tokens"])


# Positions.


@settings(deadline=None, max_examples=60)
@given(DOCUMENTS, st.integers(2, 30))
def test_groups_are_located(documents, budget):
    cut_up = cut(documents, budget)
    located = locate_groups(
        tf.constant(cut_up["piece_lengths"]), tf.constant(cut_up["group_pieces"])
    )
    assert all(values.dtype == tf.int64 for values in located)
    starts, lengths, first, number, boundaries = (values.numpy() for values in located)
    begin = 0
    for row, (_, pieces) in enumerate(pieces_of(cut_up)):
        assert (starts[row], lengths[row]) == (begin, sum(pieces))
        here = boundaries[first[row] : first[row] + number[row]]
        assert here.tolist() == (begin + np.cumsum(pieces[:-1])).tolist()
        begin += sum(pieces)
    assert len(starts) == len(lengths) == len(first) == len(number) == len(cut_up["document"])
