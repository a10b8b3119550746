"""Text to train on where what it says does not matter: characters drawn at random."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES

# CJK Unified Ideographs.
_FIRST, MOST_CHARACTERS = 0x4E00, 20_992


@dataclasses.dataclass(frozen=True)
class Text:
    """Files to train on, to evaluate, and of the vocabulary, which has so many pieces."""

    train: Path
    validation: Path
    vocabulary: Path
    pieces: int


def write_text(
    directory: Path,
    *,
    characters: int,
    documents: int,
    sentences: tuple[int, int],
    sentence: tuple[int, int],
) -> Text:
    """Documents of a line each to train on, and 16 to evaluate; the same arguments, the same text.

    Args:
        directory: where the files go.
        characters: different ones, at most MOST_CHARACTERS.
        documents: to train on.
        sentences: the fewest and the most of a document.
        sentence: the fewest and the most characters of a sentence, before its full stop.
    """
    draw = random.Random(0)
    drawn = [chr(_FIRST + i) for i in range(characters)]
    pieces = [*SPECIAL_PIECES, "。", *drawn]
    train, validation, vocabulary = (directory / f"{name}.txt" for name in ("a", "b", "vocab"))
    text = Text(train, validation, vocabulary, len(pieces))
    text.vocabulary.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    for path, count in ((text.train, documents), (text.validation, 16)):
        lines = (
            "".join(
                "".join(draw.choices(drawn, k=draw.randint(*sentence))) + "。"
                for _ in range(draw.randint(*sentences))
            )
            for _ in range(count)
        )
        path.write_text("\n".join(lines), encoding="utf-8")
    return text
