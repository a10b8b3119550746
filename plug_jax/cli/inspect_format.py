"""How `plug-jax inspect` shows examples, and what it counts in them."""

from __future__ import annotations

import collections
import enum
import itertools
from collections.abc import Iterator, Mapping, Sequence
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

Example = Mapping[str, np.ndarray]

SENTENCE_LABELS = {
    OTHER_DOCUMENT: "0: B is from another document",
    FOLLOWS: "1: B follows A",
    PRECEDES: "2: B precedes A",
}
_SEGMENTS = {0: "A", 1: "B"}


class Fate(enum.Enum):
    """What became of an encoder token."""

    PLAIN = "plain"
    MASKED = "masked"
    REPLACED = "replaced"
    KEPT = "kept"
    SHUFFLED = "shuffled"
    STRAY = "changed but not predicted (!)"


# How a token is marked, where {0} is the original and {1} is what the model sees.
_MARKS = {
    Fate.MASKED: "{{{0}}}",
    Fate.REPLACED: "{{{0}>{1}}}",
    Fate.KEPT: "{{{0}=}}",
    Fate.SHUFFLED: "{{{0}~{1}}}",
    Fate.STRAY: "!{0}>{1}!",
}
_STYLES = {
    Fate.MASKED: "bold red",
    Fate.REPLACED: "bold magenta",
    Fate.KEPT: "bold yellow",
    Fate.SHUFFLED: "bold cyan",
    Fate.STRAY: "bold white on red",
}
_SPACE = "▁"  # how a mark shows a space, as SentencePiece does
_SPECIAL_STYLE = "dim"
_UNKNOWN_STYLE = "underline"


def fates(example: Example, mask_id: int) -> list[Fate]:
    """What became of each encoder token, by the input, the original and the weights alone.

    A token that was replaced by itself counts as kept. No task of ours makes a STRAY one.
    """
    seen, original = example["encoder_input_tokens"], example["encoder_original_tokens"]
    predicted = example["encoder_loss_weights"] > 0
    shuffled = example.get("encoder_shuffled", np.zeros_like(seen)) > 0
    chosen = np.select(
        [
            ~predicted & (seen == original),
            ~predicted,
            shuffled,
            seen == mask_id,
            seen == original,
        ],
        range(5),
        default=5,
    )
    order = (Fate.PLAIN, Fate.STRAY, Fate.SHUFFLED, Fate.MASKED, Fate.KEPT, Fate.REPLACED)
    return [order[i] for i in chosen]


def legend(*, shuffles: bool) -> RenderableType:
    """What the marks mean."""
    meanings = {
        Fate.MASKED: ("天", "", "masked, the model sees [MASK]"),
        Fate.REPLACED: ("天", "地", "replaced, it sees 地"),
        Fate.KEPT: ("天", "", "kept, it sees 天"),
        Fate.SHUFFLED: ("天地人", "人天地", "shuffled, it sees 人天地"),
    }
    grid = Table.grid(padding=(0, 2))
    for fate, (original, seen, meaning) in meanings.items():
        if shuffles or fate is not Fate.SHUFFLED:
            mark = Text(_MARKS[fate].format(original, seen), _STYLES[fate])
            grid.add_row("", mark, meaning)
    return Group("The model predicts what is in braces:", grid, Text())


def show_example(example: Example, vocabulary: PlugVocabulary, title: str) -> RenderableType:
    """An example of stage 1 or 2: its label, its lengths, and its text with marks."""
    states = fates(example, vocabulary.mask_id)
    segments = list(_segments(example))
    rows: list[tuple[str, str | Text]] = []
    if "sentence_labels" in example:
        labels = [SENTENCE_LABELS.get(label, str(label)) for label in _labels(example)]
        rows.append(("label", Text(", ".join(labels) or "none", "bold green")))
    rows.append(("lengths", _describe_lengths(example, segments)))
    counts = [f"{states.count(fate)} {fate.value}" for fate in Fate if fate in states]
    rows.append(("tokens", ", ".join(counts)))
    for name, part in segments:
        rows.append((name, _marked_text(example, states, part, vocabulary)))
    if "decoder_target_tokens" in example:
        inputs = example["decoder_input_tokens"].tolist()
        targets = example["decoder_target_tokens"].tolist()
        rows.append(("decoder", _plain_text(targets, None, vocabulary)))
        if inputs != [vocabulary.cls_id, *targets[:-1]]:
            rows.append(("its inputs", _plain_text(inputs, None, vocabulary)))
    return show_rows(title, rows)


def show_other_example(
    example: Example, features: Mapping[str, seqio.Feature], title: str
) -> RenderableType:
    """An example of any other task: every feature, decoded where it has a vocabulary."""
    rows: list[tuple[str, str | Text]] = []
    for name in [*features, *sorted(example.keys() - features.keys())]:
        value = np.asarray(example[name])
        if value.dtype.kind in "OS":  # bytes
            text = ", ".join(_utf8(item) for item in value.ravel())
        elif name in features and value.ndim == 1 and value.dtype.kind in "iu":
            text = f"({value.size}) {features[name].vocabulary.decode(value.tolist())}"
        else:
            text = str(value.tolist())
        rows.append((name, text))
    return show_rows(title, rows)


class Rates:
    """Counts over examples of stage 1 or 2, or, without a vocabulary, lengths of any others."""

    def __init__(self, vocabulary: PlugVocabulary | None) -> None:
        self._vocabulary = vocabulary
        self._lengths: dict[str, list[int]] = collections.defaultdict(list)
        self._fates: collections.Counter[Fate] = collections.Counter()
        self._labels: collections.Counter[int] = collections.Counter()
        self._tokens: collections.Counter[str] = collections.Counter()
        self._shuffles = False

    def add(self, example: Example) -> None:
        """Counts one more example."""
        vocabulary = self._vocabulary
        if vocabulary is None:
            for name, value in example.items():
                if np.ndim(value) == 1:
                    self._lengths[name].append(len(value))
            return
        original = example["encoder_original_tokens"]
        texts = [original]
        self._lengths["encoder"].append(original.size)
        if "decoder_target_tokens" in example:
            texts.append(example["decoder_target_tokens"])
            self._lengths["decoder"].append(example["decoder_target_tokens"].size)
        for text in texts:
            self._tokens["unknown"] += int((text == vocabulary.unk_id).sum())
            self._tokens["regular"] += _count_regular(text, vocabulary)
        self._tokens["maskable"] += _count_regular(original, vocabulary)
        self._fates.update(fates(example, vocabulary.mask_id))
        self._shuffles |= "encoder_shuffled" in example
        if "sentence_labels" in example:
            self._labels.update(_labels(example))

    def rows(self) -> list[tuple[str, str | Text]]:
        """What was counted, as names and values in words."""
        rows: list[tuple[str, str | Text]] = [
            (f"{name} length", f"mean {np.mean(lengths):.1f}, {min(lengths)} to {max(lengths)}")
            for name, lengths in self._lengths.items()
        ]
        if self._vocabulary is None:
            return rows
        chosen = [self._fates[fate] for fate in (Fate.MASKED, Fate.REPLACED, Fate.KEPT)]
        maskable = self._tokens["maskable"]
        rows.append(("chosen for masking", _share(sum(chosen), maskable, "maskable tokens")))
        for name, count in zip(("[MASK]", "a random token", "itself"), chosen, strict=True):
            rows.append((f"  seen as {name}", _share(count, sum(chosen), "these")))
        if self._shuffles:
            count = self._fates[Fate.SHUFFLED]
            rows.append(("in a shuffled window", _share(count, maskable, "maskable tokens")))
        if count := self._fates[Fate.STRAY]:
            rows.append((Fate.STRAY.value, f"{count:,} tokens"))
        for label in sorted(self._labels.keys() | (SENTENCE_LABELS if self._labels else ())):
            name = f"label {SENTENCE_LABELS.get(label, label)}"
            rows.append((name, _share(self._labels[label], self._labels.total(), "labels")))
        unknown = self._tokens["unknown"]
        rows.append(("[UNK]", _share(unknown, unknown + self._tokens["regular"], "text tokens")))
        return rows


def show_rows(title: str, rows: Sequence[tuple[str, str | Text]]) -> RenderableType:
    """Names and what they stand for, in two columns under a title."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), value if isinstance(value, Text) else Text(value))
    return Group(Rule(title, style="dim", align="left"), grid, Text())


def _describe_lengths(example: Example, segments: Sequence[tuple[str, slice]]) -> str:
    text = f"encoder {example['encoder_input_tokens'].size}"
    if len(segments) > 1:
        text += f" ({', '.join(f'{name} {part.stop - part.start}' for name, part in segments)})"
    if "decoder_target_tokens" in example:
        text += f", decoder {example['decoder_target_tokens'].size}"
        if not (example["decoder_loss_weights"] > 0).all():
            text += f" ({(example['decoder_loss_weights'] > 0).sum()} of them predicted)"
    return text


def _segments(example: Example) -> Iterator[tuple[str, slice]]:
    """The parts of the encoder's text: one, or A and B by the token types."""
    start = 0
    pairs = "sentence_labels" in example
    for token_type, group in itertools.groupby(example["encoder_token_types"].tolist()):
        stop = start + len(list(group))
        alone = not pairs and stop - start == example["encoder_token_types"].size
        name = "encoder" if alone else _SEGMENTS.get(token_type, f"type {token_type}")
        yield name, slice(start, stop)
        start = stop


def _labels(example: Example) -> list[int]:
    return example["sentence_labels"][example["sentence_weights"] > 0].tolist()


def _marked_text(
    example: Example, states: Sequence[Fate], part: slice, vocabulary: PlugVocabulary
) -> Text:
    """The original tokens of a part of the encoder, with a mark for each that is predicted."""
    original = example["encoder_original_tokens"].tolist()
    seen = example["encoder_input_tokens"].tolist()
    text = Text()
    for fate, run in _runs(states, part):
        before = original[run.start - 1] if run.start else None
        plain = _plain_text(original[run], before, vocabulary)
        if fate is Fate.PLAIN:
            text.append_text(plain)
            continue
        old = plain.plain
        new = _plain_text(seen[run], before, vocabulary).plain
        if old.strip():  # the space before a word stays outside of its mark
            text.append(old[: len(old) - len(old.lstrip())])
        mark = _MARKS[fate].format(old.strip() or _SPACE, new.strip() or _SPACE)
        text.append(mark, _STYLES[fate])
    return text


def _runs(states: Sequence[Fate], part: slice) -> Iterator[tuple[Fate, slice]]:
    """Stretches of plain or of shuffled tokens, and all others one by one."""
    start = part.start
    for fate, group in itertools.groupby(states[part]):
        stop = start + len(list(group))
        step = stop - start if fate in (Fate.PLAIN, Fate.SHUFFLED) else 1
        yield from ((fate, slice(i, i + step)) for i in range(start, stop, step))
        start = stop


def _plain_text(ids: Sequence[int], before: int | None, vocabulary: PlugVocabulary) -> Text:
    """The text of ids that follow the token `before`, with special pieces spelt out."""
    special = {*vocabulary.special_ids}
    text = Text()
    for is_special, group in itertools.groupby(ids, special.__contains__):
        run = list(group)
        if is_special:
            for i in run:
                style = _UNKNOWN_STYLE if i == vocabulary.unk_id else _SPECIAL_STYLE
                text.append(vocabulary.id_to_piece(i), style)
        elif before is None or before in special:
            text.append(vocabulary.decode(run))
        else:  # decoded alone, the run would lose the space before it
            text.append(vocabulary.decode([before, *run])[len(vocabulary.decode([before])) :])
        before = run[-1]
    return text


def _count_regular(tokens: np.ndarray, vocabulary: PlugVocabulary) -> int:
    return int(np.isin(tokens, vocabulary.special_ids, invert=True).sum())


def _share(count: int, total: int, of: str) -> str:
    return f"{count / max(total, 1):.2%} of {total:,} {of}"


def _utf8(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
