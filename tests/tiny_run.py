"""The text, vocabulary and model of tiny runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CHARACTERS = "天地人你我他来去上下大小好多年月日时分水火木金土山石田力口手心门"
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "。", *CHARACTERS)
# gin bindings on top of models/tiny.gin: a model that compiles quickly and divides by 8.
MODEL = (
    f"VOCAB_SIZE = {len(PIECES)}",
    "config.PlugConfig.hidden_size = 16",
    "config.PlugConfig.num_encoder_layers = 1",
    "config.PlugConfig.num_heads = 8",
    "config.PlugConfig.head_dim = 2",
    "config.PlugConfig.mlp_dim = 32",
    "config.PlugConfig.max_positions = 32",
    "config.PlugConfig.vocab_multiple = 16",
)


def documents(rng: np.random.Generator, count: int) -> list[str]:
    """Each of 12 sentences of 4 to 8 characters."""

    def sentence() -> str:
        return "".join(rng.choice(list(CHARACTERS), rng.integers(4, 9))) + "。"

    return ["".join(sentence() for _ in range(12)) for _ in range(count)]


def write_documents(path: Path, lines: list[str]) -> None:
    """One document per line."""
    path.write_text("\n".join(lines), encoding="utf-8")


def write_vocabulary(path: Path) -> None:
    """`PIECES`, one per line."""
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
