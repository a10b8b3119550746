"""A small Chinese corpus and its vocabulary on disk."""

from __future__ import annotations

import random
from pathlib import Path

from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 60)]


def write_corpus(directory: Path) -> Path:
    """train.txt and validation.txt, one document per line, and vocab.txt in the directory."""
    rng = random.Random(0)

    def sentence() -> str:
        return "".join(rng.choices(CHARACTERS, k=rng.randint(4, 20))) + "。"

    for name, documents in (("train", 200), ("validation", 20)):
        lines = ["".join(sentence() for _ in range(rng.randint(4, 12))) for _ in range(documents)]
        (directory / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pieces = [*SPECIAL_PIECES, "。", *CHARACTERS]
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return directory
