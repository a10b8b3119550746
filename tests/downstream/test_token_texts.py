"""Where tokens stand in the text that they came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from plug_jax.data.vocabularies import (
    SPECIAL_PIECES,
    PlugVocabulary,
    WordPieceVocabulary,
    default_vocabulary,
)
from plug_jax.data.vocabulary_training import train_sentencepiece
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
    """A word is unknown as a whole, so what it has within is no token."""
    assert surfaces("xyza a级", small) == [("[UNK]", "xyza"), ("a", "a"), ("级", "级")]
    assert surfaces("级qq aq ab", small) == [
        ("级", "级"),
        ("[UNK]", "qq"),
        ("[UNK]", "aq"),
        ("ab", "ab"),
    ]
    assert surfaces("a" * 101 + "级a", small)[:2] == [("[UNK]", "a" * 101), ("级", "级")]


def test_full_width_characters_keep_their_places() -> None:
    """BERT's vocabulary has them as they are, in lower case: they are not made narrow."""
    found = surfaces("ＡＢ　２００８年，Ａb Ⅷ", default_vocabulary())
    assert "".join(surface for _, surface in found) == "ＡＢ２００８年，ＡbⅧ"
    assert ("年", "年") in found and ("，", "，") in found


def test_letters_of_two_characters_and_none(small: WordPieceVocabulary) -> None:
    """Accents that stand apart, and what is removed: at no end of a token."""
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
        ("ａｂc公园 ２00８", "ａ ｂ c 公园 _ ２ 0 0 ８"),  # made narrow
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


def test_a_token_a_character(small: WordPieceVocabulary) -> None:
    known: dict[str, int] = {}
    ids = character_ids("桥 A，c", small, known)
    assert [small.id_to_piece(int(i)) for i in ids] == ["桥", "[UNK]", "a", "，", "[UNK]"]
    assert token_ids(["桥长"], small)["桥长"].tolist() == [5, 6]
