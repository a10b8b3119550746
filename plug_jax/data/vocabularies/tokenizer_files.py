"""A BERT's tokenizer files: its pieces and settings.

transformers writes `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and
`tokenizer.json` next to a `vocab.txt`. Their settings are followed or, if unsupported, refused with
the names of file and setting; all of them are optional.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from plug_jax.data.fetched_files import read_file, read_json
from plug_jax.data.vocabularies.wordpiece import TextRules
from plug_jax.errors import PlugError

VOCAB, TOKENIZER, SETTINGS = "vocab.txt", "tokenizer.json", "tokenizer_config.json"
_SPECIAL_MAP, _ADDED = "special_tokens_map.json", "added_tokens.json"
BESIDE = (SETTINGS, _SPECIAL_MAP, _ADDED, TOKENIZER)  # may be next to a vocabulary

_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# Settings and their supported values; null means absent.
_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    SETTINGS: {
        "tokenizer_class": (
            *("BertTokenizer", "BertTokenizerFast", "SbertTokenizer", "SbertTokenizerFast"),
            *("StructBertTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
        ),
        "do_basic_tokenize": (True,),
        "clean_text": (True,),
        "wordpieces_prefix": ("##",),
        "max_input_chars_per_word": (100,),
        "padding_side": ("right",),
    },
    f"model of {TOKENIZER}": {
        "type": ("WordPiece",),
        "unk_token": ("[UNK]",),
        "continuing_subword_prefix": ("##",),
        "max_input_chars_per_word": (100,),
    },
    f"normalizer of {TOKENIZER}": {"type": ("BertNormalizer",), "clean_text": (True,)},
    f"pre_tokenizer of {TOKENIZER}": {"type": ("BertPreTokenizer",)},
}
_IN_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """A WordPiece vocabulary and its settings."""

    content: bytes  # of its vocab.txt
    pieces: Sequence[str]  # by id
    rules: TextRules


def read_tokenizer(path: str | os.PathLike[str]) -> TokenizerFiles:
    """The pieces in a vocab.txt or tokenizer.json, and the settings in the files next to it.

    Raises:
        PlugError: a file is missing, incomplete or not a vocabulary; a setting is not supported, or
            two files contradict each other.
    """
    path = os.fspath(path)
    directory = os.path.dirname(path)
    there = _read_beside(directory)
    whole = there.get(TOKENIZER)
    if os.path.basename(path) == TOKENIZER:
        pieces = _pieces(path, read_json(path))
        content = "".join(f"{piece}\n" for piece in pieces).encode()
        if vocab_lines(path, content) != pieces:
            raise PlugError(f"{path} has pieces with line breaks, which {VOCAB} cannot hold")
    else:
        content = read_file(path)
        pieces = vocab_lines(path, content)
        if whole is not None and _pieces(os.path.join(directory, TOKENIZER), whole) != pieces:
            raise PlugError(
                f"{path} and the {TOKENIZER} beside it hold different pieces; remove the one that "
                "does not go with the weights"
            )
    try:
        added = list(_added(there))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PlugError(
            f"the tokens that {', '.join(there)} in {directory} add are not as transformers writes "
            f"it: {error!r}"
        ) from error
    for token, number, file in added:
        _check_added(directory, file, token, number, pieces)
    return TokenizerFiles(content, pieces, _rules(directory, there))


def stated_rules(directory: str | os.PathLike[str]) -> TextRules | None:
    """The settings of the files in a directory; None without any. PlugError as above."""
    there = _read_beside(os.fspath(directory))
    return _rules(os.fspath(directory), there) if there else None


def tokenizer_config(rules: TextRules) -> bytes:
    """A tokenizer_config.json for `read_tokenizer` and transformers."""
    return (json.dumps(dataclasses.asdict(rules), indent=2) + "\n").encode()


def other_than_default(rules: TextRules) -> dict[str, bool]:
    """The rules that differ from BERT's defaults."""
    default = dataclasses.asdict(TextRules())
    return {k: value for k, value in dataclasses.asdict(rules).items() if value != default[k]}


def vocab_lines(path: str, content: bytes) -> list[str]:
    """The pieces of a vocab.txt, split at line feeds only: other separators can be pieces."""
    try:
        lines = content.decode("utf-8-sig").rstrip("\r\n").split("\n")
    except UnicodeDecodeError as error:
        raise PlugError(f"The vocabulary {path} is not UTF-8: {error}") from error
    pieces: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        piece = line.removesuffix("\r")
        if not piece:
            raise PlugError(f"The vocabulary {path} has no piece on line {number}.")
        if piece in pieces:
            raise PlugError(
                f"The vocabulary {path} has {piece!r} twice, on lines {pieces[piece]} and {number}."
            )
        pieces[piece] = number
    return list(pieces)


def _read_beside(directory: str) -> dict[str, dict[str, Any]]:
    paths = {name: os.path.join(directory, name) for name in BESIDE}
    return {name: read_json(path) for name, path in paths.items() if tf.io.gfile.exists(path)}


def _pieces(path: str, tokenizer: Mapping[str, Any]) -> list[str]:
    """The pieces of a tokenizer.json, by id."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict) and all(type(number) is int for number in vocabulary.values()):
        by_id = {number: piece for piece, number in vocabulary.items()}
        if by_id.keys() == set(range(len(vocabulary))):
            return [by_id[i] for i in range(len(by_id))]
    raise PlugError(f"{path} has no model with a vocabulary of pieces and their ids from 0 on")


def _rules(directory: str, there: Mapping[str, Mapping[str, Any]]) -> TextRules:
    """The files' combined settings. PlugError for unsupported ones, by name."""
    config, whole = there.get(SETTINGS, {}), there.get(TOKENIZER, {})
    parts = {SETTINGS: config}
    for part in ("model", "normalizer", "pre_tokenizer") if whole else ():
        settings = whole.get(part)
        parts[f"{part} of {TOKENIZER}"] = settings if isinstance(settings, dict) else {"type": None}
    for file, settings in parts.items():
        for name, allowed in _FIXED[file].items():
            value = settings.get(name, allowed[0])
            if value not in allowed and not (value is None and file == SETTINGS):
                raise _refusal(directory, file, name, value, allowed[0])
    for file in (SETTINGS, _SPECIAL_MAP):
        for name, piece in _SPECIAL.items():
            if (value := _text(there.get(file, {}).get(name))) not in (None, piece):
                raise _refusal(directory, file, name, value, piece)
    said: dict[str, bool] = {}
    normalizer = parts.get(f"normalizer of {TOKENIZER}", {})
    for name, in_normalizer in _IN_NORMALIZER.items():
        one, other = config.get(name), normalizer.get(in_normalizer)
        for value in (one, other):
            if value is not None and not isinstance(value, bool):
                raise _refusal(directory, SETTINGS, name, value, True)
        if one is not None and other is not None and one != other:
            raise PlugError(
                f"{SETTINGS} and {TOKENIZER} in {directory} contradict each other: {name} is "
                f"{json.dumps(one)}, and {in_normalizer} {json.dumps(other)}; set both to what the "
                "weights were trained with"
            )
        if one is not None or other is not None:
            said[name] = bool(one or other)
    if "do_lower_case" in said:  # strips accents too unless set otherwise
        said.setdefault("strip_accents", said["do_lower_case"])
    return TextRules(**said)


def _added(there: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, int | None, str]]:
    """Every added token, split off before WordPiece, with its id and file."""
    config = there.get(SETTINGS, {})
    for token, number in there.get(_ADDED, {}).items():
        yield token, _checked_id(number), _ADDED
    for number, token in (config.get("added_tokens_decoder") or {}).items():
        yield _checked_text(token), _checked_id(int(number)), SETTINGS
    for token in there.get(TOKENIZER, {}).get("added_tokens") or ():
        yield _checked_text(token), _checked_id(token["id"]), TOKENIZER
    for file in (SETTINGS, _SPECIAL_MAP):
        for name in ("additional_special_tokens", "extra_special_tokens", "never_split"):
            tokens = there.get(file, {}).get(name) or ()
            for token in tokens.values() if isinstance(tokens, dict) else tokens:
                yield _checked_text(token), None, file


def _check_added(
    directory: str, file: str, token: str, number: int | None, pieces: Sequence[str]
) -> None:
    """Only special pieces and [unusedN] may be added: no text is encoded as one of them here."""
    where = os.path.join(directory, file)
    if token not in _SPECIAL.values() and not re.fullmatch(r"\[unused\d+\]", token):
        raise PlugError(
            f"{where} adds the token {token!r}, which would be cut out of texts before they are "
            f"split into words; only {', '.join(_SPECIAL.values())} and [unusedN] may be added "
            "here. Remove it from that file if no text has it"
        )
    if number is not None and (number >= len(pieces) or pieces[number] != token):
        raise PlugError(f"{where} has {token} for id {number}, and the vocabulary has not")


def _checked_text(token: Any) -> str:
    text = _text(token)
    if not isinstance(text, str):
        raise TypeError(f"{token!r} is not a token")
    return text


def _checked_id(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} is not an id")
    return number


def _text(token: Any) -> Any:
    """A token's text, given as a string or an object."""
    return token.get("content") if isinstance(token, dict) else token


def _refusal(directory: str, file: str, name: str, value: Any, allowed: Any) -> PlugError:
    return PlugError(
        f"{file} in {directory} has {name} = {json.dumps(value)}; here it can be "
        f"{json.dumps(allowed)} only. Correct the file if the weights were trained with that"
    )
