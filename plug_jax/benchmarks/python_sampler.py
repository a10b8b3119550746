"""The examples of both stages in plain Python: what the data pipeline is measured against.

Written as one would without tf.data, over tokens in memory: it draws examples of the same
objectives one after the other, and neither shuffles, packs nor can be resumed. Only for benchmarks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

Document = Sequence[Sequence[int]]  # ids of each sentence
Example = dict[str, np.ndarray]

_MASK_RATE, _MASK_SHARE, _RANDOM_SHARE = 0.15, 0.8, 0.1
_SHUFFLE_RATE, _SHUFFLE_WINDOW = 0.05, 3


def structbert_examples(
    documents: Sequence[Document],
    vocabulary: PlugVocabulary,
    *,
    max_length: int = 512,
    seed: int = 0,
) -> Iterator[Example]:
    """Stage 1, one pass: sentence pairs with three labels, masked LM, shuffled windows."""
    rng = random.Random(seed)
    budget = max_length - 3
    cls, sep = vocabulary.cls_id, vocabulary.sep_id
    special, regular = frozenset(vocabulary.special_ids), vocabulary.regular_ids.tolist()
    for number, document in enumerate(documents):
        for group in _groups(document, budget):
            label = rng.randrange(3) if len(group) > 1 else 0
            cut = rng.randint(1, len(group) - 1) if len(group) > 1 else 1
            first = [token for sentence in group[:cut] for token in sentence]
            second = [token for sentence in group[cut:] for token in sentence]
            if label == 0:
                other = documents[_other(rng, number, len(documents))]
                start = rng.randrange(len(other))
                second = [token for sentence in other[start:] for token in sentence]
                second = second[: max(budget - len(first), 1)]
            elif label == 2:
                first, second = second, first
            tokens = [cls, *first, sep, *second, sep]
            seen, weights = _mask(tokens, rng, special, regular, vocabulary.mask_id)
            shuffled = _shuffle(seen, weights, rng, special)
            size = len(tokens)
            yield {
                "encoder_input_tokens": np.array(seen, np.int32),
                "encoder_original_tokens": np.array(tokens, np.int32),
                "encoder_loss_weights": np.array(weights, np.int32),
                "encoder_shuffled": np.array(shuffled, np.int32),
                "encoder_token_types": np.array(
                    [0] * (len(first) + 2) + [1] * (len(second) + 1), np.int32
                ),
                "sentence_labels": np.array([label] + [0] * (size - 1), np.int32),
                "sentence_weights": np.array([1] + [0] * (size - 1), np.int32),
            }


def palm_examples(
    documents: Sequence[Document],
    vocabulary: PlugVocabulary,
    *,
    min_length: int = 32,
    max_length: int = 512,
    seed: int = 0,
) -> Iterator[Example]:
    """Stage 2, one pass: windows of random encoder and decoder length, masked LM."""
    rng = random.Random(seed)
    cls, sep = vocabulary.cls_id, vocabulary.sep_id
    special, regular = frozenset(vocabulary.special_ids), vocabulary.regular_ids.tolist()
    for document in documents:
        text = [token for sentence in document for token in sentence]
        begin = 0
        while len(text) - begin >= 2 * min_length - 3:
            longest = min(max_length, len(text) - begin)
            while True:  # all pairs of lengths that fit are equally likely
                encoder = rng.randint(min_length, longest) - 2
                decoder = rng.randint(min_length, longest) - 1
                if begin + encoder + decoder <= len(text):
                    break
            middle, end = begin + encoder, begin + encoder + decoder
            tokens = [cls, *text[begin:middle], sep]
            seen, weights = _mask(tokens, rng, special, regular, vocabulary.mask_id)
            target = text[middle:end]
            begin = end
            yield {
                "encoder_input_tokens": np.array(seen, np.int32),
                "encoder_original_tokens": np.array(tokens, np.int32),
                "encoder_loss_weights": np.array(weights, np.int32),
                "encoder_token_types": np.zeros(len(tokens), np.int32),
                "decoder_input_tokens": np.array([cls, *target], np.int32),
                "decoder_target_tokens": np.array([*target, sep], np.int32),
                "decoder_loss_weights": np.ones(len(target) + 1, np.int32),
            }


def _groups(document: Document, budget: int) -> Iterator[list[Sequence[int]]]:
    """Consecutive sentences of at most `budget` tokens together; long ones are cut."""
    group: list[Sequence[int]] = []
    size = 0
    for sentence in document:
        for start in range(0, len(sentence), budget // 2):
            piece = sentence[start : start + budget // 2]
            if size + len(piece) > budget:
                yield group
                group, size = [], 0
            group.append(piece)
            size += len(piece)
    if group:
        yield group


def _other(rng: random.Random, number: int, count: int) -> int:
    other = rng.randrange(count - 1)
    return other + (other >= number)


def _mask(
    tokens: Sequence[int],
    rng: random.Random,
    special: frozenset[int],
    regular: Sequence[int],
    mask_id: int,
) -> tuple[list[int], list[int]]:
    seen, weights = list(tokens), [0] * len(tokens)
    for i, token in enumerate(tokens):
        if token not in special and rng.random() < _MASK_RATE:
            weights[i] = 1
            fate = rng.random()
            if fate < _MASK_SHARE:
                seen[i] = mask_id
            elif fate < _MASK_SHARE + _RANDOM_SHARE:
                seen[i] = rng.choice(regular)
    return seen, weights


def _shuffle(
    seen: list[int], weights: list[int], rng: random.Random, special: frozenset[int]
) -> list[int]:
    """Shuffles windows in `seen` and sets their `weights`, both in place; returns their marks."""
    shuffled = [0] * len(seen)
    start = 0
    while start + _SHUFFLE_WINDOW <= len(seen):
        end = start + _SHUFFLE_WINDOW
        fixed = any(weights[start:end]) or any(token in special for token in seen[start:end])
        if fixed or rng.random() >= _SHUFFLE_RATE:
            start += 1
            continue
        window = seen[start:end]
        rng.shuffle(window)
        seen[start:end] = window
        weights[start:end] = shuffled[start:end] = [1] * _SHUFFLE_WINDOW
        start = end
    return shuffled
