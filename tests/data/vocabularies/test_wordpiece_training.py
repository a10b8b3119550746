from pathlib import Path

import pytest
import tensorflow as tf

import plug_jax.data
from plug_jax.data.vocabularies import wordpiece_training
from plug_jax.data.vocabularies.vocabulary import (
    SPECIAL_PIECES,
    default_vocabulary,
    load_vocabulary,
)
from plug_jax.data.vocabularies.wordpiece_training import (
    DEFAULT_SIZE,
    base_pieces,
    default_pieces,
    train_wordpiece,
    write_default_wordpiece,
)
from plug_jax.errors import PlugError

BASE_SIZE = len(base_pieces())


def pieces_of(vocabulary):
    return [vocabulary.id_to_piece(i) for i in range(vocabulary.vocab_size)]


def encode(vocabulary, text):
    return [vocabulary.id_to_piece(i) for i in vocabulary.encode(text)]


def unreachable(vocabulary):
    """The regular pieces to which none of a few texts, made for each, encodes."""
    missing = {int(i) for i in vocabulary.regular_ids}
    before = ["", "a", "7", "z", "〇", "я"]
    for start in before:
        ids = sorted(missing)
        pieces = [vocabulary.id_to_piece(i) for i in ids]
        texts = [
            start + piece[2:] if piece.startswith("##") and len(piece) > 2 else piece
            for piece in pieces
        ]
        encoded = vocabulary.encode_tf(tf.constant(texts, tf.string)).to_list()
        missing -= {i for i, found in zip(ids, encoded, strict=True) if i in found}
    return sorted(vocabulary.id_to_piece(i) for i in missing)


# --- the default vocabulary


def test_the_committed_file_is_what_the_code_makes(tmp_path):
    write_default_wordpiece(tmp_path)
    committed = Path(plug_jax.data.__file__).parent / "vocabularies" / "chinese_vocab.txt"
    assert (tmp_path / "vocab.txt").read_bytes() == committed.read_bytes()


def test_layout():
    vocabulary = default_vocabulary()
    pieces = pieces_of(vocabulary)
    assert vocabulary is default_vocabulary()
    assert pieces == default_pieces()
    assert len(pieces) == DEFAULT_SIZE == 21_128
    assert pieces[:5] == list(SPECIAL_PIECES)
    ideographs = [chr(code) for code in range(0x4E00, 0x9FA6)]
    assert len(ideographs) == 20_902
    first = pieces.index("一")
    assert pieces[first : first + 20_902] == ideographs
    unused = pieces[first + 20_902 :]
    assert unused == [f"[unused{i}]" for i in range(1, len(unused) + 1)]
    assert len(unused) >= 10


def test_every_piece_is_reachable():
    assert unreachable(default_vocabulary()) == []


def test_chinese_text_with_the_default_vocabulary():
    vocabulary = default_vocabulary()
    text = "“二〇〇八年”，GDP增长9.6％：３～5℃（约￥1,200）……《人民日报》"
    ids = vocabulary.encode(text)
    assert vocabulary.unk_id not in ids
    assert vocabulary.decode(ids) == text.lower()


# --- training


TEXTS = [
    "Hello你好 helpful helping helped" * 3,
    "привет мир㐂㐂 hello",
    "①㐀㐀㐀㐀；你好ÄÖ",
] * 10


def test_learns_characters_and_words(tmp_path):
    trained = train_wordpiece(TEXTS, directory=tmp_path, vocab_size=BASE_SIZE + 60)
    pieces = pieces_of(trained)
    assert load_vocabulary(tmp_path) == trained
    assert pieces[:BASE_SIZE] == base_pieces()
    assert len(set(pieces)) == len(pieces) == BASE_SIZE + 60
    assert pieces[BASE_SIZE : BASE_SIZE + 2] == ["㐀", "㐂"]  # the more frequent one first
    assert "##㐀" not in pieces
    assert encode(trained, "Hello мир㐀") == ["hello", "мир", "㐀"]
    assert pieces[-1].startswith("[unused")
    assert unreachable(trained) == []


def test_the_same_text_gives_the_same_file(tmp_path):
    for name in ("a", "b"):
        texts = TEXTS if name == "a" else list(reversed(TEXTS))
        train_wordpiece(iter(texts), directory=tmp_path / name, vocab_size=BASE_SIZE + 30)
    files = [tmp_path / name / "vocab.txt" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_little_room_is_filled_and_never_exceeded(tmp_path):
    words = [f"{a}{b}word" for a in "bcdfgh" for b in "klmnpqrstvwxz"] * 12
    for room in (0, 1, 7, 50):
        trained = train_wordpiece(
            words, directory=tmp_path, vocab_size=BASE_SIZE + room, overwrite=True
        )
        pieces = pieces_of(trained)
        assert len(pieces) == BASE_SIZE + room
        assert not [piece for piece in pieces if piece.startswith("[unused")]
        assert unreachable(trained) == []


def test_rare_words_are_no_pieces(tmp_path):
    texts = ["often " * 10, "seldom " * 9, "㐀" * 9, "㐂" * 10]
    trained = train_wordpiece(texts, directory=tmp_path, vocab_size=BASE_SIZE + 40)
    pieces = set(pieces_of(trained))
    assert {"often", "㐂"} <= pieces
    assert not {"seldom", "㐀"} & pieces


def test_rare_characters_leave_room_for_words(tmp_path):
    texts = ["".join(chr(0x3400 + i) for i in range(100)) * 10, "word " * 10]
    trained = train_wordpiece(texts, directory=tmp_path, vocab_size=BASE_SIZE + 40)
    pieces = pieces_of(trained)[BASE_SIZE:]
    assert sum("\u3400" <= piece[0] < "\u4e00" for piece in pieces) == 10
    assert "word" in pieces


def test_counting_is_bounded(tmp_path, monkeypatch):
    sizes = []
    most_common = wordpiece_training.Counter.most_common

    def spy(counter, number=None):
        sizes.append((len(counter), number))
        return most_common(counter, number)

    monkeypatch.setattr(wordpiece_training, "_MAX_COUNTED", 50)
    monkeypatch.setattr(wordpiece_training.Counter, "most_common", spy)
    words = (f"frequent w{i}x" for i in range(2_000))
    trained = train_wordpiece(words, directory=tmp_path, vocab_size=BASE_SIZE + 20)
    assert len(sizes) > 5
    assert max(size for size, _ in sizes) <= 100 + 64
    assert "frequent" in pieces_of(trained)


def test_no_text_gives_the_default(tmp_path):
    for texts in ([], [""], ["你好，123"]):
        trained = train_wordpiece(texts, directory=tmp_path, overwrite=True)
        assert trained == default_vocabulary()


def test_mistakes(tmp_path):
    with pytest.raises(PlugError, match=f"of 8000 has no room for the {BASE_SIZE}"):
        train_wordpiece(TEXTS, directory=tmp_path, vocab_size=8000)
    assert not (tmp_path / "vocab.txt").exists()
    write_default_wordpiece(tmp_path)
    for make in (train_wordpiece, lambda _, **options: write_default_wordpiece(**options)):
        with pytest.raises(PlugError, match=r"vocab\.txt exists"):
            make(TEXTS, directory=tmp_path)
    write_default_wordpiece(tmp_path, overwrite=True)


def test_files_of_another_tokenizer_are_not_mixed_with(tmp_path):
    """They would apply to the new pieces; `overwrite` replaces them by the training's own."""
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(PlugError, match=r"tokenizer_config\.json exists"):
        train_wordpiece(TEXTS, directory=tmp_path)
    write_default_wordpiece(tmp_path, overwrite=True)
    assert load_vocabulary(tmp_path) == default_vocabulary()
