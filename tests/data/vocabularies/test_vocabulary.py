import concurrent.futures
import copy
import io
import os
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import sentencepiece
import seqio
import tensorflow as tf

from plug_jax.data.vocabularies.sentencepiece_training import train_sentencepiece
from plug_jax.data.vocabularies.vocabulary import (
    SPECIAL_PIECES,
    SentencePieceVocabulary,
    WordPieceVocabulary,
    load_vocabulary,
    save_vocabulary,
)
from plug_jax.data.vocabularies.wordpiece import WordPieces, clean, split_words
from plug_jax.errors import PlugError

# Not in BERT's order, so that no id can be guessed.
WORD_PIECES = [
    *("[PAD]", "[unused1]", "的", "[SEP]", "[unused2]", "[MASK]", "一", "是", "[CLS]", "，", "。"),
    *("[UNK]", "un", "##aff", "##able", "##a", "a", "b", "##b", "hello", "world", "cafe", "1"),
    *("##9", "##8", "2", ".", ",", "[", "]", "mask", "unk", "σ", "##ς", "ᄀ", "##ᅡ", "〇", "##〇"),
]
TRAINING_TEXT = [
    "你好，世界！一二三四五。",
    "hello world [] MASK 的一是",
    "今天天气很好，我们去公园。",
] * 3


@pytest.fixture(scope="module")
def word_piece(tmp_path_factory):
    path = tmp_path_factory.mktemp("word_piece") / "vocab.txt"
    path.write_text("\n".join(WORD_PIECES) + "\n", encoding="utf-8")
    return WordPieceVocabulary(path)


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sentence_piece")
    return train_sentencepiece(TRAINING_TEXT, directory=directory, vocab_size=42)


@pytest.fixture(params=["word_piece", "sentence_piece"])
def vocabulary(request):
    return request.getfixturevalue(request.param)


def write_vocab(directory, pieces):
    path = directory / "vocab.txt"
    path.write_text("\n".join(pieces), encoding="utf-8")
    return path


def reference_word_piece(text, pieces):
    """BERT's tokenizer, written from its description; ids of `text`."""
    ids = {piece: i for i, piece in enumerate(pieces)}

    def clean(char):
        category = unicodedata.category(char)
        if char in "\t\n\r" or category[0] == "Z":
            return " "
        return "" if category[0] == "C" or char == "\ufffd" else char

    def alone(char):
        is_symbol = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
        is_ideograph = unicodedata.name(char, "").startswith(("CJK UNIFIED", "CJK COMPATIBILITY I"))
        return is_symbol or is_ideograph or unicodedata.category(char)[0] == "P"

    text = unicodedata.normalize("NFD", "".join(map(clean, text)))
    # Character by character: a capital sigma is never lower-cased as a final one.
    text = "".join(c.lower() for c in text if unicodedata.category(c) != "Mn")
    result = []
    for word in "".join(f" {c} " if alone(c) else c for c in text).split():
        found, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in ids), None)
            if end is None or len(word) > 100:
                found = [ids["[UNK]"]]
                break
            found.append(ids[prefix + word[start:end]])
            start = end
        result += found
    return result


# --- both classes


def test_special_ids_follow_the_text_of_the_pieces(vocabulary):
    ids = [getattr(vocabulary, f"{name}_id") for name in ("pad", "unk", "cls", "sep", "mask")]
    assert [vocabulary.id_to_piece(i) for i in ids] == list(SPECIAL_PIECES)
    assert (vocabulary.bos_id, vocabulary.eos_id) == (vocabulary.cls_id, vocabulary.sep_id)
    assert set(ids) <= set(vocabulary.special_ids)
    assert list(vocabulary.special_ids) == sorted(vocabulary.special_ids)


def test_every_id_is_either_special_or_regular(vocabulary):
    assert vocabulary.regular_ids.dtype == np.int32
    both = sorted([*vocabulary.special_ids, *vocabulary.regular_ids])
    assert both == list(range(vocabulary.vocab_size))


@pytest.mark.parametrize("special", SPECIAL_PIECES)
def test_text_that_spells_a_special_piece_is_ordinary_text(vocabulary, special):
    special_ids = set(vocabulary.special_ids) - {vocabulary.unk_id}
    for text in (special, f"一{special}的", f" {special} {special}", special.lower()):
        ids = vocabulary.encode(text)
        assert ids
        assert not special_ids & set(ids), text


def test_scalars_and_vectors_and_python_agree(vocabulary):
    texts = ["", "的", "unaffable", "一是 hello, world", " ", "龘", "", "今天 caFÉ"]
    ragged = vocabulary.encode_tf(tf.constant(texts))
    assert ragged.dtype == tf.int32
    assert ragged.shape.as_list() == [len(texts), None]
    for text, ids in zip(texts, ragged.to_list(), strict=True):
        scalar = vocabulary.encode_tf(tf.constant(text))
        assert scalar.dtype == tf.int32
        assert scalar.shape.rank == 1
        assert scalar.numpy().tolist() == ids
        assert vocabulary.encode(text) == ids
    assert ragged[0].shape == (0,)
    assert len(ragged[1]) == 1


def test_bytes_that_were_no_text_are_refused(vocabulary):
    with pytest.raises(PlugError, match=r"'天.udcc4' is not valid Unicode"):
        vocabulary.encode("天\udcc4")


def test_a_vector_of_no_strings(vocabulary):
    ids = vocabulary.encode_tf(tf.constant([], tf.string))
    assert ids.to_list() == []
    assert ids.dtype == tf.int32


def test_other_ranks_are_refused(vocabulary):
    with pytest.raises(ValueError, match="shape"):
        vocabulary.encode_tf(tf.constant([["a"]]))


def test_unknown_characters_become_unk(vocabulary):
    assert vocabulary.encode("龘") == [vocabulary.unk_id]
    ids = vocabulary.encode("一龘的")
    assert ids[1] == vocabulary.unk_id
    assert vocabulary.unk_id not in (ids[0], ids[2])
    assert len(ids) == 3


def test_decode_drops_special_pieces_and_keeps_unk(vocabulary):
    one, of = vocabulary.encode("一的")
    ids = [vocabulary.cls_id, one, vocabulary.sep_id, vocabulary.mask_id, of, vocabulary.unk_id]
    ids += [vocabulary.sep_id, one, vocabulary.pad_id, 0]
    assert vocabulary.decode(ids) == "一的[UNK]一"
    assert vocabulary.decode(np.array(ids)) == "一的[UNK]一"
    assert vocabulary.decode(tf.constant(ids)) == "一的[UNK]一"


def test_decode_reads_ids_out_of_range_as_unk(vocabulary):
    (one,) = vocabulary.encode("一")
    assert vocabulary.decode([one, vocabulary.vocab_size, one, -1]) == "一[UNK]一[UNK]"
    assert vocabulary.decode([]) == ""


def test_decode_tf_decodes_each_row(vocabulary):
    one, of = vocabulary.encode("一的")
    rows = tf.constant([[one, of, 0], [vocabulary.cls_id, of, vocabulary.sep_id]])
    assert [text.decode() for text in vocabulary.decode_tf(rows).numpy()] == ["一的", "的"]
    assert vocabulary.decode_tf(rows[0]).numpy().decode() == "一的"
    decoded = tf.data.Dataset.from_tensors(rows).map(vocabulary.decode_tf)
    assert decoded.element_spec == tf.TensorSpec([2], tf.string)


def test_id_to_piece_refuses_other_ids(vocabulary):
    for token_id in (-1, vocabulary.vocab_size):
        with pytest.raises(PlugError, match=str(token_id)):
            vocabulary.id_to_piece(token_id)


def test_equal_content_makes_equal_vocabularies(vocabulary, tmp_path):
    save_vocabulary(vocabulary, tmp_path / "copy")
    copied = load_vocabulary(tmp_path / "copy")
    assert type(copied) is type(vocabulary)
    assert copied == vocabulary
    assert hash(copied) == hash(vocabulary)
    assert seqio.Feature(vocabulary=copied) == seqio.Feature(vocabulary=vocabulary)


def test_different_vocabularies_differ(word_piece, sentence_piece, tmp_path):
    other = WordPieceVocabulary(write_vocab(tmp_path, [*WORD_PIECES, "more"]))
    assert word_piece != other
    assert word_piece != sentence_piece
    assert word_piece != "vocab.txt"


def test_copies_by_gin_and_beam_still_encode(vocabulary):
    for copied in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
        assert copied == vocabulary
        assert copied.encode("一是的 hello") == vocabulary.encode("一是的 hello")


def test_usable_in_parallel_dataset_functions(vocabulary):
    texts = [f"一{'是的' * (i % 7)} hello world{i}" for i in range(200)]
    dataset = tf.data.Dataset.from_tensor_slices(texts)
    dataset = dataset.map(vocabulary.encode_tf, num_parallel_calls=8)
    assert dataset.element_spec == tf.TensorSpec([None], tf.int32)
    expected = vocabulary.encode_tf(tf.constant(texts)).to_list()
    assert [ids.tolist() for ids in dataset.as_numpy_iterator()] == expected


def test_usable_from_several_threads(vocabulary):
    texts = [f"一是{i} hello" for i in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(vocabulary.encode, texts))
        decoded = list(pool.map(vocabulary.decode, threaded))
    assert threaded == vocabulary.encode_tf(tf.constant(texts)).to_list()
    assert decoded == [vocabulary.decode(ids) for ids in threaded]


def test_can_be_loaded_while_a_graph_is_built(vocabulary, tmp_path):
    save_vocabulary(vocabulary, tmp_path)
    loaded = []

    def encode(text):
        loaded.append(load_vocabulary(tmp_path))
        assert loaded[-1].encode("一的") == vocabulary.encode("一的")
        return loaded[-1].encode_tf(text)

    dataset = tf.data.Dataset.from_tensors("一是的").map(encode)
    for _ in range(2):
        assert [ids.tolist() for ids in dataset.as_numpy_iterator()] == [
            vocabulary.encode("一是的")
        ]
    assert loaded[0].encode("一") == vocabulary.encode("一")


def test_tokenize_of_seqio_uses_it(vocabulary):
    dataset = tf.data.Dataset.from_tensors({"targets": "一的"})
    features = {"targets": seqio.Feature(vocabulary=vocabulary)}
    dataset = seqio.preprocessors.tokenize_and_append_eos(dataset, output_features=features)
    (example,) = dataset.as_numpy_iterator()
    assert example["targets"].tolist() == [*vocabulary.encode("一的"), vocabulary.sep_id]


# --- WordPiece


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("unaffable", ["un", "##aff", "##able"]),
        ("UNAFFABLE的", ["un", "##aff", "##able", "的"]),
        ("198 〇〇", ["1", "##9", "##8", "〇", "##〇"]),
        ("Hello,world", ["hello", ",", "world"]),
        ("\u3000一\u3000a\u00a0b", ["一", "a", "b"]),  # the spaces of Chinese typesetting
        ("a\u200bb\x00\ufeff", ["a", "##b"]),
        ("café", ["cafe"]),
        ("a" * 100, ["a"] + ["##a"] * 99),
        ("a" * 101 + " b", ["[UNK]", "b"]),
        ("一" + "\u3007" * 100 + "b一", ["一", "[UNK]", "一"]),
        ("一" + "\u3007" * 100 + "一", ["一", "\u3007", *["##\u3007"] * 99, "一"]),
        ("Á" * 100 + "，" + "Á" * 101, ["a", *["##a"] * 99, "，", "[UNK]"]),
        ("aΣ aΣ", ["[UNK]", "[UNK]"]),  # "##ς" is a piece, "##σ" is none
        ("Σ", ["σ"]),
        ("unaffablex 一", ["[UNK]", "一"]),
    ],
)
def test_word_pieces(word_piece, text, pieces):
    assert [word_piece.id_to_piece(i) for i in word_piece.encode(text)] == pieces
    assert reference_word_piece(text, WORD_PIECES) == word_piece.encode(text)


alphabet = st.one_of(
    st.sampled_from("的一是，。ab un hello 189〇.[]\u3000\t\n\x00\u00adÉßΣİ가豈㎡①ｱ＃😀\ue000"),
    # Their category changed after Unicode 3.2: BERT's tables are old.
    st.characters(exclude_categories=["Cs", "Cn"], max_codepoint=0xFFFF).filter(
        lambda c: unicodedata.category(c) == unicodedata.ucd_3_2_0.category(c)
    ),
)


@hypothesis.given(st.lists(st.text(alphabet, max_size=12), min_size=1, max_size=20))
@hypothesis.settings(max_examples=60, deadline=None)
def test_word_pieces_match_the_reference(word_piece, texts):
    expected = [reference_word_piece(text, WORD_PIECES) for text in texts]
    assert word_piece.encode_tf(tf.constant(texts)).to_list() == expected


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("一是 的，hello", "一是的，hello"),
        ("Hello  world", "hello world"),
        ("unaffable hello", "unaffable hello"),
        ("hello 一 hello", "hello一hello"),
        ("hello, world", "hello,world"),
        ("198.2", "198.2"),
        ("[MASK]", "[mask]"),
    ],
)
def test_decode_joins_pieces(word_piece, text, decoded):
    assert word_piece.decode(word_piece.encode(text)) == decoded


def test_decode_of_a_leading_continuation(word_piece):
    assert word_piece.decode([WORD_PIECES.index("##able"), WORD_PIECES.index("a")]) == "able a"


def test_a_text_is_encoded_alike_whatever_is_beside_it(word_piece):
    texts = ["一是的，hello", "Ünaffable", "一\u200b是", "a" * 101, "é" * 101, "", "HELLO\u2e4f的"]
    ragged = word_piece.encode_tf(tf.constant(texts))
    assert ragged.to_list() == [word_piece.encode(text) for text in texts]


def test_letters_to_bert_that_later_unicode_calls_punctuation(tmp_path):
    pieces = [*SPECIAL_PIECES, "a", "##\u2e4f", "##b", "b", "\u2e52", "\U000f0000"]
    vocabulary = WordPieceVocabulary(write_vocab(tmp_path, pieces))

    def encode(text):
        return [vocabulary.id_to_piece(i) for i in vocabulary.encode(text)]

    assert encode("a\u2e4fb") == ["a", "##\u2e4f", "##b"]
    assert encode("a\u2e52b \u2e52 \u2e4f") == ["[UNK]", "\u2e52", "[UNK]"]
    assert encode("a\u2e53b\U0002b820 \U0002b820 a\U000f0000") == ["[UNK]", "[UNK]", "a"]


def test_clean_words_and_pieces_of_the_docstrings():
    cleaned = clean(tf.constant(["Ça\u200b，İ"]))
    assert cleaned.numpy()[0].decode() == "ca，i"
    words = split_words(tf.constant(["ab，3天"])).to_list()
    assert [word.decode() for word in words[0]] == ["ab", "，", "3", "天"]
    word_pieces = WordPieces(["[PAD]", "[UNK]", "天", "play", "##ed"], "[UNK]")
    assert word_pieces(tf.constant(["Played天靐"])).to_list() == [[3, 4, 2, 1]]


def test_the_users_language_changes_nothing():
    code = (
        "import tensorflow as tf\n"
        "from plug_jax.data.vocabularies.wordpiece import TextRules, clean\n"
        "for rules in TextRules(), TextRules(strip_accents=False):\n"
        "  text = clean(tf.constant(['I\\u0130 \\u00cc\\u212a']), rules).numpy()[0].decode()\n"
        "  print(ascii(text))"
    )
    environment = {**os.environ, "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}
    root = Path(__file__).resolve().parents[3]
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "'ii ik'\n'ii\\u0307 \\xeck'\n"


def test_unused_pieces_are_never_drawn(word_piece):
    unused = {WORD_PIECES.index("[unused1]"), WORD_PIECES.index("[unused2]")}
    assert unused < set(word_piece.special_ids)
    assert len(word_piece.special_ids) == 7


@pytest.mark.parametrize("missing", SPECIAL_PIECES)
def test_a_vocab_file_without_a_special_piece(tmp_path, missing):
    path = write_vocab(tmp_path, [piece for piece in WORD_PIECES if piece != missing])
    with pytest.raises(PlugError, match=rf"vocab\.txt lacks \[{missing[1:-1]}\];"):
        WordPieceVocabulary(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "vocab.txt is empty"),
        ("\n".join(["a", *WORD_PIECES]).encode(), r"vocab.txt has '?a'? twice, on lines 1 and 18"),
        (
            "\n".join([*WORD_PIECES[1:], "[PAD]"]).encode(),
            r"\[PAD\] at id 37; it must be the first",
        ),
        (b"[PAD]\n\n[UNK]", "vocab.txt has no piece on line 2"),
        ("\n".join(WORD_PIECES).encode("gbk", "ignore"), "vocab.txt is not UTF-8"),
        ("\n".join(SPECIAL_PIECES).encode(), "nothing but special pieces"),
    ],
)
def test_bad_vocab_files(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(PlugError, match=message):
        WordPieceVocabulary(path)


def test_line_ends_of_other_systems_and_odd_pieces(tmp_path):
    path = tmp_path / "vocab.txt"
    pieces = [*SPECIAL_PIECES, "\u2028", "的", "##"]
    path.write_bytes("\r\n".join(pieces).encode("utf-8-sig") + b"\r\n\r\n")
    vocabulary = WordPieceVocabulary(path)
    assert [vocabulary.id_to_piece(i) for i in range(vocabulary.vocab_size)] == pieces
    assert vocabulary.encode("的") == [6]
    assert vocabulary.decode([6, 7]) == "的##"


# --- SentencePiece


def train_directly(**options):
    """A model trained by sentencepiece itself; options override those of `train_sentencepiece`."""
    model = io.BytesIO()
    settings = dict(vocab_size=30, model_type="char", pad_id=0, unk_id=1, bos_id=2, eos_id=3)
    names = dict(pad_piece="[PAD]", unk_piece="[UNK]", bos_piece="[CLS]", eos_piece="[SEP]")
    settings |= names | dict(control_symbols=["[MASK]"], minloglevel=2) | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT), model_writer=model, **settings
    )
    return model.getvalue()


def test_ids_of_the_special_pieces(sentence_piece):
    assert sentence_piece.special_ids == (0, 1, 2, 3, 4)
    assert [sentence_piece.id_to_piece(i) for i in range(5)] == list(SPECIAL_PIECES)
    assert sentence_piece.encode("一的") == sentence_piece.encode(" 一的 ")  # no dummy prefix


def test_encode_is_that_of_the_sentencepiece_library(sentence_piece):
    content = sentence_piece.files["sentencepiece.model"]
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    for text in ["你好，世界！", "hello world 龘靐龘", "", "　[MASK]\n一\x00"]:
        assert sentence_piece.encode(text) == processor.EncodeAsIds(text)


def test_a_run_of_unknown_characters_is_one_unk(sentence_piece):
    assert sentence_piece.encode("龘靐").count(sentence_piece.unk_id) == 1


def test_chinese_text_comes_back(sentence_piece):
    for text in TRAINING_TEXT:
        assert sentence_piece.decode(sentence_piece.encode(text)) == text


def test_other_control_symbols_are_special(tmp_path):
    path = tmp_path / "a.model"
    path.write_bytes(train_directly(control_symbols=["[MASK]", "[X]"]))
    vocabulary = SentencePieceVocabulary(path)
    assert "[X]" in [vocabulary.id_to_piece(i) for i in vocabulary.special_ids]


def test_unk_reads_as_the_models_own_surface(tmp_path):
    path = tmp_path / "a.model"
    path.write_bytes(train_directly(unk_surface="<?>"))
    vocabulary = SentencePieceVocabulary(path)
    assert vocabulary.decode([vocabulary.unk_id]) == "<?>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(control_symbols=[]), r"a\.model lacks \[MASK\];"),
        (dict(pad_id=-1, unk_id=0, bos_id=1, eos_id=2), r"a\.model lacks \[PAD\];"),
        (dict(pad_id=3, eos_id=0), r"a\.model has \[PAD\] at id 3"),
        (dict(control_symbols=[], user_defined_symbols=["[MASK]"]), r"a\.model encodes the text"),
        (dict(unk_piece="<unk>", control_symbols=["[UNK]", "[MASK]"]), "<unk>, not"),
    ],
)
def test_models_that_do_not_fit(tmp_path, options, message):
    path = tmp_path / "a.model"
    path.write_bytes(train_directly(**options))
    with pytest.raises(PlugError, match=message):
        SentencePieceVocabulary(path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\n\x05\n\x01a\x15\x00"])
def test_files_that_are_no_model(tmp_path, content):
    path = tmp_path / "a.model"
    path.write_bytes(content)
    with pytest.raises(PlugError, match=r"a\.model"):
        SentencePieceVocabulary(path)


def test_a_truncated_model(tmp_path, sentence_piece):
    path = tmp_path / "a.model"
    path.write_bytes(sentence_piece.files["sentencepiece.model"][:-100])
    with pytest.raises(PlugError, match=r"a\.model"):
        SentencePieceVocabulary(path)


# --- loading


@pytest.mark.parametrize("cls", [WordPieceVocabulary, SentencePieceVocabulary])
def test_missing_files(tmp_path, cls):
    with pytest.raises(PlugError, match="nowhere"):
        cls(tmp_path / "nowhere" / cls.FILE_NAME)


def test_load_takes_files_and_directories(vocabulary, tmp_path):
    save_vocabulary(vocabulary, tmp_path / "new" / "directory")
    directory = tmp_path / "new" / "directory"
    assert load_vocabulary(directory) == vocabulary
    assert load_vocabulary(str(directory / vocabulary.FILE_NAME)) == vocabulary


def test_load_says_what_it_cannot_take(word_piece, sentence_piece, tmp_path):
    with pytest.raises(PlugError, match=r"holds none of sentencepiece\.model, vocab\.txt and tok"):
        load_vocabulary(tmp_path)
    save_vocabulary(word_piece, tmp_path)
    save_vocabulary(sentence_piece, tmp_path)
    with pytest.raises(PlugError, match="holds both"):
        load_vocabulary(tmp_path)
    with pytest.raises(PlugError, match=r"no vocabulary .*vocab\.json'"):
        load_vocabulary(tmp_path / "vocab.json")
    (tmp_path / "vocab.json").touch()
    with pytest.raises(PlugError, match=r"vocab\.json is not a vocabulary"):
        load_vocabulary(tmp_path / "vocab.json")
