"""Sentences end where they should, and nothing of the text is lost."""

import unicodedata

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from plug_jax.data.sentence_split import split_sentences

STOPS = "。！？；…!?;"
CLOSERS = "”’」』）》】〉〕］｝〗〙\"')]}"


def split(text):
    return [sentence.decode() for sentence in split_sentences(tf.constant(text)).numpy()]


def is_space(char):
    return char in "\t\n\f\r " or unicodedata.category(char)[0] == "Z"


def split_by_character(text):
    """The same rule, as a machine that reads one character after the other."""
    sentences, sentence, state = [], "", "before"  # "before", "inside", "stopped", "spaced"
    for char in text:
        if state == "stopped" and char in STOPS + CLOSERS:
            pass
        elif state in ("stopped", "spaced") and is_space(char):
            state = "spaced"
        elif state != "before" or not is_space(char):
            if state in ("stopped", "spaced"):
                sentences.append(sentence)
                sentence = ""
            state = "stopped" if char in STOPS else "spaced" if char == "\n" else "inside"
        sentence += char
    return [*sentences, sentence] if sentence else sentences


def test_docstring_example():
    assert split("他问：“好吗？”我说……好！\n气温3.5度") == [
        "他问：“好吗？”",
        "我说……",
        "好！\n",
        "气温3.5度",
    ]


@pytest.mark.parametrize(
    "sentences",
    [
        [],
        ["没有句号"],
        ["“走吧！”", "他说。"],
        ["（真的吗？！）", "不知道……", "算了；", "再见"],
        ["他说“好。”。", "她说「不！」』", "完"],
        ["圆周率是3.14159，v2.0.1。", "下一句"],
        ["Hello, world! ", "How are you? ", "Fine; ", "thanks. Bye."],
        ['"Stop!" ', "he said. 'Why?' ", "No."],
        ["标题\n", "第一段。\n\n　　", "第二段\r\n", "尾"],
        ["\n\n　开头。", "然后"],
        [" \n "],
        ["！？。。。", "“又来”"],
    ],
)
def test_sentences(sentences):
    assert split("".join(sentences)) == sentences


MIXED = st.text(st.sampled_from(STOPS + CLOSERS + "“「（ab1.，、：中文字 \t\r\n　"), max_size=60)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(deadline=None, max_examples=400)
@given(st.one_of(MIXED, ANY))
def test_splits_by_the_rule_and_loses_nothing(text):
    sentences = split(text)
    assert "".join(sentences) == text
    assert all(sentences)
    assert sentences == split_by_character(text)


@pytest.mark.parametrize("unit", ["甲乙丙丁", "短。", "\n", "。", " "])
def test_a_text_of_megabytes(unit):
    text = unit * (1_000_000 // len(unit))
    sentences = split(text)
    assert "".join(sentences) == text
    assert len(sentences) == (len(text) // 2 if unit == "短。" else 1)


def test_runs_in_a_dataset():
    dataset = tf.data.Dataset.from_tensor_slices(["一。二。", "", "三"]).map(split_sentences)
    assert [len(sentences) for sentences in dataset.as_numpy_iterator()] == [2, 0, 1]
