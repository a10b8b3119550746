"""Small files of every task of CLUE, in the exact formats of the archives, with a learnable signal.

`write_clue(directory)` writes them all, `files_of(folder)` gives the bytes of one folder's files.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plug_jax.clue.records import Record
from plug_jax.clue.tasks import ClueTask

FOLDERS = (
    "afqmc",
    "tnews",
    "iflytek",
    "cmnli",
    "ocnli",
    "cluewsc2020",
    "csl",
    "cmrc2018",
    "drcd",
    "chid",
    "c3",
    "cluener",
    "eprstmt",
    "diagnostics",
)
# Where each task of the table has its files.
FOLDER_OF = {
    **{folder: folder for folder in FOLDERS if folder != "cluewsc2020"},
    **{f"ocnli_{size}": "ocnli" for size in ("30k", "10k", "3k")},
    **{"tnews10": "tnews", "chid10": "chid", "c310": "c3"},
    **{"cluewsc": "cluewsc2020", "cluewsc10": "cluewsc2020"},
}

# What distinguishes the classes of a text, and topics.
_TOPICS = ("天气", "手机", "花园", "电影", "书店", "汽车", "火车", "学校", "河流", "山路")
_NEWS = {
    "100": ("news_story", "故事"),
    "103": ("news_sports", "球赛"),
    "104": ("news_finance", "股票"),
    "116": ("news_game", "游戏"),
}
_APPS = {"0": ("打车", "打车软件"), "11": ("医疗", "医生软件"), "110": ("社区超市", "超市软件")}
_MARKERS = {"contradiction": "不", "entailment": "都", "neutral": "也许"}
_NUMBERS = "一二三四五六七八九十"
_IDIOMS = (
    "一心一意",
    "十全十美",
    "三心二意",
    "千山万水",
    "风和日丽",
    "天长地久",
    "大同小异",
    "百花齐放",
    "水落石出",
    "人山人海",
)


def lines_of(*rows: Any) -> bytes:
    """JSON lines, each with a line feed."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def value_of(value: Any, **options: Any) -> bytes:
    """One JSON value per file."""
    return json.dumps(value, ensure_ascii=False, **options).encode()


def files_of(folder: str) -> dict[str, bytes]:
    """The files of a task's folder or zip, by name."""
    return _WRITERS[folder]()


def write_clue(
    directory: Path, folders: Collection[str] = FOLDERS, zipped: Collection[str] = ()
) -> Path:
    """Write folders `<task>_public` to `directory`, and zips `<task>_public.zip` for `zipped`.

    Returns `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        files = files_of(folder)
        if folder in zipped:
            write_zip(directory / f"{folder}_public.zip", folder, files)
        else:
            place = directory / f"{folder}_public"
            place.mkdir(exist_ok=True)
            for name, content in files.items():
                (place / name).write_bytes(content)
    return directory


def write_zip(path: Path, folder: str, files: dict[str, bytes]) -> None:
    """A task's zip: without folders, except for CMNLI."""
    inside = "cmnli_public/" if folder == "cmnli" else ""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(inside + name, content)


def constant_predictions(task: ClueTask, records: Sequence[Record]) -> dict[Any, Any]:
    """Valid predictions for a leaderboard, the same for every record except the blanks of CHID."""
    if task.kind == "blank":
        return {record.id: n % 10 for n, record in enumerate(records)}
    made = {"choice": 1, "question": "一米", "entity": ()}
    label = task.labels[-1] if task.kind == "text" else made[task.kind]
    return {record.id: label for record in records}


def write_vocabulary(path: Path) -> Path:
    """A vocab.txt with every character of these files; returns its path."""
    from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES  # it imports tensorflow

    text = "".join(content.decode() for folder in FOLDERS for content in files_of(folder).values())
    characters = sorted({character.lower() for character in text if not character.isspace()})
    pieces = [*SPECIAL_PIECES, "[unused1]", *characters, *(f"##{one}" for one in characters)]
    path.write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
    return path


def _splits(
    make: Any, train: int = 12, dev: int = 6, test: int = 6
) -> Iterator[tuple[str, list[Any]]]:
    """(split, rows): `make(number)` gives different rows to each split."""
    numbers = itertools.count()
    for split, count in (("train", train), ("dev", dev), ("test", test)):
        yield split, [make(next(numbers)) for _ in range(count)]


def _topic(number: int) -> str:
    return _TOPICS[number % len(_TOPICS)]


def _numbered(rows: Iterable[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Rows of a test file: an id first, then these keys."""
    return [{"id": i, **{key: row[key] for key in keys}} for i, row in enumerate(rows)]


def _afqmc() -> dict[str, bytes]:
    def row(number: int) -> dict[str, str]:
        asked, label = ("多少钱", "0") if number % 2 else ("好不好", "1")
        return {"sentence1": f"{_topic(number)}好吗", "sentence2": asked, "label": label}

    files = dict(_splits(row))
    files["test"] = _numbered(files["test"], "sentence1", "sentence2")
    return {f"{split}.json": lines_of(*rows) for split, rows in files.items()}


def _tnews() -> dict[str, bytes]:
    def row(number: int) -> dict[str, str]:
        label = list(_NEWS)[number % len(_NEWS)]
        name, word = _NEWS[label]
        text = f"{_topic(number)}的{word}新闻"
        return {
            "label": label,
            "label_desc": name,
            "sentence": text,
            "keywords": f"{_topic(number)},{word}",
        }

    files = dict(_splits(row))
    labels = [{"label": label, "label_desc": name} for label, (name, _) in _NEWS.items()]
    return {
        "train.json": lines_of(*files["train"]),
        "dev.json": lines_of(*files["dev"]),
        "test.json": lines_of(*_numbered(files["test"], "sentence")),  # version 1.1 has no keywords
        "test1.0.json": lines_of(*_numbered(files["test"][:4], "sentence", "keywords")),
        "labels.json": lines_of(*labels),
    }


def _iflytek() -> dict[str, bytes]:
    def row(number: int) -> dict[str, str]:
        label = list(_APPS)[number % len(_APPS)]
        name, word = _APPS[label]
        text = f"这是\u200b{word}，可以看{_topic(number)}。"
        return {"label": label, "label_des": name, "sentence": text}

    files = dict(_splits(row))
    labels = [{"label": label, "label_des": name} for label, (name, _) in _APPS.items()]
    return {
        "train.json": lines_of(*files["train"]),
        "dev.json": lines_of(*files["dev"]),
        "test.json": lines_of(*_numbered(files["test"], "sentence")),
        "labels.json": lines_of(*labels),
    }


def _inference_row(number: int) -> dict[str, str]:
    label = list(_MARKERS)[number % len(_MARKERS)]
    return {
        "sentence1": f"{_topic(number)}很大",
        "sentence2": f"{_topic(number)}{_MARKERS[label]}大",
        "label": label,
    }


def _cmnli() -> dict[str, bytes]:
    files = dict(_splits(_inference_row))
    undecided = {**_inference_row(0), "label": "-"}
    return {
        "train.json": lines_of(*files["train"]),
        "dev.json": lines_of(files["dev"][0], undecided, *files["dev"][1:]),
        "test.json": lines_of(*_numbered(files["test"], "sentence1", "sentence2")),
    }


def _ocnli() -> dict[str, bytes]:
    def row(number: int) -> dict[str, Any]:
        pair = _inference_row(number)
        return {
            "level": ("easy", "medium", "hard")[number % 3],
            **pair,
            **{f"label{i}": None for i in range(5)},
            "genre": "gov",
            "prem_id": f"gov_{number}",
            "id": number,
        }

    files = dict(_splits(row))
    dev = [*files["dev"], {**files["dev"][0], "label": "-"}]
    dev = [{**line, "id": number} for number, line in enumerate(dev)]
    test = [
        {key: line[key] for key in ("sentence1", "sentence2")} | {"id": number}
        for number, line in enumerate(files["test"])
    ]
    train = files["train"]
    return {
        "train.50k.json": lines_of(*train, {**train[0], "label": "-", "id": 99}).rstrip(b"\n"),
        "train.30k.json": lines_of(*train).rstrip(b"\n"),
        "train.10k.json": lines_of(*train[:9]).rstrip(b"\n"),
        "train.3k.json": lines_of(*train[:6]).rstrip(b"\n"),
        "dev.json": lines_of(*dev).rstrip(b"\n"),
        "test.json": lines_of(*test).rstrip(b"\n"),
    }


def _cluewsc() -> dict[str, bytes]:
    def row(number: int) -> dict[str, Any]:
        mood, label = ("累", "true") if number % 2 else ("饿", "false")
        text = f"小王走到{_topic(number)}了，因为他{mood}"
        target = {
            "span2_index": text.index("他"),
            "span1_index": 0,
            "span1_text": "小王",
            "span2_text": "他",
        }
        return {"target": target, "idx": number, "label": label, "text": text}

    files = dict(_splits(row))
    test = _numbered(files["test"], "target", "text")
    return {
        "train.json": lines_of(*files["train"]),
        "dev.json": lines_of(*files["dev"]),
        "test.json": lines_of(*test),
        "test1.0.json": lines_of(*test[:4]),
    }


def _csl() -> dict[str, bytes]:
    def row(number: int) -> dict[str, Any]:
        topic = _topic(number)
        keyword, label = ([topic, "方法"], "1") if number % 2 else (["虚假", "词语", "无"], "0")
        return {
            "id": number,
            "abst": f"本文研究{topic}的方法。",
            "keyword": keyword,
            "label": label,
        }

    files = dict(_splits(row))
    test = _numbered(files["test"], "abst", "keyword")
    return {
        "train.json": lines_of(*files["train"]),
        "dev.json": lines_of(*files["dev"]),
        "test.json": lines_of(*test),
    }


def _cmrc() -> dict[str, bytes]:
    def article(number: int, split: str) -> dict[str, Any]:
        key, length = f"{split.upper()}_{number}", _NUMBERS[number % len(_NUMBERS)]
        context = f"{_topic(number)}的桥长{length}米，很有名。"
        text = f"{length}米"
        start = context.index(text)
        answers = [{"text": text, "answer_start": start}]
        if split == "dev":
            answers += [{"text": length, "answer_start": start}] * 2
        if split == "test":
            answers = [{"text": "FAKE_ANSWER_1", "answer_start": -1}]
        qas = [{"question": "桥多长？", "id": f"{key}_QUERY_0", "answers": answers}]
        paragraph = {"id": key, "context": context, "qas": qas}
        return {"paragraphs": [paragraph], "id": key, "title": _topic(number)}

    files = {}
    for split, first, count in (("train", 0, 10), ("dev", 3, 6), ("test", 5, 6), ("trial", 1, 4)):
        data = [article(first + number, split) for number in range(count)]
        files[f"{split}.json"] = value_of({"version": "v1.0", "data": data})
    return files


def _drcd() -> dict[str, bytes]:
    def article(number: int, split: str) -> dict[str, Any]:
        length = _NUMBERS[number % len(_NUMBERS)]
        context = f"這座橋長{length}米，很有名。"
        text = f"{length}米"
        answers = [
            {"id": str(i + 1), "text": text, "answer_start": context.index(text)}
            for i in range(1 if split == "train" else 2)
        ]
        question = {"id": f"{number}-1-1", "question": "橋多長？", "answers": answers}
        paragraph = {"context": context, "qas": [question], "id": f"{number}-1"}
        return {"title": "橋", "id": str(number), "paragraphs": [paragraph]}

    files = {}
    for split, first, count in (("train", 0, 10), ("dev", 3, 6), ("test", 5, 6)):
        data = [article(first + number, split) for number in range(count)]
        files[f"{split}.json"] = value_of({"version": "1.3", "data": data})
    return files


def _chid() -> dict[str, bytes]:
    tags = (f"#idiom{number:06d}#" for number in itertools.count(378))

    def file(count: int) -> tuple[bytes, bytes]:
        lines, answers = [], {}
        for number in range(count):
            content = []
            for passage in range(2):  # the text before a blank determines its idiom
                idiom = (3 * number + passage) % len(_IDIOMS)
                tag = next(tags)
                content.append(f"他说{_IDIOMS[idiom][:2]}，就是{tag}，没有错。")
                answers[tag] = (idiom + number) % len(_IDIOMS)
            candidates = [_IDIOMS[(i - number) % len(_IDIOMS)] for i in range(len(_IDIOMS))]
            lines.append({"content": content, "candidates": candidates})
        return lines_of(*lines), value_of(answers)

    train, dev, test10 = file(6), file(4), file(3)
    tags = (f"#idiom{number:06d}#" for number in itertools.count(623377))
    return {
        "train.json": train[0],
        "train_answer.json": train[1],
        "dev.json": dev[0],
        "dev_answer.json": dev[1],
        "test1.0.json": test10[0],
        "test1.1.json": file(3)[0],
    }


def _c3() -> dict[str, bytes]:
    keys = itertools.count()

    def passage(number: int, kind: str, is_test: bool) -> list[Any]:
        hour = _NUMBERS[number % 5]
        others = [f"{_NUMBERS[(number + i) % 5]}点" for i in range(1, 2 + number % 3)]
        choices = [*others, f"{hour}点"] if number % 2 else [f"{hour}点", *others]
        question = {"question": "几点？", "choice": choices}
        question |= {"id": next(keys)} if is_test else {"answer": f"{hour}点"}
        lines = ["女：几点？", f"男：{hour}点。"] if kind == "d" else [f"他{hour}点来了。"]
        return [lines, [question], f"{number}-{kind}"]

    files = {}
    for split, first, count in (("train", 0, 6), ("dev", 6, 3)):
        for kind in "dm":
            data = [passage(first + number, kind, False) for number in range(count)]
            files[f"{kind}-{split}.json"] = value_of(data, indent=1)
    for name, count in (("test1.0.json", 4), ("test1.1.json", 6)):
        keys = itertools.count()
        data = [passage(number, "dm"[number % 2], True) for number in range(count)]
        files[name] = value_of(data, indent=1)
    return files


def _cluener() -> dict[str, bytes]:
    def row(number: int) -> dict[str, Any]:
        name = ("王小明", "李华")[number % 2]
        place = ("杭州", "北京市")[number // 2 % 2]
        label = {"name": {name: [[0, len(name) - 1]]}}
        if number % 5 == 0:
            return {"text": f"{name}看{_topic(number)}", "label": label}
        first = len(name) + 1
        label["address"] = {place: [[first, first + len(place) - 1]]}
        return {"text": f"{name}在{place}看{_topic(number)}", "label": label}

    files = dict(_splits(row))
    files["dev"][-1] = {"text": "今天没有人", "label": {}}
    return {
        "train.json": lines_of(*files["train"]),
        "dev.json": lines_of(*files["dev"]),
        "test.json": lines_of(*_numbered(files["test"], "text")),
    }


def _eprstmt() -> dict[str, bytes]:
    def row(number: int) -> dict[str, Any]:
        word, label = ("好用", "Positive") if number % 2 else ("难用", "Negative")
        return {"id": 7 * number % 101, "sentence": f"{_topic(number)}{word}", "label": label}

    files = dict(_splits(row))
    unlabeled = [{key: line[key] for key in ("id", "sentence")} for line in files["test"]]
    samples = ("0", "1", "2", "3", "4", "few_all")
    return {
        **{f"train_{sample}.json": lines_of(*files["train"]) for sample in samples},
        **{f"dev_{sample}.json": lines_of(*files["dev"]) for sample in samples},
        "test_public.json": lines_of(*files["test"]),
        "test.json": lines_of(*unlabeled),
        "unlabeled.json": lines_of(*unlabeled),
    }


def _diagnostics() -> dict[str, bytes]:
    rows = [_inference_row(number) for number in range(6)]
    lines = (
        {"premise": row["sentence1"], "hypothesis": row["sentence2"], "index": number}
        for number, row in enumerate(rows)
    )
    return {"diagnostics_test.json": lines_of(*lines)}


_WRITERS = {
    "afqmc": _afqmc,
    "tnews": _tnews,
    "iflytek": _iflytek,
    "cmnli": _cmnli,
    "ocnli": _ocnli,
    "cluewsc2020": _cluewsc,
    "csl": _csl,
    "cmrc2018": _cmrc,
    "drcd": _drcd,
    "chid": _chid,
    "c3": _c3,
    "cluener": _cluener,
    "eprstmt": _eprstmt,
    "diagnostics": _diagnostics,
}
