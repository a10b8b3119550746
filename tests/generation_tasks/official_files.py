"""Small files in the official formats of the generation tasks, as published."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

QUESTIONS = [  # answer, context, question
    ("北京", "中国的首都是北京。", "首都在哪？"),
    ("小雨", "今日北京有小雨。", "今日天气？"),
    ("三天", "他去了三天。", "他去了多久？"),
]
SUMMARIES = [("北京今日有小雨，明日天气好。", "北京今日小雨"), ("他去了中国的首都。", "他去了首都")]


def write_lines(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # half surrogate pairs
    return path


def lcsts(directory: Path) -> Path:
    """LCSTS_new: ids are strings."""
    rows = [{"id": str(n), "content": c, "summary": s} for n, (c, s) in enumerate(SUMMARIES)]
    for name in ("train", "dev"):
        write_lines(directory / f"{name}.json", rows)
    return directory


def dureader_qg(directory: Path, questions: Sequence[tuple[str, str, str]] = QUESTIONS) -> Path:
    """DuReaderQG: ids are numbers."""
    for name in ("train", "dev"):
        rows = [
            {"context": context, "answer": answer, "question": question, "id": number}
            for number, (answer, context, question) in enumerate(questions)
        ]
        write_lines(directory / f"{name}.json", rows)
    return directory


def dureader_robust(directory: Path) -> Path:
    """SQuAD's nesting; some questions have several answers, the test set's none."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev", "test"):
        paragraphs = []
        for number, (answer, context, question) in enumerate(QUESTIONS):
            answers = [{"text": answer, "answer_start": context.find(answer)}]
            answers += [{"text": answer[:1], "answer_start": context.find(answer[:1])}]
            asked = {"question": question, "id": f"q{number}", "answers": answers}
            if name == "test":
                del asked["answers"]
            paragraphs.append({"qas": [asked], "context": context})
        content = {"data": [{"paragraphs": paragraphs, "title": ""}]}
        text = json.dumps(content, ensure_ascii=False)
        (directory / f"{name}.json").write_text(text, encoding="utf-8")
    return directory


def kbqg(directory: Path) -> Path:
    """NLPCC-KBQA: blocks with CR LF."""
    directory.mkdir(parents=True, exist_ok=True)
    blocks = []
    for number, (answer, _, question) in enumerate(QUESTIONS, start=1):
        blocks += [
            f"<question id={number}>\t{question}",
            f"<triple id={number}>\t中国 ||| 首都 ||| {answer}",
            f"<answer id={number}>\t{answer}",
            "=" * 50,
        ]
    for name in ("nlpcc2016-2018.kbqa.train", "nlpcc2016.kbqa.test"):
        (directory / name).write_bytes("".join(line + "\r\n" for line in blocks).encode())
    return directory


def advertisegen(directory: Path) -> Path:
    """AdvertiseGen: no ids; the test set has no summaries."""
    rows = [{"content": f"类型#裙*颜色#{color}", "summary": f"{color}裙很好看"} for color in "红白"]
    for name in ("train", "dev"):
        write_lines(directory / f"{name}.json", rows)
    write_lines(directory / "test.json", [{"content": row["content"]} for row in rows])
    return directory


def csl_title(directory: Path) -> Path:
    """CSL titles: the test set's are empty."""
    rows = [{"id": n, "title": s, "abst": c} for n, (c, s) in enumerate(SUMMARIES)]
    for name in ("train", "val"):
        write_lines(directory / f"csl_title_{name}.json", rows)
    write_lines(directory / "csl_title_test.json", [{**row, "title": ""} for row in rows])
    return directory


WRITERS = {
    "lcsts": lcsts,
    "dureader_qg": dureader_qg,
    "dureader_robust": dureader_robust,
    "kbqg": kbqg,
    "advertisegen": advertisegen,
    "csl_title": csl_title,
}
