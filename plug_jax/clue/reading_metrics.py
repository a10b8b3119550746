"""Exact match and F1 of answers as in CMRC 2018's scorer, which CLUE also uses for DRCD."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from plug_jax.clue.word_tokens import word_tokens

# Marks that are ignored. ASCII , . ! ? ( ) and ‘ and … count: the published list lacks them, or has
# them as a pair that no single character equals.
_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHINESE = re.compile(r"[\u4e00-\u9fa5]")


def exact_match(answers: Iterable[str], prediction: str) -> float:
    """1 if the prediction equals an answer up to case, marks and outer spaces, else 0."""
    found = _without_marks(prediction)
    return float(any(_without_marks(answer) == found for answer in answers))


def overlap_f1(answers: Iterable[str], prediction: str) -> float:
    """Greatest F1 over the answers, 0 to 1; the overlap is the longest run of common tokens.

    Each character of U+4E00 to U+9FA5 is a token; the text between them is split into words.

    Example: "九米长" shares with the answer "有九米" the run 九米, two of three tokens of both,
    so that precision, recall and F1 are 2/3.
    """
    predicted = mixed_tokens(prediction)
    return max((_f1(mixed_tokens(answer), predicted) for answer in answers), default=0.0)


def mixed_tokens(text: str) -> list[str]:
    """Chinese characters, and the words between them, without ignored marks."""
    tokens: list[str] = []
    run = ""
    for character in _without_marks(text):
        if _CHINESE.match(character):
            tokens += [*word_tokens(run), character]
            run = ""
        else:
            run += character
    return tokens + word_tokens(run)


def _without_marks(text: str) -> str:
    """Lower-cased and stripped, then without marks: spaces next to these stay."""
    return "".join(character for character in text.lower().strip() if character not in _MARKS)


def _f1(answer: list[str], predicted: list[str]) -> float:
    matcher = difflib.SequenceMatcher(None, answer, predicted, autojunk=False)
    common = matcher.find_longest_match().size
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(answer)
    return 2 * precision * recall / (precision + recall)
