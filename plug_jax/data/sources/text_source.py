"""seqio sources over a user's own text files."""

from __future__ import annotations

import functools
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from plug_jax.data.drops import count_drops
from plug_jax.data.sources.file_source import FileSource, Paths, name_some
from plug_jax.errors import PlugError

_log = logging.getLogger(__name__)

FileFormat = Literal["lines", "paragraphs", "jsonl"]
DEFAULT_TEXT_KEY = "text"

_LONE_RETURN = re.compile(rb"\r(?![\r\n]|$)")  # CR CR LF, or a piece's end, may be a line's end
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Marks the end of a file: no line contains it, and it counts as blank.
_END = "\n"
# Lines processed together: a function call costs tf.data more than processing a line.
_LINES_A_STEP = 64
_BYTES_A_READ = 1 << 16
_GZIP = 16 + zlib.MAX_WBITS  # zlib's name for the format
# An open paragraph document is kept as a long head and a short tail, so that adding a line copies
# at most this many bytes.
_TAIL_BYTES = 1 << 16
# Reasons to drop a JSON line; the first means that it is kept.
_JSON_REASONS = ("", "invalid_utf8", "invalid_json", "missing_text_key", "empty_document")


class TextSource(FileSource):
    """Documents from UTF-8 text files, as {"text": tf.string []}; sharded by file.

    Formats (blank means only white space; a leading byte order mark is removed):
      lines: one document per line; blank lines are skipped.
      paragraphs: documents are runs of lines between blank lines, joined by line feeds.
      jsonl: one JSON object per line, with the document under `text_key`; blank lines are skipped.

    Lines end with LF or CR LF. TensorFlow deletes every other CR, uncounted; `damage` reports files
    whose lines end with CR alone, and warns of others.

    Files whose name ends in .gz are compressed with gzip. Files are streamed: memory grows with the
    longest document, not with the file. A compressed file is read through once before use, because
    TensorFlow does not notice truncation.

    Dropped and counted (`plug_jax.data.drops`): documents that are not UTF-8 (invalid_utf8), lines
    that are not JSON objects (invalid_json), objects without a string under `text_key`
    (missing_text_key) or with a blank one (empty_document), files without a document (empty_file),
    compressed files that are damaged, truncated, not compressed, or have an empty member before
    their end, where TensorFlow would stop (damaged_file).

    Example, `a.txt` in the format "paragraphs":

        第一行
        第二行
                                 {"text": "第一行\\n第二行"}
        另一篇                   {"text": "另一篇"}

    Raises PlugError when a split is listed or read, before any training: for paths or globs that
    match no file, for a split that has no files at all or only blank and damaged ones.
    """

    KIND = "text file"

    def __init__(
        self,
        *,
        train: Paths,
        validation: Paths | None = None,
        file_format: FileFormat = "lines",
        text_key: str = DEFAULT_TEXT_KEY,
    ) -> None:
        """Describes the files; none is opened yet.

        Args:
          train: path, glob or a list of these (on any file system of tf.io.gfile, such as gs://).
          validation: the same for the validation split; None for a source without one.
          file_format: "lines", "paragraphs" or "jsonl".
          text_key: the key of the document in each JSON object; only for "jsonl".
        """
        formats = get_args(FileFormat)
        if file_format not in formats:
            raise PlugError(
                f"Unknown file format {file_format!r}: use one of {', '.join(formats)}."
            )
        if text_key != DEFAULT_TEXT_KEY and file_format != "jsonl":
            raise PlugError(
                f"The text key {text_key!r} is for JSON lines, but the file format is "
                f"{file_format!r}: choose 'jsonl', or leave the key out."
            )
        read = functools.partial(_read, file_format=file_format, text_key=text_key)
        self._splits_with_text: set[str] = set()
        self._has_warned = False
        super().__init__(read, train=train, validation=validation)

    def list_shards(self, split: str) -> list[str]:
        """Paths of the split's files, in the order given, each glob sorted, without repetition."""
        files = super().list_shards(split)
        if split not in self._splits_with_text:
            if not any(map(_has_text, files)):
                raise PlugError(
                    f"No text for the {split} split, every file is empty or damaged: "
                    f"{name_some(files)}."
                )
            self._splits_with_text.add(split)
        return files

    def damage(self, path: str, *, to_end: bool) -> str | None:
        """What is wrong with a compressed file, one that cannot be opened, or with its line ends.

        Truncation of uncompressed text cannot be detected. Warns of a CR within lines, once, as far
        as the beginnings of files show it.
        """
        try:
            for number, chunk in enumerate(_contents(path)):
                if number == 0 and _LONE_RETURN.search(chunk):
                    if b"\n" not in chunk:
                        return (
                            "ends no line with a line feed but has carriage returns, which would "
                            "be deleted: `tr '\\r' '\\n'` makes line feeds of them, `tr -d '\\r'` "
                            "removes them"
                        )
                    self._warn_of_returns(path)
                if not (to_end and path.endswith(".gz")):
                    break
        except (EOFError, zlib.error) as error:
            return f"is damaged or not compressed with gzip ({error})"
        except tf.errors.OpError as error:
            return f"cannot be read ({error.message})"
        return None

    def _warn_of_returns(self, path: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s, and perhaps others, has carriage returns within lines, which are deleted: if "
                "they should end lines, convert them with `tr '\\r' '\\n'`",
                path,
            )


def _has_text(path: str) -> bool:
    """Whether the file has more than white space; reads only up to the first other character."""
    mark = _BYTE_ORDER_MARK
    try:
        for chunk in _contents(path):
            if chunk.removeprefix(mark).decode("utf-8", "replace").strip():
                return True
            mark = b""
    except tf.errors.OpError as error:
        raise PlugError(f"Cannot read {path}: {error.message}") from error
    except (EOFError, zlib.error):
        pass
    return False


def _is_whole(path: bytes) -> bool:
    """Whether a compressed file can be read to its end."""
    try:
        for _ in _contents(path.decode()):
            pass
    except (EOFError, zlib.error):
        return False
    return True


def _contents(path: str) -> Iterator[bytes]:
    """The file's content in pieces. Raises EOFError or zlib.error for a damaged one."""
    with tf.io.gfile.GFile(path, "rb") as file:
        chunks = iter(functools.partial(file.read, _BYTES_A_READ), b"")
        yield from _decompress(chunks) if path.endswith(".gz") else chunks


def _decompress(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """What TensorFlow reads of a gzip file, which may have several members."""
    part, size = None, 0
    for chunk in chunks:
        while chunk:
            if part is not None and part.eof and size == 0:
                raise EOFError("TensorFlow takes an empty part for the end.")
            if part is None or part.eof:
                part, size = zlib.decompressobj(_GZIP), 0
            if content := part.decompress(chunk):
                size += len(content)
                yield content
            chunk = part.unused_data
    if part is not None and not part.eof:
        raise EOFError("It was cut short.")


@tf.autograph.experimental.do_not_convert  # converting takes seconds and changes nothing
def _read(path: tf.Tensor, *, file_format: FileFormat, text_key: str) -> tf.data.Dataset:
    """One file's documents, as {"text": tf.string []}."""
    collect = _collect_paragraphs if file_format == "paragraphs" else _collect_lines
    extract = _json_extractor(text_key) if file_format == "jsonl" else _extract_texts

    def step(state: Any, lines: tf.Tensor) -> tuple[Any, dict[str, tf.Tensor]]:
        is_first, is_empty, pending = state
        lines = tf.cond(is_first, lambda: _strip_mark(lines), lambda: lines)
        pending, records = collect(pending, lines)
        is_empty &= tf.size(records) == 0
        ends_empty = is_empty & (lines[-1] == _END)
        is_empty = count_drops(is_empty, {"empty_file": tf.cast(ends_empty, tf.int32)})
        return (tf.constant(False), is_empty, pending), {"text": extract(records)}

    compressed = tf.strings.regex_full_match(path, r".*\.gz")
    whole = tf.cond(
        compressed,
        lambda: tf.ensure_shape(tf.numpy_function(_is_whole, [path], tf.bool, stateful=False), []),
        lambda: tf.constant(True),
    )
    whole = count_drops(whole, {"damaged_file": tf.cast(~whole, tf.int32)})
    files = tf.boolean_mask([path], [whole])
    lines = tf.data.TextLineDataset(files, compression_type=tf.where(compressed, "GZIP", ""))
    lines = lines.concatenate(tf.data.Dataset.from_tensors(_END))
    # A damaged file is not also counted as empty.
    start = (tf.constant(True), whole, (tf.constant(""), tf.constant("")))
    return lines.batch(_LINES_A_STEP).scan(start, step).unbatch()


def _strip_mark(lines: tf.Tensor) -> tf.Tensor:
    first = lines[0]
    marked = tf.strings.substr(first, 0, 3) == _BYTE_ORDER_MARK
    first = tf.strings.substr(first, tf.where(marked, 3, 0), tf.strings.length(first))
    return tf.concat([[first], lines[1:]], axis=0)


def _is_blank(lines: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_full_match(lines, r"[\s\p{Z}]*")


def _collect_lines(pending: Any, lines: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """Each line that is not blank is a record."""
    return pending, tf.boolean_mask(lines, ~_is_blank(lines))


def _collect_paragraphs(pending: Any, lines: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """Adds lines to the pending (head, tail) of a record; blank lines complete it."""
    blank = _is_blank(lines)
    paragraph = tf.cumsum(tf.cast(blank, tf.int32))  # of each line; 0 continues the pending one
    of_text = tf.boolean_mask(paragraph, ~blank)
    texts = tf.RaggedTensor.from_value_rowids(
        tf.boolean_mask(lines, ~blank), of_text, nrows=paragraph[-1] + 1
    )
    texts = tf.strings.reduce_join(texts, axis=1, separator="\n")  # [paragraphs], maybe empty
    head, tail = pending
    first = texts[0]
    has_more = (tf.strings.length(head) + tf.strings.length(tail) > 0) & (
        tf.strings.length(first) > 0
    )
    tail = tf.strings.join([tail, tf.where(has_more, "\n", ""), first])

    def complete() -> tuple[tf.Tensor, ...]:
        whole = tf.concat([[head + tail], texts[1:-1]], axis=0)
        return tf.constant(""), texts[-1], tf.boolean_mask(whole, whole != "")

    def extend() -> tuple[tf.Tensor, ...]:
        is_long = tf.strings.length(tail) > _TAIL_BYTES
        longer, rest = tf.cond(
            is_long, lambda: (head + tail, tf.constant("")), lambda: (head, tail)
        )
        return longer, rest, tf.constant([], tf.string)

    head, tail, records = tf.cond(paragraph[-1] > 0, complete, extend)
    return (head, tail), records


def _extract_texts(records: tf.Tensor) -> tf.Tensor:
    """The records that are valid UTF-8: tf.string [r] to [r']."""
    valid = records == tf.strings.unicode_transcode(
        records, "UTF-8", "UTF-8", errors="ignore", replace_control_characters=False
    )
    return count_drops(
        tf.boolean_mask(records, valid), {"invalid_utf8": tf.math.count_nonzero(~valid)}
    )


def _json_extractor(text_key: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from JSON lines, tf.string [r], to their texts, tf.string [r']."""

    def parse(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parsed = [_parse_json(line, text_key) for line in lines]
        reasons = np.array([_JSON_REASONS.index(reason) for _, reason in parsed], np.int32)
        # An object array: a bytes array would lose NULs at the end.
        texts = np.array([text.encode() for text, reason in parsed if not reason], object)
        return texts, reasons

    def extract(lines: tf.Tensor) -> tf.Tensor:
        texts, reasons = tf.numpy_function(parse, [lines], [tf.string, tf.int32], stateful=False)
        reasons = tf.ensure_shape(reasons, [None])
        return count_drops(
            tf.ensure_shape(texts, [None]),
            {
                name: tf.math.count_nonzero(reasons == number)
                for number, name in enumerate(_JSON_REASONS)
                if number > 0
            },
        )

    return extract


def _parse_json(line: bytes, text_key: str) -> tuple[str, str]:
    """The text of a JSON line and "", or "" and the reason for dropping it."""
    try:
        record = json.loads(line.decode())
        if not isinstance(record, dict):
            return "", "invalid_json"
        text = record.get(text_key)
        if not isinstance(text, str):
            return "", "missing_text_key"
        text.encode()  # fails for a lone surrogate, which JSON can spell
    except UnicodeError:
        return "", "invalid_utf8"
    except (ValueError, RecursionError):
        return "", "invalid_json"
    return (text, "") if text.strip() else ("", "empty_document")
