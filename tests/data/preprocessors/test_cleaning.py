"""Each cleaning step changes and drops what it documents, and counts both."""

import collections
import concurrent.futures
import pickle
import sys
import unicodedata

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from plug_jax.data.drops import change_counts, drop_counts, reset_counts
from plug_jax.data.preprocessors import cleaning
from plug_jax.errors import PlugError

REWRITING = [
    cleaning.UnicodeNFKC(),
    cleaning.HalfWidth(),
    cleaning.ControlCharacters(),
    cleaning.Simplified(),
]
SELECTING = [cleaning.MinLength(3), cleaning.ChineseRatio(0.5)]
STEPS = REWRITING + SELECTING
EVERY_CHARACTER = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]


@pytest.fixture(autouse=True)
def no_counts():
    reset_counts()


def name(step):
    return type(step).__name__


def clean(step, texts):
    return [text.decode() for text in step(tf.constant(texts, tf.string)).numpy()]


# --- each step


@pytest.mark.parametrize(
    ("step", "before", "after", "changes", "drops"),
    [
        (
            cleaning.UnicodeNFKC(),
            ["ＡＢＣ１２３，你好！", "①㎏", "天亮"],
            ["ABC123,你好!", "1kg", "天亮"],
            {"unicode_nfkc": 2},
            {},
        ),
        (
            cleaning.HalfWidth(),
            ["ＡＢＣ　１２３，你好！", "天亮"],
            ["ABC 123，你好！", "天亮"],
            {"half_width": 1},
            {},
        ),
        (
            cleaning.ControlCharacters(),
            ["a\tb\r\n\u200bc", "天亮"],
            ["a b\nc", "天亮"],
            {"control_characters": 1},
            {},
        ),
        (
            cleaning.Simplified(),
            ["頭髮乾了", "乾坤", "天亮"],
            ["头发干了", "乾坤", "天亮"],
            {"simplified": 1},
            {},
        ),
        (
            cleaning.MinLength(characters=3),
            ["天 亮", "天亮了", ""],
            ["天亮了"],
            {},
            {"too_short_text": 2},
        ),
        (
            cleaning.ChineseRatio(minimum=0.5),
            ["天亮 ok", "天 okay", "！"],
            ["天亮 ok"],
            {},
            {"too_little_chinese": 2},
        ),
    ],
    ids=lambda value: name(value) if callable(value) else None,
)
def test_docstring_example(step, before, after, changes, drops):
    assert clean(step, before) == after
    assert change_counts() == changes
    assert drop_counts() == drops


def test_half_width_changes_these_characters_alone():
    (text,) = clean(cleaning.HalfWidth(), ["".join(EVERY_CHARACTER)])
    changed = {a: b for a, b in zip(EVERY_CHARACTER, text, strict=True) if a != b}
    wide = "０１２３４５６７８９ＡＢＣＤＥＦＧＨＩＪＫＬＭＮＯＰＱＲＳＴＵＶＷＸＹＺ"
    wide += "ａｂｃｄｅｆｇｈｉｊｋｌｍｎｏｐｑｒｓｔｕｖｗｘｙｚ"
    half = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert changed == dict(zip(wide, half, strict=True)) | {"\u3000": " "}


def test_half_width_finds_what_to_change_anywhere_in_a_text():
    texts = ["Ａ\n天", "天\nＺ", "", "天\n９\n亮", "，\n"]
    assert clean(cleaning.HalfWidth(), texts) == ["A\n天", "天\nZ", "", "天\n9\n亮", "，\n"]


def test_every_character_after_the_removal_of_control_characters():
    cleaned = clean(cleaning.ControlCharacters(), EVERY_CHARACTER)
    by_result = collections.defaultdict(set)
    for char, result in zip(EVERY_CHARACTER, cleaned, strict=True):
        by_result["kept" if result == char else result].add(char)
    assert by_result.keys() == {"kept", "\n", " ", ""}
    assert by_result["\n"] == set("\r\x85\u2028\u2029")

    def of_category(*categories):
        return {char for char in EVERY_CHARACTER if unicodedata.category(char) in categories}

    assert by_result[" "] == of_category("Zs") - {" "} | set("\t\v\f")
    noncharacters = {chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF)}
    noncharacters |= {chr(code) for code in range(0xFDD0, 0xFDF0)}
    assert by_result[""] >= of_category("Co") | noncharacters | {"\ufffd", "\0", "\x7f"}
    removed = of_category("Cc", "Cf", "Co") - set("\n\t\v\f\r\x85")
    # The two Unicode tables may be of different versions: characters that one of them does not
    # know yet may differ.
    differing = by_result[""] ^ (removed | noncharacters | {"\ufffd"})
    assert {unicodedata.category(char) for char in differing} <= {"Cn", "Cf"}
    assert len(differing) < 20
    assert not differing & set("\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2066\u2069\xad\ufeff")


def test_line_breaks_become_line_feeds():
    text = "一\r\n二\r三\n四\u2028五\x85六\n\r七"
    assert clean(cleaning.ControlCharacters(), [text]) == ["一\n二\n三\n四\n五\n六\n\n七"]


@pytest.mark.parametrize(
    ("text", "simplified"),
    [
        ("臺灣的後天", "台湾的后天"),
        ("皇后在後面", "皇后在后面"),
        ("「漢字」，OK！", "「汉字」，OK！"),
        ("髮\0\uffff", "发\0\uffff"),
    ],
)
def test_simplified(text, simplified):
    assert clean(cleaning.Simplified(), [text]) == [simplified]


@pytest.mark.parametrize("space", ["\t", "\n", "\v", "\f", "\r", " ", "\x85", "\u3000", "\u2028"])
def test_white_space_is_not_counted(space):
    texts = [f"天{space}亮", f"天{space}亮了"]
    assert clean(cleaning.MinLength(3), texts) == texts[1:]
    assert clean(cleaning.ChineseRatio(1.0), texts) == texts


def test_length_is_in_characters():
    assert clean(cleaning.MinLength(2), ["😀", "天", "ab", "天亮"]) == ["ab", "天亮"]
    assert clean(cleaning.MinLength(0), ["", " "]) == ["", " "]


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("\u3007", "\u3007"),
        ("\u3400", "\u4dbf"),
        ("\u4e00", "\u9fff"),
        ("\uf900", "\ufaff"),
        ("\U00020000", "\U0003ffff"),
    ],
)
def test_the_ranges_of_chinese(first, last):
    inside = [first, last]
    outside = [chr(ord(first) - 1), chr(ord(last) + 1)]
    assert clean(cleaning.ChineseRatio(1.0), inside + outside) == inside
    assert drop_counts() == {"too_little_chinese": 2}


@pytest.mark.parametrize("minimum", [k / 20 for k in range(21)])
def test_a_ratio_of_exactly_the_minimum_is_enough(minimum):
    texts = ["天" * k + "," * (20 - k) for k in range(21)]
    kept = clean(cleaning.ChineseRatio(minimum), texts)
    assert kept == texts[round(minimum * 20) :]


def test_a_text_without_characters_has_no_chinese():
    assert clean(cleaning.ChineseRatio(0.01), ["", " \n", "天"]) == ["天"]
    assert clean(cleaning.ChineseRatio(0), ["", " \n", "天"]) == ["", " \n", "天"]


# --- properties of all steps

TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.text(
            st.sampled_from("天亮漢後頭髮乾坤,，！…Ａａ１ 　\t\r\n\u2028\0\u200b\ufeff\ufffdé①ab")
        ),
    ),
    max_size=6,
)


@pytest.mark.parametrize("step", STEPS, ids=name)
@settings(deadline=None, max_examples=60)
@given(texts=TEXTS)
def test_order_counts_and_idempotence(step, texts):
    reset_counts()
    cleaned = clean(step, texts)
    changes, drops = sum(change_counts().values()), sum(drop_counts().values())
    if step in REWRITING:
        assert len(cleaned) == len(texts)
        assert cleaned == [clean(step, [text])[0] for text in texts]
        assert changes == sum(a != b for a, b in zip(texts, cleaned, strict=True))
        assert drops == 0
    else:
        assert cleaned == [text for text in texts if clean(step, [text])]
        reset_counts()
        assert drops == len(texts) - len(cleaned)
        assert changes == 0
    reset_counts()
    # OpenCC turns 薴 into 苧, a traditional character itself.
    if not (step == cleaning.Simplified() and "苧" in "".join(cleaned)):
        assert clean(step, cleaned) == cleaned
        assert change_counts() == {}
    assert drop_counts() == {}


def test_a_text_of_which_nothing_is_left_stays_for_tokenisation_to_count():
    assert clean(cleaning.ControlCharacters(), ["\ufeff\0", "天"]) == ["", "天"]
    assert change_counts() == {"control_characters": 1}
    assert drop_counts() == {}


def test_steps_one_after_the_other_in_a_dataset():
    texts = ["\ufeff", "ＡＢＣ", "漢字ＡＢ", "", "天亮\x00", "短"]
    dataset = tf.data.Dataset.from_tensor_slices(texts).batch(4)
    for step in (
        cleaning.ControlCharacters(),
        cleaning.HalfWidth(),
        cleaning.Simplified(),
        cleaning.MinLength(2),
        cleaning.ChineseRatio(0.5),
    ):
        dataset = dataset.map(step, num_parallel_calls=tf.data.AUTOTUNE)
        assert dataset.element_spec == tf.TensorSpec([None], tf.string)
    blocks = [[text.decode() for text in block] for block in dataset.as_numpy_iterator()]
    assert blocks == [["汉字AB"], ["天亮"]]
    assert change_counts() == {"control_characters": 2, "half_width": 2, "simplified": 1}
    assert drop_counts() == {"too_short_text": 3, "too_little_chinese": 1}


@pytest.mark.parametrize("step", STEPS, ids=name)
def test_a_block_without_texts(step):
    assert clean(step, []) == []


@pytest.mark.parametrize("step", STEPS, ids=name)
def test_a_text_of_megabytes(step):
    line = "天亮了，我們去Ａ公司。\n"
    assert clean(step, [line * 100_000]) == [clean(step, [line])[0] * 100_000]


@pytest.mark.parametrize("step", STEPS, ids=name)
def test_steps_are_values_that_can_be_pickled(step):
    clean(step, ["漢"])
    assert pickle.loads(pickle.dumps(step)) == step
    assert hash(step) == hash(pickle.loads(pickle.dumps(step)))


def test_many_threads_simplify():
    text = "頭髮乾了，乾坤。" * 2000
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: clean(cleaning.Simplified(), [text * i]), range(1, 33)))
    assert results == [["头发干了，乾坤。" * 2000 * i] for i in range(1, 33)]


# --- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cleaning.MinLength(-1), "MinLength.characters must be 0 or more, not -1"),
        (lambda: cleaning.ChineseRatio(1.5), "must be between 0 and 1, not 1.5"),
        (lambda: cleaning.ChineseRatio(-0.1), "must be between 0 and 1, not -0.1"),
        (lambda: cleaning.ChineseRatio(float("nan")), "must be a finite number, not nan"),
    ],
)
def test_a_bad_argument_is_refused(make, message):
    with pytest.raises(PlugError, match=message):
        make()


def test_without_opencc_the_step_is_refused(monkeypatch):
    cleaning._converter.cache_clear()
    monkeypatch.setitem(sys.modules, "opencc", None)  # importing it now fails
    with pytest.raises(PlugError, match=r"pip install 'plug-jax\[clean\]'"):
        cleaning.Simplified()
