"""Counts over a task's files: records, drops, labels, and lengths in tokens."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from plug_jax.clue.readers import IDIOM_CHARACTERS, TAG
from plug_jax.clue.records import (
    BlankRecord,
    ChoiceRecord,
    EntityRecord,
    QuestionRecord,
    Record,
    TextRecord,
)
from plug_jax.clue.tasks import DEV, VALIDATION, ClueTask, Split

# Texts to numbers of tokens, without special ones.
CountTokens = Callable[[Sequence[str]], Sequence[int]]

_QUESTION_TOKENS = 64  # where the baselines cut CMRC's questions


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """Statistics of a split."""

    usable: int
    dropped: Mapping[str, int]
    label_counts: Mapping[str, int]  # answers by label, entities by type, or choices by index
    token_lengths: Mapping[str, float]  # of inputs with special tokens, before cutting
    cut: int  # inputs longer than max_length
    max_length: int

    @property
    def records(self) -> int:
        """Including those dropped."""
        return self.usable + sum(self.dropped.values())

    def to_json(self) -> dict[str, Any]:
        """All of it by name."""
        return {"records": self.records, **dataclasses.asdict(self)}


def inspect_splits(
    task: ClueTask,
    data_dir: str | os.PathLike[str],
    count_tokens: CountTokens,
    splits: Collection[str],
) -> dict[str, SplitSummary]:
    """Summaries of splits by their file names: the validation split is "dev".

    Lengths are those of the published baselines' inputs, including [CLS] and [SEP]. For choices it
    is that of the question's longest choice; for passages with blanks, before the baselines cut a
    window around each blank; a long context takes several windows and loses nothing. A token of
    CLUENER is a character.

    Raises:
        PlugError: a file is missing, truncated or malformed.
    """
    return {
        split.replace(VALIDATION, DEV): summary(task, task.read(data_dir, split), count_tokens)
        for split in splits
    }


def summary(task: ClueTask, split: Split, count_tokens: CountTokens) -> SplitSummary:
    """The statistics of a split."""
    lengths = input_lengths(split.records, count_tokens)
    return SplitSummary(
        usable=len(split.records),
        dropped=split.dropped,
        label_counts=_label_counts(task, split.records),
        token_lengths={
            "min": min(lengths),
            "median": statistics.median(lengths),
            "p95": sorted(lengths)[math.ceil(0.95 * len(lengths)) - 1],  # nearest rank
            "max": max(lengths),
        },
        cut=sum(length > task.max_length for length in lengths),
        max_length=task.max_length,
    )


def input_lengths(records: Sequence[Record], count_tokens: CountTokens) -> list[int]:
    """Tokens of each record's input, special ones included."""
    texts = list(dict.fromkeys(text for record in records for text in _texts(record)))
    counts = dict(zip(texts, count_tokens(texts), strict=True))
    return [_length(record, counts) for record in records]


def _texts(record: Record) -> Iterator[str]:
    """The texts whose tokens are counted."""
    if isinstance(record, TextRecord):
        yield from record.texts
    elif isinstance(record, ChoiceRecord):
        yield from (record.passage, record.question, *record.choices)
    elif isinstance(record, BlankRecord):
        yield from (_passage(record), *record.candidates)
    elif isinstance(record, QuestionRecord):
        yield from (record.context, record.question)


def _length(record: Record, counts: Mapping[str, int]) -> int:
    if isinstance(record, TextRecord):  # [CLS] text [SEP] text [SEP]
        return 1 + sum(counts[text] + 1 for text in record.texts)
    if isinstance(record, ChoiceRecord):  # [CLS] passage [SEP] question [SEP] choice [SEP]
        longest = max(counts[choice] for choice in record.choices)
        return 4 + counts[record.passage] + counts[record.question] + longest
    if isinstance(record, BlankRecord):  # [CLS] idiom [SEP] left [unused1] right [SEP]
        others = len(TAG.findall(record.left + record.right))
        longest = max(counts[candidate] for candidate in record.candidates)
        return 4 + longest + counts[_passage(record)] + IDIOM_CHARACTERS * others
    if isinstance(record, QuestionRecord):  # [CLS] question [SEP] context [SEP]
        return 3 + min(counts[record.question], _QUESTION_TOKENS) + counts[record.context]
    return 2 + len(record.text)  # [CLS] characters [SEP]


def _passage(record: BlankRecord) -> str:
    """The passage without the tags of blanks: the same text for all its blanks."""
    return TAG.sub(" ", f"{record.left}{record.id}{record.right}")


def _label_counts(task: ClueTask, records: Sequence[Record]) -> dict[str, int]:
    found: collections.Counter[str] = collections.Counter()
    for record in records:
        if isinstance(record, EntityRecord):
            found.update(entity.type for entity in record.entities or ())
        elif not isinstance(record, QuestionRecord) and record.label is not None:
            found[str(record.label)] += 1
    names = task.labels or sorted(found)
    return {name: found[name] for name in names if name in found}
