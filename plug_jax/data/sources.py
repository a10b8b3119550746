"""seqio sources over a user's own text files."""

from __future__ import annotations

import functools
import glob
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.data.drops import count_drops
from plug_jax.errors import PlugError

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
FileFormat = Literal["lines", "paragraphs", "jsonl"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Marks the end of a file: no line contains it, and it counts as blank.
_END = "\n"
# An open paragraph document is kept as a long head and a short tail, so that adding a line copies
# no more than this many bytes.
_TAIL_BYTES = 1 << 16
# Why a JSON line is dropped; the first means that it is not.
_JSON_REASONS = ("", "invalid_utf8", "invalid_json", "missing_text_key", "empty_document")


class TextSource(seqio.FileDataSource):
    """Documents out of text files in UTF-8, as {"text": tf.string []}; sharded by file.

    Formats (blank means nothing but white space; a byte order mark opening a file is removed):
      lines: one document a line; blank lines are passed over.
      paragraphs: documents are runs of lines between blank lines, joined by line feeds.
      jsonl: one JSON object a line, whose `text_key` holds the document; blank lines are passed
        over.

    Files are streamed: memory grows with the longest document, not with the file.

    Left out and counted (`plug_jax.data.drops`): documents that are not UTF-8 (invalid_utf8), lines
    that are no JSON object (invalid_json), objects without a string under `text_key`
    (missing_text_key) or with a blank one (empty_document), files without a document (empty_file).

    Example, `a.txt` in the format "paragraphs":

        第一行
        第二行
                                 {"text": "第一行\\n第二行"}
        另一篇                   {"text": "另一篇"}

    Raises PlugError when a split is listed or read, before any training: for paths or globs that
    match no file, for a split that has no files at all or only blank ones.
    """

    def __init__(
        self,
        *,
        train: Paths,
        validation: Paths | None = None,
        file_format: FileFormat = "lines",
        text_key: str = "text",
    ) -> None:
        """Describes the files; none is opened yet.

        Args:
          train: path, glob or a list of them (any file system of tf.io.gfile, such as gs://).
          validation: the same for the validation split; None for a source without one.
          file_format: "lines", "paragraphs" or "jsonl".
          text_key: the key of the document in each JSON object.
        """
        formats = get_args(FileFormat)
        if file_format not in formats:
            raise PlugError(
                f"Unknown file format {file_format!r}: use one of {', '.join(formats)}."
            )
        read = functools.partial(_read, file_format=file_format, text_key=text_key)
        patterns = {"train": _as_list(train)}
        if validation is not None:
            patterns["validation"] = _as_list(validation)
        self._splits_with_text: set[str] = set()
        super().__init__(read, patterns)

    def list_shards(self, split: str) -> list[str]:
        """Paths of the split's files, in the order given, each glob sorted, without repetition."""
        if split not in self.splits:
            raise PlugError(
                f"There is no {split!r} split, only {', '.join(self.splits)}: name files for it "
                "when you make the source."
            )
        files = list(dict.fromkeys(f for p in self._split_to_filepattern[split] for f in _match(p)))
        if split not in self._splits_with_text:
            if not any(map(_has_text, files)):
                named = ", ".join(files[:5]) + (", ..." if files[5:] else "")
                raise PlugError(f"No text for the {split} split, every file is empty: {named}.")
            self._splits_with_text.add(split)
        return files


def _as_list(paths: Paths) -> list[str]:
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    if not paths:
        raise PlugError("Name at least one text file.")
    return [os.fspath(path) for path in paths]


def _match(pattern: str) -> list[str]:
    if tf.io.gfile.isdir(pattern):
        raise PlugError(f"{pattern} is a directory; name files, for example {pattern}/*.txt.")
    if tf.io.gfile.exists(pattern):
        return [pattern]
    files = sorted(tf.io.gfile.glob(pattern)) if glob.has_magic(pattern) else []
    if not files:
        raise PlugError(f"No text file matches {pattern}.")
    return files


def _has_text(path: str) -> bool:
    """Whether the file holds more than white space; reads no further than the first of it."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            chunk = file.read(1 << 16).removeprefix(_BYTE_ORDER_MARK)
            while chunk:
                if chunk.decode("utf-8", "replace").strip():
                    return True
                chunk = file.read(1 << 16)
    except tf.errors.OpError as error:
        raise PlugError(f"Cannot read {path}: {error.message}") from error
    return False


def _read(path: tf.Tensor, *, file_format: FileFormat, text_key: str) -> tf.data.Dataset:
    """One file's documents, as {"text": tf.string []}."""
    collect = _collect_paragraphs if file_format == "paragraphs" else _collect_line
    extract = _json_extractor(text_key) if file_format == "jsonl" else _extract_text

    # One scan does everything: a function call for each line costs more than what it does.
    def step(state: Any, line: tf.Tensor) -> tuple[Any, dict[str, tf.Tensor]]:
        is_first, is_empty, pending = state
        line = tf.cond(is_first, lambda: _strip_mark(line), lambda: line)
        pending, record = collect(pending, line)  # "" until the record is complete
        is_complete = tf.strings.length(record) > 0
        is_empty &= ~is_complete
        is_empty = count_drops(
            is_empty, {"empty_file": tf.cast(is_empty & (line == _END), tf.int32)}
        )
        documents = tf.cond(
            is_complete, lambda: extract(record), lambda: tf.constant([], tf.string)
        )
        return (tf.constant(False), is_empty, pending), {"text": documents}

    start = (tf.constant(True), tf.constant(True), (tf.constant(""), tf.constant("")))
    lines = tf.data.TextLineDataset(path).concatenate(tf.data.Dataset.from_tensors(_END))
    return lines.scan(start, step).unbatch()


def _strip_mark(line: tf.Tensor) -> tf.Tensor:
    marked = tf.strings.substr(line, 0, 3) == _BYTE_ORDER_MARK
    return tf.cond(
        marked, lambda: tf.strings.substr(line, 3, tf.strings.length(line)), lambda: line
    )


def _is_blank(line: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_full_match(line, r"[\s\p{Z}]*")


def _collect_line(pending: Any, line: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """The line itself is a record, unless it is blank."""
    return pending, tf.where(_is_blank(line), "", line)


def _collect_paragraphs(pending: Any, line: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """Adds a line to the pending (head, tail) of a record; a blank line completes it."""
    head, tail = pending

    def complete() -> tuple[tf.Tensor, ...]:
        return tf.constant(""), tf.constant(""), head + tail

    def extend() -> tuple[tf.Tensor, ...]:
        is_first = tf.strings.length(head) + tf.strings.length(tail) == 0
        longer = tf.strings.join([tail, tf.where(is_first, "", "\n"), line])
        new_head, new_tail = tf.cond(
            tf.strings.length(longer) > _TAIL_BYTES,
            lambda: (head + longer, tf.constant("")),
            lambda: (head, longer),
        )
        return new_head, new_tail, tf.constant("")

    head, tail, record = tf.cond(_is_blank(line), complete, extend)
    return (head, tail), record


def _extract_text(record: tf.Tensor) -> tf.Tensor:
    """The record itself if it is valid UTF-8: tf.string [1], otherwise [0]."""
    valid = record == tf.strings.unicode_transcode(
        record, "UTF-8", "UTF-8", errors="ignore", replace_control_characters=False
    )
    kept = record[tf.newaxis][: tf.cast(valid, tf.int32)]
    return count_drops(kept, {"invalid_utf8": tf.cast(~valid, tf.int32)})


def _json_extractor(text_key: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from a JSON line to its text: tf.string [1], or [0] if there is none."""

    def parse(line: bytes) -> tuple[np.ndarray, np.ndarray]:
        text, reason = _parse_json(line, text_key)
        # An object array: a bytes array would lose NULs at the end.
        return np.array(text.encode(), object), np.array(_JSON_REASONS.index(reason), np.int32)

    def extract(line: tf.Tensor) -> tf.Tensor:
        text, reason = tf.numpy_function(parse, [line], [tf.string, tf.int32], stateful=False)
        kept = tf.ensure_shape(text, [])[tf.newaxis][: tf.cast(reason == 0, tf.int32)]

        return count_drops(
            kept,
            {
                name: tf.cast(reason == number, tf.int32)
                for number, name in enumerate(_JSON_REASONS)
                if number > 0
            },
        )

    return extract


def _parse_json(line: bytes, text_key: str) -> tuple[str, str]:
    """The text of a JSON line and "", or "" and why there is none."""
    try:
        record = json.loads(line.decode())
        if not isinstance(record, dict):
            return "", "invalid_json"
        text = record.get(text_key)
        if not isinstance(text, str):
            return "", "missing_text_key"
        text.encode()  # fails for half of a surrogate pair, which JSON can spell
    except UnicodeError:
        return "", "invalid_utf8"
    except (ValueError, RecursionError):
        return "", "invalid_json"
    return (text, "") if text.strip() else ("", "empty_document")
