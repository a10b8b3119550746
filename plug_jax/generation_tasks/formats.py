"""File formats of generation tasks: readers of records, with line numbers in errors."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from plug_jax.data.fetched_files import read_file
from plug_jax.errors import PlugError, shown
from plug_jax.generation_tasks.records import Record

Format = Callable[[str], Iterator[Record]]

_KBQA_LINE = re.compile(r"<(question|triple|answer) id=(\d+)>\t(.*)")
_KBQA_END = re.compile("={10,}")


def json_lines(path: str) -> Iterator[Record]:
    """One JSON object per line: texts, lists of texts, and numbers, which become texts.

    Example: {"id": 7, "content": "北京今日小雨。", "summary": "小雨"}.
    """
    for fields, where in json_objects(path):
        texts = {n: str(v) if type(v) in (int, float) else v for n, v in fields.items()}
        yield Record(texts, where)


def json_objects(path: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of JSON lines unchanged, each with "FILE, line N" for messages."""
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PlugError(
                f"{where} is not JSON ({error}); expected one object a line. If it is the last "
                "line, the file is cut short: fetch it again"
            ) from error
        if not isinstance(fields, dict):
            raise PlugError(f"{where}: expected a JSON object, not {line[:60]!r}")
        yield fields, where


def squad(path: str) -> Iterator[Record]:
    """SQuAD's nesting, as in DuReader-robust: one record per question, with its first answer.

    Example: {"data": [{"paragraphs": [{"context": "首都是北京。", "qas": [{"id": "q1", "question":
    "首都是哪？", "answers": [{"text": "北京", "answer_start": 3}]}]}]}]} becomes id, question,
    context, and answer, absent for a question without answers.
    """
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise PlugError(
            f"{path} is not JSON, or cut short: {error}; fetch it again. Expected is one object, "
            '{"data": [{"paragraphs": [...]}]}'
        ) from error
    for i, article in enumerate(_items(content, "data", path)):
        at_article = f"{path}, data[{i}]"
        for j, paragraph in enumerate(_items(article, "paragraphs", at_article)):
            at_paragraph = f"{at_article}.paragraphs[{j}]"
            context = _string(paragraph, "context", at_paragraph)
            for k, question in enumerate(_items(paragraph, "qas", at_paragraph)):
                where = f"{at_paragraph}.qas[{k}]"
                fields = {
                    "id": _string(question, "id", where),
                    "question": _string(question, "question", where),
                    "context": context,
                }
                if question.get("answers"):
                    answer = _items(question, "answers", where)[0]
                    fields["answer"] = _string(answer, "text", f"{where}.answers[0]")
                yield Record(fields, where)


def kbqa(path: str) -> Iterator[Record]:
    """NLPCC-KBQA's blocks: question, triple and answer with equal ids, then a line of =.

    Example, with tabs after ">"; lines may end in CR LF:

        <question id=1> 《机械设计基础》的作者是谁？
        <triple id=1>   机械设计基础 ||| 作者 ||| 杨可桢
        <answer id=1>   杨可桢
        ==================================================

    becomes id, question, answer, and subject, relation and object, absent without a triple.
    """
    fields: dict[str, str] = {}
    begun = 0
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if _KBQA_END.fullmatch(line):
            yield _kbqa_record(fields, f"{path}, line {begun}")
            fields = {}
            continue
        found = _KBQA_LINE.fullmatch(line)
        if found is None:
            raise PlugError(
                f"{where}: expected <question id=N>, <triple id=N> or <answer id=N> and a tab, or "
                f"a line of =, not {line[:60]!r}"
            )
        tag, own, text = found.groups()
        begun = begun if fields else number
        if fields.setdefault("id", own) != own or tag in fields:
            raise PlugError(
                f"{where}: <{tag} id={own}> within the block of id {fields['id']}, which has "
                f"{', '.join(name for name in fields if name != 'id')}; a line of = must "
                "separate them"
            )
        fields[tag] = text.strip()
    if fields:
        yield _kbqa_record(fields, f"{path}, line {begun}")


def table(path: str, *, delimiter: str) -> Iterator[Record]:
    """A table with a header line: CSV with quoting, or TSV, where quotes are literal."""
    text = io.StringIO(_text(path), newline="")
    if delimiter == ",":
        rows = csv.reader(text, strict=True)
    else:
        rows = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    try:
        names = next(rows, [])
        if len(set(names)) < len(names) or not all(names):
            raise PlugError(f"{path}, line 1: expected a name for each column, not {names}")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(names):
                raise PlugError(
                    f"{where}: {len(row)} columns; expected {len(names)}: {', '.join(names)}"
                )
            yield Record(dict(zip(names, row, strict=True)), where)
    except csv.Error as error:
        raise PlugError(f"{path}, line {rows.line_num}: {error}") from error


def by_name(path: str) -> Iterator[Record]:
    """JSON lines (.jsonl, .json), TSV (.tsv, .txt) or CSV (.csv), by file name."""
    name = path.lower()
    if name.endswith((".jsonl", ".json")):
        return json_lines(path)
    if name.endswith((".tsv", ".txt")):
        return table(path, delimiter="\t")
    if name.endswith(".csv"):
        return table(path, delimiter=",")
    raise PlugError(f"{path}: expected a file whose name ends in .jsonl, .json, .tsv, .txt or .csv")


def _kbqa_record(fields: dict[str, str], where: str) -> Record:
    if missing := [tag for tag in ("question", "answer") if tag not in fields]:
        raise PlugError(
            f"{where}: the block that begins here has no <{'> and no <'.join(missing)}>; if it is "
            "the last one, the file is cut short: fetch it again"
        )
    if (triple := fields.pop("triple", None)) is not None:
        parts = [part.strip() for part in triple.split("|||", 2)]
        if len(parts) != 3:
            raise PlugError(
                f"{where}: expected <triple> of subject ||| relation ||| object, not "
                f"{shown(triple)}"
            )
        fields |= dict(zip(("subject", "relation", "object"), parts, strict=True))
    return Record(fields, where)


def _text(path: str) -> str:
    """The content, without a byte order mark."""
    return "".join(line for _, line in _raw_lines(path))


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Non-blank lines with their numbers, without line endings."""
    for number, line in _raw_lines(path):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _raw_lines(path: str) -> Iterator[tuple[int, str]]:
    """Lines, ended only by line feeds, with their numbers."""
    for number, line in enumerate(io.BytesIO(read_file(path)), start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise PlugError(f"{path}, line {number} is not UTF-8: {error.reason}") from error


def _items(value: Any, name: str, where: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise PlugError(f"{where}: expected an object with a list {name!r}{_has(value)}")
    return found


def _string(value: Any, name: str, where: str) -> str:
    found = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(found, str):
        raise PlugError(f"{where}: expected an object with a text {name!r}{_has(value)}")
    return found


def _has(value: Any) -> str:
    return f"; it has {', '.join(map(repr, value))}" if isinstance(value, dict) else ""
