"""Stop strings: cutting texts, and the final part of a growing text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from plug_jax.inference.generator import GeneratedText

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # an incomplete character decodes to it


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Start of the earliest stop string in `text`.

    "abcde" with stops "de", "bc" -> 1
    """
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(places, default=None)


def certain(text: str, stops: Sequence[str]) -> str:
    """`text` without an ending that may still become a stop string or another character.

    "abcd" with stop "cde" -> "ab": an "e" would make it the whole text.
    """
    text = text.rstrip(_INCOMPLETE)
    longest = max(
        (
            size
            for stop in stops
            for size in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:size])
        ),
        default=0,
    )
    return text[: len(text) - longest]


def cut(
    text: GeneratedText,
    stops: Sequence[str],
    decode: Callable[[Sequence[int]], str],
    *,
    known: int,
) -> GeneratedText | None:
    """The text up to its first stop string, with the ids up to it; None without one.

    The result equals a check after every token, however many arrive at a time: with ids of "x",
    "ab", "ac" and stops "c", "ba", the text is "xa", of the first three ids ("ba" is complete with
    the third, before "c").

    Args:
        text: the whole text so far.
        stops: non-empty strings.
        decode: ids -> text.
        known: number of first ids known to have no stop string.
    """
    if first_stop(text.text, stops) is None:
        return None
    for count in range(known + 1, len(text.ids) + 1):
        written = decode(text.ids[:count])
        if (place := first_stop(written, stops)) is not None:
            log_probs = text.log_probs[:count]
            total = float(sum(log_probs))
            return dataclasses.replace(
                text,
                ids=text.ids[:count],
                text=written[:place],
                log_probs=log_probs,
                log_prob=total,
                score=total,
                stopped=True,
            )
    return None
