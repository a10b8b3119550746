"""How `plug-jax inspect` shows examples."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from plug_jax.data.sentence_order import FOLLOWS, OTHER_DOCUMENT, PRECEDES

if TYPE_CHECKING:
    import seqio

    from plug_jax.data.vocabularies import PlugVocabulary

SENTENCE_LABELS = {
    OTHER_DOCUMENT: "0: B is from another document",
    FOLLOWS: "1: B follows A",
    PRECEDES: "2: B precedes A",
}

Example = Mapping[str, np.ndarray]


class Fate(enum.Enum):
    """What became of an encoder token: word for the counts, style, and what a mark looks like."""

    PLAIN = ("plain", "", "{}")
    MASKED = ("masked", "bold red", "[MASK]")
    RANDOM = ("replaced", "bold magenta", "a random token")
    KEPT = ("kept", "bold yellow", "itself")
    SHUFFLED = ("shuffled", "bold cyan", "other tokens' places")
    STRAY = ("changed, not predicted", "bold white on red", "")

    def __init__(self, word: str, style: str, seen: str) -> None:
        self.word = word
        self.style = style
        self.seen = seen


def fates(example: Example, mask_id: int) -> list[Fate]:
    """What became of each encoder token, told from the input, the original and the weights.

    A random replacement that drew the token itself counts as kept. STRAY are tokens that changed
    though the loss does not ask for them, which no task of ours makes.
    """
    seen, original = example["encoder_input_tokens"], example["encoder_original_tokens"]
    predicted = example["encoder_loss_weights"] > 0
    shuffled = example.get("encoder_shuffled", np.zeros_like(seen)) > 0
    chosen = np.select(
        [
            predicted & shuffled,
            predicted & (seen == mask_id),
            predicted & (seen != original),
            predicted,
            seen != original,
        ],
        [1, 2, 3, 4, 5],
        default=0,
    )
    order = (Fate.PLAIN, Fate.SHUFFLED, Fate.MASKED, Fate.RANDOM, Fate.KEPT, Fate.STRAY)
    return [order[i] for i in chosen]


def legend(shuffles: bool) -> Text:
    """What the marks in the encoder's text mean."""
    text = Text("marks   ")
    marks = [
        ("{天}", Fate.MASKED, "masked, the model sees [MASK]"),
        ("{天>地}", Fate.RANDOM, "replaced, it sees 地"),
        ("{天=}", Fate.KEPT, "kept, it sees 天"),
        ("{天地人~人天地}", Fate.SHUFFLED, "shuffled, it sees 人天地"),
    ]
    for mark, fate, meaning in marks if shuffles else marks[:-1]:
        text.append(mark, fate.style)
        text.append(f" {meaning};  ")
    text.append("{ } are the tokens to predict")
    return text


def show_example(example: Example, vocabulary: PlugVocabulary, title: str) -> RenderableType:
    """One example of stage 1 or 2: its label and lengths, then its text with marks."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    if "sentence_labels" in example:
        labels = example["sentence_labels"][example["sentence_weights"] > 0]
        words = [SENTENCE_LABELS.get(int(label), str(label)) for label in labels]
        grid.add_row("label", Text(", ".join(words) or "none", "bold green"))
    segments = list(_segments(example))
    grid.add_row("lengths", _lengths(example, segments))
    states = fates(example, vocabulary.mask_id)
    counts = [f"{states.count(fate)} {fate.word}" for fate in Fate if fate in states]
    grid.add_row("fates", ", ".join(counts))
    for name, part in segments:
        grid.add_row(name, marked_text(_slice(example, part), states[part], vocabulary))
    if "decoder_target_tokens" in example:
        for name, tokens in _decoder_rows(example):
            grid.add_row(name, plain_text(tokens, vocabulary))
    return Group(Rule(title, style="dim", align="left"), grid, Text())


def marked_text(example: Example, states: list[Fate], vocabulary: PlugVocabulary) -> Text:
    """The original text of the encoder, with a mark for every token that is predicted."""
    original = example["encoder_original_tokens"].tolist()
    seen = example["encoder_input_tokens"].tolist()
    text = Text()
    for fate, run in _runs(states):
        before = original[run.start - 1] if run.start else None
        old, new = (_surface(ids[run], before, vocabulary) for ids in (original, seen))
        if fate is Fate.PLAIN:
            text.append_text(_surface_text(original[run], before, vocabulary))
            continue
        space = old[: len(old) - len(old.lstrip())]
        old, new = (piece.strip() or "▁" for piece in (old, new))
        mark = {
            Fate.MASKED: f"{{{old}}}",
            Fate.RANDOM: f"{{{old}>{new}}}",
            Fate.KEPT: f"{{{old}=}}",
            Fate.SHUFFLED: f"{{{old}~{new}}}",
            Fate.STRAY: f"{old}!{new}",
        }[fate]
        text.append(space).append(mark, fate.style)
    return text
