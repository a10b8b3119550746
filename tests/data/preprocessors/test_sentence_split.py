"""Sentences end where they should, and no text is lost."""

import unicodedata

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from plug_jax.data.preprocessors.sentence_split import split_sentences

STOPS = "。｡！？；…⋯!?;"
CLOSERS = "”’」』｣）》】〉〕］｝〗〙〞〟＂＇\"')]}"
COMMAS = "，、,､"


def split(text):
    return [sentence.decode() for sentence in split_sentences(tf.constant(text)).numpy()]


def split_block(texts):
    ragged = split_sentences(tf.constant(texts, tf.string))
    return [[sentence.decode() for sentence in row] for row in ragged.to_list()]


def is_space(char):
    return char in "\t\n\f\r " or unicodedata.category(char)[0] == "Z"


def split_by_character(text):
    """The same rule as a state machine over characters."""
    sentences, sentence, state = [], "", "before"  # "before", "inside", "stopped", "spaced"
    for char in text:
        if state == "stopped" and char in STOPS + CLOSERS:
            pass
        elif state == "stopped" and char in COMMAS:
            state = "inside"
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
    texts = ["他问：“好吗？”我说：“好！”，笑了……真的！", "\n气温3.5度\n降了", ""]
    assert split_block(texts) == [
        ["他问：“好吗？”", "我说：“好！”，笑了……", "真的！"],
        ["\n气温3.5度\n", "降了"],
        [],
    ]


def test_docstring_example_of_speech():
    assert split("“你好！”他说。") == ["“你好！”", "他说。"]
    assert split("“你好！”，他说。") == ["“你好！”，他说。"]


@pytest.mark.parametrize(
    "sentences",
    [
        [],
        ["没有句号"],
        ["“走吧！”", "他说。"],
        ["“走吧！”，他说。", "走了。"],
        ["他说：‘好。’", "然后走了。"],
        ["“他说：‘好。’", "然后走了。”", "完。"],
        ["“他说：‘好。’”", "我问：“然后？”，没人应。"],
        ["“一。", "二！", "三？”", "她数。"],
        ["（真的吗？！）", "不知道……", "算了；", "再见"],
        ["他说“好。”。", "她说「不！」』", "完"],
        ["真的吗？！", "真的?!", "等等⋯⋯", "没了。。。", "ﾊﾝｶｸ｡", "｢短｡｣", "长…"],
        ["哎，等……，我来、不！、行吗?, 好!､完。", "下一句"],
        ["“哎……”", "他叹。"],
        ["好。 ", "，前面有空格"],
        ["好。\n", "，前面有换行"],
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
    assert split_block(["".join(sentences)]) == [sentences]


MIXED = st.text(st.sampled_from(STOPS + CLOSERS + COMMAS + "“「（ab1.：中文 \t\r\n　"), max_size=60)
ODD = "\0\x1a\ufeff\uffff\ufffd\u0301\u200d\ufe0f\u2028\x85👩🏽\U0010ffff\U00020000é"
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
HOSTILE = st.text(st.sampled_from(ODD + STOPS + CLOSERS + COMMAS + " \n中"), max_size=60)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(MIXED, ANY, HOSTILE), max_size=5))
def test_splits_by_the_rule_and_loses_nothing(texts):
    rows = split_sentences(tf.constant(texts, tf.string)).to_list()
    assert [b"".join(row) for row in rows] == [text.encode() for text in texts]
    assert all(sentence for row in rows for sentence in row)
    sentences = [[sentence.decode() for sentence in row] for row in rows]
    assert sentences == [split_by_character(text) for text in texts]
    assert sentences == [split(text) for text in texts]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("甲乙丙丁", 1), ("短。", 1_000_000), ("\n", 1), ("。", 1), (" ", 1), ("。，", 1), ("😀", 1)],
)
def test_a_text_of_megabytes(unit, expected):
    text = unit * (2_000_000 // len(unit))
    sentences = split_sentences(tf.constant([text])).flat_values.numpy()
    assert b"".join(sentences) == text.encode()
    assert len(sentences) == expected


def test_runs_in_a_dataset():
    dataset = tf.data.Dataset.from_tensor_slices(["一。二。", "", "三"])
    scalars = dataset.map(split_sentences)
    assert scalars.element_spec == tf.TensorSpec([None], tf.string)
    assert [len(sentences) for sentences in scalars.as_numpy_iterator()] == [2, 0, 1]
    blocks = dataset.batch(2).map(split_sentences)
    assert blocks.element_spec == tf.RaggedTensorSpec([None, None], tf.string, 1, tf.int64)
    assert [block.row_lengths().numpy().tolist() for block in blocks] == [[2, 0], [1]]
