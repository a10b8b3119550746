"""Spans of tokens in their text."""

from __future__ import annotations

import io
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf

from plug_jax.data.vocabularies.sentencepiece_training import train_sentencepiece
from plug_jax.data.vocabularies.vocabulary import (
    SPECIAL_PIECES,
    PlugVocabulary,
    SentencePieceVocabulary,
    WordPieceVocabulary,
    default_vocabulary,
)
from plug_jax.data.vocabularies.wordpiece import clean
from plug_jax.downstream.token_texts import character_ids, placed_tokens, token_ids


def surfaces(text: str, vocabulary: PlugVocabulary) -> list[tuple[str, str]]:
    placed = placed_tokens([text], vocabulary)[text]
    return [
        (vocabulary.id_to_piece(int(i)), text[start:end])
        for i, start, end in zip(placed.ids, placed.starts, placed.ends, strict=True)
    ]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> WordPieceVocabulary:
    pieces = [*SPECIAL_PIECES, "桥", "长", "九", "，", "ab", "##c", "2008", "a", "##a", "ca", "级"]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return WordPieceVocabulary(path)


def test_pieces_stand_where_the_text_has_them(small: WordPieceVocabulary) -> None:
    assert surfaces("桥长 ABC，2008", small) == [
        ("桥", "桥"),
        ("长", "长"),
        ("ab", "AB"),
        ("##c", "C"),
        ("，", "，"),
        ("2008", "2008"),
    ]


def test_accents_and_what_is_removed_do_not_shift_places(small: WordPieceVocabulary) -> None:
    assert surfaces("\u200b桥 Ça级", small) == [("桥", "桥"), ("ca", "Ça"), ("级", "级")]


def test_an_unknown_word_is_what_lies_between_its_neighbours(small: WordPieceVocabulary) -> None:
    assert surfaces("桥𠮷长 xyz，级", small) == [
        ("桥", "桥"),
        ("[UNK]", "𠮷"),
        ("长", "长"),
        ("[UNK]", "xyz"),
        ("，", "，"),
        ("级", "级"),
    ]
    assert surfaces("𠮷野", small) == [("[UNK]", "𠮷"), ("[UNK]", "野")]


def test_an_unknown_word_may_hold_a_known_one(small: WordPieceVocabulary) -> None:
    """A word is unknown as a whole; a known word within it is not a token."""
    assert surfaces("xyza a级", small) == [("[UNK]", "xyza"), ("a", "a"), ("级", "级")]
    assert surfaces("级qq aq ab", small) == [
        ("级", "级"),
        ("[UNK]", "qq"),
        ("[UNK]", "aq"),
        ("ab", "ab"),
    ]
    assert surfaces("a" * 101 + "级a", small)[:2] == [("[UNK]", "a" * 101), ("级", "级")]


def test_full_width_characters_keep_their_places() -> None:
    """BERT's vocabulary keeps full-width characters in lower case: they are not narrowed."""
    found = surfaces("ＡＢ　２００８年，Ａb Ⅷ", default_vocabulary())
    assert "".join(surface for _, surface in found) == "ＡＢ２００８年，ＡbⅧ"
    assert ("年", "年") in found and ("，", "，") in found


def test_letters_of_two_characters_and_none(small: WordPieceVocabulary) -> None:
    """Combining accents and removed characters are at no end of a token's span."""
    assert surfaces("c\u0327a\u0301 \ufeffa\u200db", small) == [
        ("ca", "c\u0327a"),
        ("ab", "a\u200db"),
    ]
    assert surfaces("", small) == surfaces(" \u200b\t", small) == []


def test_every_token_of_real_text_covers_its_own_characters() -> None:
    text = "北京时间2008年8月8日晚8时，第29届夏季奥林匹克运动会（Beijing 2008）在国家体育场开幕。"
    vocabulary = default_vocabulary()
    found = surfaces(text, vocabulary)
    assert "".join(surface for _, surface in found) == text.replace(" ", "")
    assert [piece.removeprefix("##") for piece, _ in found] == [s.lower() for _, s in found]


def test_sentencepiece_too(tmp_path: Path) -> None:
    texts = ["天气很好。我们去公园。公园很大。"] * 30
    vocabulary = train_sentencepiece(texts, directory=tmp_path, vocab_size=17, model_type="unigram")
    text = "我们 去公园。"
    assert "".join(surface for _, surface in surfaces(text, vocabulary)) == "我们去公园。"


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> PlugVocabulary:
    texts = ["天气很好。我们去公园。公园很大。abc fi 2008"] * 30
    directory = tmp_path_factory.mktemp("unigram")
    return train_sentencepiece(texts, directory=directory, vocab_size=26, model_type="unigram")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ａｂc公园 ２00８", "ａ ｂ c 公园 _ ２ 0 0 ８"),  # full width becomes narrow
        ("公\u200b园é 龘龘天  气", "公\u200b园 é _ 龘龘 天 _ 气"),  # é is not in it, nor 龘
        ("①天ﬁ公", "① 天 ﬁ ﬁ 公"),  # one character, two letters
        (" 天气 ", "天 气"),
    ],
)
def test_sentencepiece_of_normalised_text(
    text: str, expected: str, unigram: PlugVocabulary
) -> None:
    found = surfaces(text, unigram)
    assert [surface or "_" for _, surface in found] == expected.split(" ")
    assert [i for i in placed_tokens([text], unigram)[text].ids] == unigram.encode(text)


# Characters that vocabularies change, decompose, compose or drop: spacing and combining accents,
# half-width voicing marks, spaces and line ends of all kinds, controls, ligatures, full width,
# variation selectors, Hangul, Arabic, Indic vowels, marks of several bytes, compatibility forms.
ODD = (
    "´¨¸ ˝ﾟﾞカﾞハﾟｶﾞﾊﾟ\u2028\u2029\x85\x00\x07\x7f\ufffdﬁﬃＡｂ１，e\u0301\u0323\u0308éảİıßΣς"
    "☺\ufe0f✈\ufe0e👩\u200d👩\u200b\u200f\u00ad\ufeff\u3000\u00a0\t\n한각ﷺ①½㌀Ⅷ℃™เแก็क्षিি\u1b44\u1bab\u0345ͅΐẛ\u0323שּׁ𝒜"
    "𠮷\U000e0100▁豈\u302e\U0001d165\U0001d16d\u3099か\u3099"
)
NEIGHBOURS = "ab天公 ，9"


def odd_texts() -> list[str]:
    """Each of ODD alone, and in context."""
    draw = random.Random(0)
    texts = [text for c in ODD for text in (c, f"a{c}b", f"天{c}天", f"{c}{c} {c}")]
    lengths = range(1, 20)
    return texts + [
        "".join(draw.choice(draw.choice((ODD, NEIGHBOURS))) for _ in range(length))
        for length in lengths
        for _ in range(100)
    ]


@pytest.fixture(scope="module")
def nfkc(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceVocabulary:
    """SentencePiece's training defaults: NFKC, a space before texts; and byte fallback."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["天气很好。我们去公园。abc fi パン ガ 2008"] * 50),
        model_writer=model,
        vocab_size=300,
        byte_fallback=True,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece="[PAD]",
        unk_piece="[UNK]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        control_symbols=["[MASK]"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("nfkc") / "sentencepiece.model"
    path.write_bytes(model.getvalue())
    return SentencePieceVocabulary(path)


def test_tokens_of_words_are_slices_that_clean_to_their_pieces() -> None:
    vocabulary = default_vocabulary()
    for text, placed in placed_tokens(odd_texts(), vocabulary).items():
        assert placed.ids.tolist() == vocabulary.encode(text)
        assert (placed.starts < placed.ends).all() and (np.diff(placed.starts) >= 0).all(), text
        for i, start, end in zip(placed.ids, placed.starts, placed.ends, strict=True):
            ends = clean(tf.constant([text[start:end], text[start], text[end - 1]])).numpy()
            cleaned, *of_ends = (one.decode() for one in ends)
            piece = vocabulary.id_to_piece(int(i)).removeprefix("##")
            assert piece == "[UNK]" or piece in cleaned, (text, piece, cleaned)
            assert all(one.strip() for one in of_ends), (text, piece)  # neither removed nor a space


@pytest.mark.parametrize("name", ["unigram", "nfkc"])
def test_tokens_of_normalised_text_are_slices_that_hold_their_pieces(
    name: str, request: pytest.FixtureRequest
) -> None:
    vocabulary = request.getfixturevalue(name)
    for text, placed in placed_tokens(odd_texts(), vocabulary).items():
        assert placed.ids.tolist() == vocabulary.encode(text)
        assert (np.diff(placed.starts) >= 0).all(), text
        for i, start, end in zip(placed.ids, placed.starts, placed.ends, strict=True):
            piece = vocabulary.id_to_piece(int(i))
            if piece.strip("▁") == "":
                assert start == end
                continue
            assert 0 <= start < end <= len(text), (text, piece)
            within = vocabulary.normalise(text[start:end])
            if piece != "[UNK]" and not piece.startswith("<0x"):
                assert piece.strip("▁") in within, (text, piece, within)
            for at_end in (text[start], text[end - 1]):
                assert vocabulary.normalise(at_end).strip("▁"), (text, piece)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("´a", "´ a"),
        ("ﾊﾟン", "ﾊ ﾟ ン"),  # half-width marks are letters to BERT
        ("a\u2028b", "a b"),
        ("a\x07b\x00", "a\x07b"),
        ("한", "한 한 한"),
        ("e\u0301\u200bx天\ufe0f", "e\u0301\u200bx 天"),
    ],
)
def test_places_in_words(text: str, expected: str, tmp_path: Path) -> None:
    pieces = [*SPECIAL_PIECES, "´", "##a", "ﾊ", "##ﾟ", "##ン", "a", "b", "ab", "ex", "天"]
    pieces += [unicodedata.normalize("NFD", "한")[0]]
    pieces += [f"##{jamo}" for jamo in unicodedata.normalize("NFD", "한")[1:]]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    found = surfaces(text, WordPieceVocabulary(tmp_path / "vocab.txt"))
    assert [surface for _, surface in found] == expected.split(" ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ﾊﾟン", "_ ﾊﾟ ン"),  # composed
        ("ｶﾞ", "_ ｶﾞ"),
        ("ﬁ公", "_ ﬁ ﬁ 公"),
        ("天\u2028\u200b公", "_ 天 _ 公"),
        ("天𠮷", "_ 天 𠮷 𠮷 𠮷 𠮷"),  # its bytes
        ("¨天", "_ ¨ ¨ 天"),  # NFKC: a space and an accent of two bytes
    ],
)
def test_places_in_nfkc(text: str, expected: str, nfkc: SentencePieceVocabulary) -> None:
    assert [surface or "_" for _, surface in surfaces(text, nfkc)] == expected.split(" ")


def test_a_token_a_character(small: WordPieceVocabulary) -> None:
    known: dict[str, int] = {}
    ids = character_ids("桥 A，c", small, known)
    assert [small.id_to_piece(int(i)) for i in ids] == ["桥", "[UNK]", "a", "，", "[UNK]"]
    assert token_ids(["桥长"], small)["桥长"].tolist() == [5, 6]
