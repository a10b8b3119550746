"""Words of text between Chinese characters, as CMRC 2018's scorer gets them from nltk."""

from __future__ import annotations

import re

_OPENING = "``"
_CLOSING = "''"
# Tokens to separate by spaces: dots, the last period, a comma without a digit after it, quotes, ...
_APART = re.compile(
    r"""
    \.{2,}
    | (?<=[^.]) \. (?= [\])}>"'»\s]* \Z)
    | , (?! \d)
    | "
    | ''
    | [;@#$%&?!()\[\]{}<>«»„‘‒–—―]
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"(.*[^'])('s|'m|'d|'ll|'re|'ve|n't|')", re.DOTALL)
_OPENS = re.compile(r"'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)")
_CONTRACTIONS = {
    "cannot": ("can", "not"),
    "d'ye": ("d", "'ye"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "more'n": ("more", "'n"),
    "wanna": ("wan", "na"),
}


def word_tokens(text: str) -> list[str]:
    """The words and marks of one lower-case sentence, by the rules of the Penn Treebank.

    Split at white space; each of `;@#$%&?!()[]{}<>` is a token, and so are quotes, a comma unless a
    digit follows, two or more dots, and a period at the end of the text, not one within it; clitics
    are tokens of their own.

    It implements these rules for text after the scorer's clean-up (`:`, `-`, `*` and others are
    gone), where it agrees with nltk's NLTKWordTokenizer of 2026 except for unusual runs of marks
    such as `""` or a period before an opening quote. nltk.word_tokenize first splits sentences,
    which this does not: a period within the text ("a b. c d") stays with its word, where nltk's
    model of English may split.

    Example: word_tokens('the u.s. (3,500 km), don\'t.') is ["the", "u.s.", "(", "3,500", "km",
    ")", ",", "do", "n't", "."].
    """
    tokens: list[str] = []
    for piece in _APART.sub(_set_apart, text).split():
        tokens += _CONTRACTIONS.get(piece) or _without_clitics(piece)
    return tokens


def _set_apart(match: re.Match[str]) -> str:
    mark = match.group()
    if mark in ('"', "''"):
        before = match.string[: match.start()][-1:]
        opens = before in tuple(" ([{<") or (not before and mark == '"')
        mark = _OPENING if opens else _CLOSING
    return f" {mark} "


def _without_clitics(piece: str) -> list[str]:
    if piece in (_OPENING, _CLOSING):
        return [piece]
    opens = _OPENS.match(piece)
    head, piece = (["'"], piece[1:]) if opens else ([], piece)
    clitic = _CLITIC.fullmatch(piece)
    return [*head, *(clitic.groups() if clitic else (piece,))]
