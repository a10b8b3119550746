"""WordPieceVocabulary against Hugging Face's BertTokenizer, over all of Unicode."""

import itertools
import json
import random

import numpy as np
import pytest
import tensorflow as tf

from plug_jax.data.vocabularies.vocabulary import (
    SPECIAL_PIECES,
    WordPieceVocabulary,
    default_vocabulary,
)
from plug_jax.data.vocabularies.wordpiece import joined_characters

pytestmark = pytest.mark.parity

CODE_POINTS = [*range(0xD800), *range(0xE000, 0x110000)]

# Known differences, given a vocabulary with pieces for both forms; for any other vocabulary, all
# of these are letters without a piece.
#
# tf.strings.lower does not lower-case these letters: scripts and letters of Unicode 14 to 17.
WITHOUT_LOWER_CASE = {
    *(0x1C89, 0x2C2F, 0xA7C0, 0xA7CB, 0xA7CC, 0xA7CE, 0xA7D0, 0xA7D2, 0xA7D4, 0xA7D6, 0xA7D8),
    *(0xA7DA, 0xA7DC),
    *(set(range(0x10570, 0x10596)) - {0x1057B, 0x1058B, 0x10593}),  # Vithkuqi
    *range(0x10D50, 0x10D66),  # Garay
    *range(0x16EA0, 0x16EB9),  # Beria Erfe
}
# tf_text.normalize_utf8 decomposes these, Hugging Face's older NFD does not: Unicode 13 and 16.
TAKEN_APART = {
    *(0x105C9, 0x105E4, 0x11383, 0x11385, 0x1138E, 0x11391, 0x113C5, 0x113C7, 0x113C8, 0x11938),
    *range(0x16121, 0x16129),
    *range(0x16D68, 0x16D6B),
}

# Letters to BERT that later Unicode calls punctuation, or beyond its range of ideographs.
JOINED = "\u2e4f\u2e52\u061d\U0002b820\U0002b91f"

CHARACTERS = [
    "的一是中国人民，。！？、；：“”‘’（）《》【】…—·～￥",
    "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "éÉèêñÅÅåöüßẞİıſÐðŁłΣσςΆάΰᾳᾼЙйЁёĲǅﬁ",
    "\u0300\u0301\u0308\u0327\u0328\u20d0\u20dd\u3099\u302a\u302e\u0e31\u0e33\u094d\u0903",
    " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\u00a0\u1680\u180e\u2000\u2007\u200a\u2028\u2029\u202f\u205f　",
    "\x00\x01\x7f\x80\u00ad\u0600\u061c\u200b\u200c\u200d\u200e\u202e\u2060\u2066\ufeff\ufff9\ufffd",
    "\ufffe\uffff\u0378\U0001fffe\U0010ffff\ue000\uf8ff\U000f0000\U00100000\U000e0001\U000e0041",
    "😀👩👨🏽🇨🇳🇺🇸☺️✈️❤🏳🌈\u200d\ufe0f\U0001f3fb",
    "㐀䶵龥鿿豈艹\U00020000\U0002a6df\U0002a700\U0002b740\U0002b81f\U0002b820\U0002b920\U0002ceb0",
    "\U0002ebf0\U0002ebe0\U00030000\U00031350\U000323af\U0002f800\U0002fa1f\U00017000\U0001b170",
    "가각힣각ㄱ한글あアｱがガー々〇〻〆①⑴㈠㎡Ⅷⅷ℃№™½²",
    "ابتةأإآؤ٠١٢،؟กขคงเแไ่้๐๑አበगक्षि",
    "𝐀𝒜𝔸𝟘𝟙ＡＺａｚ０９！＂＃＄￠＋＜｜𐐀𐐨𞤀ᏣꭰᲐა≠≮⁄ˆ˜´`¨^\u037e\u0387\u1fef",
    "\u166d\U000111c9" + JOINED,
]
SPELT = ["[MASK]", "[mask]", "[CLS]", "[PAD]", "[UNK]", "[unused1]", "##a", "##", "[MASK", "MASK]"]


def as_arrays(batches):
    """Ids and lengths of lists of ids."""
    lengths = np.array([len(ids) for ids in batches])
    return np.concatenate([np.array(ids, np.int32) for ids in batches]), lengths


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Make both tokenizers from a list of pieces."""

    def make(pieces, **rules):
        from transformers import BertTokenizer

        path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
        path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
        (path.parent / "tokenizer_config.json").write_text(json.dumps(rules))
        theirs = BertTokenizer(vocab=str(path), **rules)
        # Ours never parses special tokens in text; theirs does by default.
        theirs.backend_tokenizer.encode_special_tokens = True
        return WordPieceVocabulary(path), theirs

    return make


def differences(tokenizers, texts):
    """Indices of the texts that the two encode differently."""
    ours, theirs = tokenizers
    encode = tf.function(ours.encode_tf, input_signature=[tf.TensorSpec([None], tf.string)])
    found = []
    for start in range(0, len(texts), 4096):
        batch = texts[start : start + 4096]
        encodings = theirs.backend_tokenizer.encode_batch(batch, add_special_tokens=False)
        ids, lengths = as_arrays([encoding.ids for encoding in encodings])
        ragged = encode(tf.constant(batch))
        if np.array_equal(ragged.row_lengths().numpy(), lengths) and np.array_equal(
            ragged.flat_values.numpy(), ids
        ):
            continue
        pairs = zip(ragged.to_list(), encodings, strict=True)
        found += [start + i for i, (mine, other) in enumerate(pairs) if mine != other.ids]
    return found


@pytest.fixture(scope="module")
def every_character(make):
    """A vocabulary of nearly every character that cleaned text can contain."""
    from transformers import BertTokenizer

    normalizer = BertTokenizer().backend_tokenizer.normalizer
    found = set()
    for code in CODE_POINTS:
        if not 0xAC00 <= code <= 0xD7A3 and code < 0x32000:  # above, nothing is assigned
            found.update(normalizer.normalize_str(chr(code)))
    found -= {*" \t\n\r", "\x85"}
    # Each joined character that is a piece costs a pass over the text; a few suffice.
    found = sorted(found - joined_characters() | set(JOINED))
    return make([*SPECIAL_PIECES, *found, *("##" + char for char in found)])


def test_every_code_point(every_character):
    texts = [f"a{chr(code)}b中{chr(code)}" for code in CODE_POINTS]
    different = {CODE_POINTS[i] for i in differences(every_character, texts)}
    assert different == WITHOUT_LOWER_CASE | TAKEN_APART


def random_texts(count, seed):
    rng = random.Random(seed)
    anything = [chr(code) for code in CODE_POINTS if code not in WITHOUT_LOWER_CASE | TAKEN_APART]
    for _ in range(count):
        mix = rng.sample(CHARACTERS, rng.randint(1, 4))
        length = rng.choice([1, 3, 10, 30, 120, 300])
        parts = []
        for _ in range(rng.randint(0, length)):
            kind = rng.random()
            if kind < 0.02:
                parts.append(rng.choice(SPELT))
            elif kind < 0.04:
                parts.append(rng.choice(anything))
            elif kind < 0.045:
                parts.append(rng.choice("aé中𐐨😀กａ") * rng.randint(95, 105))
            elif kind < 0.5:
                parts.append(rng.choice(CHARACTERS[1]))
            else:
                parts.append(rng.choice(rng.choice(mix)))
        yield "".join(parts)


def test_random_strings(every_character):
    texts = list(random_texts(12_000, seed=0))
    assert [texts[i] for i in differences(every_character, texts)] == []


def test_random_strings_with_odd_pieces(make):
    """Pieces that BERT's splitting never reaches, and overlapping words."""
    pieces = [
        *SPECIAL_PIECES,
        "[unused1]",
        "##",
        "中国",
        "##中",
        "##，",
        "a,b",
        "a，",
        "##a,",
        "[mask]",
    ]
    pieces += ["A", "É", "é", "##é", "ab", "abc", "##bc", "##cd", "abcde", "##e", "a1", "##1", "1"]
    pieces += [
        *"abcdexyz中国，。[],-",
        "mask",
        "##sk",
        "ma",
        "unk",
        "σ",
        "##σ",
        "ς",
        "##ς",
        "ß",
        "##ß",
    ]
    pieces += ["##a", "##b", "##x", "\u2e4f", "a\u2e4f", "##\u2e4f", "\U0002b820", "##\U0002b820b"]
    pieces += ["a" * 50, "##" + "a" * 50, "a" * 101, "i", "##i", "ı", "\ue000", "\U000f0000", "中a"]
    texts = list(random_texts(6_000, seed=1))
    rng = random.Random(2)
    spelt = [piece.removeprefix("##") for piece in pieces] + [" ", "A", "，", "\u2e4f"]
    texts += ["".join(rng.choices(spelt, k=rng.randint(1, 12))) for _ in range(6_000)]
    assert [texts[i] for i in differences(make(pieces), texts)] == []


def test_words_at_the_limit(make):
    tokenizers = make([*SPECIAL_PIECES, "a", "##a", "中", "##😀", "é"])
    texts = [
        f"{before}{char * count}{after}"
        for char in ("a", "A", "😀", "a\u0301", "a\u200b", "é", "ก")
        for count in (99, 100, 101, 134, 200, 401)
        for before in ("", "中", "，", "a ", "\u3000")
        for after in ("", "中a", "。", "\u2003aa", "\u166daa", "\u2e4f")
    ]
    assert [texts[i] for i in differences(tokenizers, texts)] == []


def test_the_default_vocabulary(make):
    ours = default_vocabulary()
    tokenizers = make([ours.id_to_piece(i) for i in range(ours.vocab_size)])
    texts = list(random_texts(4_000, seed=3))
    assert [texts[i] for i in differences(tokenizers, texts)] == []


SETTINGS = [
    {"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese}
    for lower, strip, chinese in itertools.product(
        [True, False], [True, False, None], [True, False]
    )
    if (lower, strip, chinese) not in [(True, True, True), (True, None, True)]  # see above
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_settings(make, settings):
    """Assigned code points, random strings and words at the limit, under the other settings."""
    from transformers import BertTokenizer

    found = set()
    theirs = BertTokenizer(**settings).backend_tokenizer
    for code in CODE_POINTS:
        if not 0xAC00 <= code <= 0xD7A3 and code < 0x32000:
            normalized = theirs.normalizer.normalize_str(chr(code))
            found.update(w for w, _ in theirs.pre_tokenizer.pre_tokenize_str(normalized))
    found = sorted(piece for piece in found if len(piece) == 1)
    found = [piece for piece in found if piece not in joined_characters() or piece in JOINED]
    words = ["AB", "##c", "中国", "##人民", "É", "##é", "E\u0301"]
    tokenizers = make(
        [*SPECIAL_PIECES, *dict.fromkeys([*found, *words, *("##" + c for c in found)])], **settings
    )
    codes = [code for code in CODE_POINTS if code < 0x32000 or 0xE0000 <= code < 0xE0200]
    texts = [f"a{chr(code)}b中{chr(code)}" for code in codes]
    different = {codes[i] for i in differences(tokenizers, texts)}
    assert different <= WITHOUT_LOWER_CASE | TAKEN_APART
    texts = [*random_texts(3_000, seed=4)]
    texts += [f"中{c * n}，{c * (n // 2)}" for c in "aA中é😀\u1e9e" for n in (99, 100, 101, 401)]
    assert [texts[i] for i in differences(tokenizers, texts)] == []
