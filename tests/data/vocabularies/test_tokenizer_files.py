"""The settings files of a WordPiece vocabulary: followed, or refused by name."""

import copy
import json

import pytest

from plug_jax.checkpoints.saved_model import vocabulary_fingerprint
from plug_jax.data.descriptions import describe
from plug_jax.data.vocabularies.vocabulary import (
    SPECIAL_PIECES,
    WordPieceVocabulary,
    load_vocabulary,
    save_vocabulary,
)
from plug_jax.errors import PlugError

PIECES = [*SPECIAL_PIECES, "[unused1]", "A", "##B", "a", "##b", "AB", "É", "é", "e", "Café"]
PIECES += ["cafe", "café", "##é", "今", "天", "今天", "##天", "##气", "天气", "，", "中", "##中"]
PIECES += ["İ", "i", "i̇", "[", "]", "un", "##used", "##1", "##used1", "σ", "Σ", "##σ"]
TEXT = "AB ab今天天气，Café É中ABİ ΣΣ[unused1]中中"
# The result of transformers' BertTokenizer, by its do_lower_case, strip_accents and
# tokenize_chinese_chars.
EXPECTED = {
    (True, True, True): "a ##b a ##b 今 天 天 [UNK] ， cafe e 中 [UNK] σ ##σ [ un ##used1 ] 中 中",
    (True, True, False): "a ##b [UNK] ， cafe [UNK] σ ##σ [ un ##used1 ] 中 ##中",
    (True, False, True): "a ##b a ##b 今 天 天 [UNK] ， café é 中 [UNK] σ ##σ [ un ##used1 ] 中 中",
    (True, False, False): "a ##b [UNK] ， café [UNK] σ ##σ [ un ##used1 ] 中 ##中",
    (
        False,
        True,
        True,
    ): "AB a ##b 今 天 天 [UNK] ， [UNK] [UNK] 中 [UNK] [UNK] [ un ##used1 ] 中 中",
    (False, True, False): "AB [UNK] ， [UNK] [UNK] [UNK] [ un ##used1 ] 中 ##中",
    (False, False, True): "AB a ##b 今 天 天 [UNK] ， Café É 中 [UNK] [UNK] [ un ##used1 ] 中 中",
    (False, False, False): "AB [UNK] ， Café [UNK] [UNK] [ un ##used1 ] 中 ##中",
}
NAMES = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
WHOLE = {
    "added_tokens": [{"id": i, "content": p, "special": True} for i, p in enumerate(PIECES[:6])],
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": False,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {piece: i for i, piece in enumerate(PIECES)},
    },
}


def write(directory, *, pieces=PIECES, **files):
    """vocab.txt, and JSON files by name without .json."""
    if pieces:
        (directory / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return directory


def read(vocabulary, text=TEXT):
    return " ".join(map(vocabulary.id_to_piece, vocabulary.encode(text)))


@pytest.mark.parametrize("rules", EXPECTED)
def test_settings_are_kept_to(tmp_path, rules):
    settings = dict(zip(NAMES, rules, strict=True))
    vocabulary = load_vocabulary(write(tmp_path, tokenizer_config=settings))
    assert read(vocabulary) == EXPECTED[rules]
    assert vocabulary.encode_tf([TEXT, "中", ""]).row_lengths().numpy().tolist()[1:] == [1, 0]
    # The settings follow the vocabulary: into a checkpoint, another process, a cache.
    save_vocabulary(vocabulary, tmp_path / "saved")
    again = load_vocabulary(tmp_path / "saved")
    assert again == vocabulary
    assert hash(again) == hash(vocabulary)
    assert read(again) == read(copy.deepcopy(vocabulary)) == EXPECTED[rules]
    default = load_vocabulary(write(tmp_path / "saved", tokenizer_config={}))
    same = rules == (True, True, True)
    assert (vocabulary == default) == same
    assert (vocabulary_fingerprint(vocabulary) == vocabulary_fingerprint(default)) == same
    assert (describe(vocabulary) == describe(default)) == same


@pytest.mark.parametrize(
    ("settings", "rules"),
    [
        ({}, (True, True, True)),
        ({"do_lower_case": False}, (False, False, True)),
        ({"do_lower_case": False, "strip_accents": None}, (False, False, True)),
        ({"strip_accents": False}, (True, False, True)),
        ({"tokenize_chinese_chars": False, "do_lower_case": None}, (True, True, False)),
    ],
)
def test_what_is_not_said_is_the_default(tmp_path, settings, rules):
    """strip_accents follows do_lower_case."""
    vocabulary = load_vocabulary(write(tmp_path, tokenizer_config=settings))
    assert tuple(getattr(vocabulary.rules, name) for name in NAMES) == rules


def test_tokenizer_json_alone_is_a_vocabulary(tmp_path):
    whole = load_vocabulary(write(tmp_path, pieces=None, tokenizer=WHOLE))
    assert read(whole) == EXPECTED[False, False, True]
    assert whole == load_vocabulary(tmp_path / "tokenizer.json")
    save_vocabulary(whole, tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.txt").read_text("utf-8").splitlines() == PIECES
    assert load_vocabulary(tmp_path / "saved") == whole
    # Beside a vocab.txt it adds its settings.
    assert read(load_vocabulary(write(tmp_path))) == read(whole)


def test_files_as_transformers_writes_them(tmp_path):
    token = {"content": "[MASK]", "lstrip": True, "special": True}
    vocabulary = write(
        tmp_path,
        tokenizer=WHOLE,
        added_tokens={"[MASK]": 4, "[unused1]": 5},
        special_tokens_map={"mask_token": token, "additional_special_tokens": ["[unused1]"]},
        tokenizer_config={
            **{"do_lower_case": False, "strip_accents": None, "tokenizer_class": "BertTokenizer"},
            **{"do_basic_tokenize": True, "never_split": None, "mask_token": "[MASK]"},
            **{"added_tokens_decoder": {"4": token}, "model_max_length": 512, "init_inputs": []},
        },
    )
    assert read(load_vocabulary(vocabulary)) == EXPECTED[False, False, True]


def changed(part, **settings):
    return {"tokenizer": WHOLE | {part: WHOLE[part] | settings}}


REFUSED = [
    ({"tokenizer_config": {"tokenizer_class": "RobertaTokenizer"}}, 'tokenizer_class = "RobertaT'),
    ({"tokenizer_config": {"do_basic_tokenize": False}}, "do_basic_tokenize = false"),
    ({"tokenizer_config": {"never_split": ["中国"]}}, "config.json adds the token '中国'"),
    ({"tokenizer_config": {"added_tokens_decoder": {"x": 1}}}, "not as transformers writes it"),
    ({"tokenizer_config": {"additional_special_tokens": 7}}, "not as transformers writes it"),
    ({"tokenizer": WHOLE | {"added_tokens": ["x"]}}, "not as transformers writes it"),
    *(
        ({"added_tokens": {"[MASK]": number}}, "not as transformers writes it.* is not an id")
        for number in ("4", 4.0, -31, None, True)
    ),
    ({"tokenizer_config": {"added_tokens_decoder": {"-1": "[MASK]"}}}, "-1 is not an id"),
    (
        {"tokenizer": WHOLE | {"added_tokens": [{"id": None, "content": "[MASK]"}]}},
        "None is not an id",
    ),
    ({"tokenizer_config": {"additional_special_tokens": [5]}}, "5 is not a token"),
    ({"tokenizer": WHOLE | {"normalizer": []}}, "normalizer of .* has type = null"),
    ({"tokenizer": WHOLE | {"model": []}}, "no model with a vocabulary"),
    ({"tokenizer_config": {"mask_token": "<mask>"}}, 'mask_token = "<mask>".* "\\[MASK\\]" only'),
    ({"tokenizer_config": {"do_lower_case": "false"}}, 'do_lower_case = "false"'),
    ({"tokenizer_config": {"wordpieces_prefix": "@@"}}, 'wordpieces_prefix = "@@"'),
    ({"tokenizer_config": {"padding_side": "left"}}, 'padding_side = "left"'),
    ({"special_tokens_map": {"unk_token": {"content": "?"}}}, 'special_tokens_map.json.*unk_tok'),
    ({"special_tokens_map": {"additional_special_tokens": ["<S>"]}}, "adds the token '<S>'"),
    ({"tokenizer_config": {"extra_special_tokens": {"s": "<S>"}}}, "adds the token '<S>'"),
    ({"tokenizer_config": {"added_tokens_decoder": {"6": {"content": "A"}}}}, "token 'A'"),
    ({"added_tokens": {"<eop>": 39}}, "added_tokens.json adds the token '<eop>'"),
    ({"added_tokens": {"[MASK]": 40}}, r"added_tokens.json has \[MASK\] for id 40"),
    ({"tokenizer": WHOLE | {"added_tokens": [{"id": 39, "content": "x"}]}}, "the token 'x'"),
    (changed("model", type="BPE"), 'model of tokenizer.json .* has type = "BPE"'),
    (changed("model", max_input_chars_per_word=50), "max_input_chars_per_word = 50"),
    (changed("model", vocab={"[PAD]": 0, "x": 1}), "hold different pieces"),
    (changed("model", vocab={"[PAD]": 0, "x": 2}), "no model with a vocabulary"),
    (changed("model", vocab={"[PAD]": 0, "x": [1]}), "no model with a vocabulary"),
    (changed("normalizer", type="Lowercase"), 'normalizer of .* has type = "Lowercase"'),
    (changed("normalizer", clean_text=False), "clean_text = false"),
    ({"tokenizer": WHOLE | {"normalizer": None}}, "normalizer of .* has type = null"),
    (changed("pre_tokenizer", type="Whitespace"), 'pre_tokenizer of .* has type = "Whitespace"'),
    (
        {"tokenizer_config": {"do_lower_case": True}, "tokenizer": WHOLE},
        "contradict each other: do_lower_case is true, and lowercase false",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("files", "message"), REFUSED)
def test_what_is_not_done_here_is_refused_by_name(tmp_path, files, message):
    with pytest.raises(PlugError, match=message):
        load_vocabulary(write(tmp_path, **files))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"{", "not JSON, or cut short"),
        (b"[]", "not a JSON object"),
        (b"version https://git-lfs.github.com/spec/v1", "a git-lfs pointer"),
        (b"<!DOCTYPE html>", "a web page"),
    ],
)
def test_settings_that_are_not_there_whole(tmp_path, content, message):
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(PlugError, match=f"tokenizer_config.json is {message}"):
        WordPieceVocabulary(tmp_path / "vocab.txt")


@pytest.mark.parity
@pytest.mark.parametrize("rules", EXPECTED)
def test_expected_pieces_and_files_are_those_of_transformers(tmp_path, rules):
    from transformers import BertTokenizer

    settings = dict(zip(NAMES, rules, strict=True))
    write(tmp_path)
    theirs = BertTokenizer(vocab=str(tmp_path / "vocab.txt"), **settings)
    theirs.save_pretrained(tmp_path / "theirs")
    theirs.backend_tokenizer.encode_special_tokens = True
    encoded = theirs.backend_tokenizer.encode(TEXT, add_special_tokens=False)
    assert " ".join(encoded.tokens) == EXPECTED[rules]
    assert read(load_vocabulary(tmp_path / "theirs")) == EXPECTED[rules]
    save_vocabulary(load_vocabulary(tmp_path / "theirs"), tmp_path / "ours")
    back = BertTokenizer.from_pretrained(tmp_path / "ours")
    back.backend_tokenizer.encode_special_tokens = True
    assert back.backend_tokenizer.encode(TEXT, add_special_tokens=False).ids == encoded.ids


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("中中\u3000中", "中 ##中 中"),
        ("a" * 100, "[UNK]"),  # no ##a
        ("中" * 100, "中" + " ##中" * 99),
        ("中" * 101, "[UNK]"),
        ("今天" + "中" * 99 + "，AB\u00a0ab", "[UNK] ， AB a ##b"),
        ("\u200b中\ue000中", "中 ##中"),
    ],
)
def test_words_where_chinese_is_not_split(tmp_path, text, pieces):
    settings = {"tokenize_chinese_chars": False, "do_lower_case": False}
    assert read(load_vocabulary(write(tmp_path, tokenizer_config=settings)), text) == pieces
