"""Coverage of a vocabulary, measured on held-out documents."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

import tensorflow as tf

from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

# One document in this many is held out.
HELD_OUT_ONE_IN = 100
# Characters of held-out text kept in memory: about 30 MB of Chinese.
_MAX_CHARACTERS = 10_000_000


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Counts over texts, excluding spaces and characters that the vocabulary's clean-up removes.

    Attributes:
      characters: characters read.
      covered_characters: of those, the ones that are not [UNK] when encoded on their own.
      tokens: tokens of the texts.
      unknown_tokens: of those, [UNK].
    """

    characters: int
    covered_characters: int
    tokens: int
    unknown_tokens: int

    def __str__(self) -> str:
        characters, tokens = max(self.characters, 1), max(self.tokens, 1)
        return (
            f"{self.covered_characters / characters:.4%} of {self.characters:,} characters covered"
            f", {self.unknown_tokens / tokens:.4%} [UNK] in {self.tokens:,} tokens, "
            f"{self.tokens / characters:.3f} tokens per character"
        )


def measure_coverage(vocabulary: PlugVocabulary, texts: Iterable[str]) -> Coverage:
    """Encodes the texts, a few at a time, and counts."""
    tokens = unknown_tokens = 0
    counts: Counter[str] = Counter()
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, 64)):
        ids = vocabulary.encode_tf(tf.constant(batch)).flat_values.numpy()
        tokens += ids.size
        unknown_tokens += int((ids == vocabulary.unk_id).sum())
        for text in batch:
            counts.update(text)
    characters = [char for char in counts if not char.isspace()]
    encoded = vocabulary.encode_tf(tf.constant(characters, tf.string)).to_list()
    kept = {char: ids for char, ids in zip(characters, encoded, strict=True) if ids}
    return Coverage(
        characters=sum(counts[char] for char in kept),
        covered_characters=sum(
            counts[char] for char, ids in kept.items() if vocabulary.unk_id not in ids
        ),
        tokens=tokens,
        unknown_tokens=unknown_tokens,
    )


class HeldOut:
    """Holds out one document in 100 of a stream that is read once.

    The choice depends only on the text, so copies of a document are on the same side. `texts` are
    those held out or, if the stream was too short to have any, some of the others, in which case
    `is_trained_on` is true; so it is if the choice fell on all documents, which are then given at
    the end to train on. From a large stream, the 10 million characters of lowest hash are kept.

    Example: `held_out = HeldOut(); train(held_out.filter(documents)); measure(held_out.texts)`.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[int, str]] = []  # a heap: minus the hash, the text
        self._characters = 0
        self.is_trained_on = True

    @property
    def texts(self) -> list[str]:
        """The texts to measure on, in an order independent of the stream's."""
        return [text for _, text in sorted(self._kept, reverse=True)]

    def filter(self, documents: Iterable[str]) -> Iterator[str]:
        """The documents to train on."""
        none_given = True
        for text in documents:
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            key = int.from_bytes(digest, "big")
            if key % HELD_OUT_ONE_IN == 0:
                if self.is_trained_on:
                    self._kept, self._characters, self.is_trained_on = [], 0, False
                self._keep(key, text)
                continue
            if self.is_trained_on:
                self._keep(key, text)
            none_given = False
            yield text
        if none_given and self._kept:
            self.is_trained_on = True
            yield from self.texts

    def _keep(self, key: int, text: str) -> None:
        heapq.heappush(self._kept, (-key, text))
        self._characters += len(text)
        while self._characters > _MAX_CHARACTERS and len(self._kept) > 1:
            self._characters -= len(heapq.heappop(self._kept)[1])
