import argparse
import itertools
import json

import pytest

from plug_jax.cli import main, vocab
from plug_jax.data.vocabularies import coverage
from plug_jax.data.vocabularies.coverage import Coverage, HeldOut, measure_coverage
from plug_jax.data.vocabularies.sentencepiece_training import train_sentencepiece
from plug_jax.data.vocabularies.vocabulary import (
    SPECIAL_PIECES,
    default_vocabulary,
    load_vocabulary,
)
from plug_jax.errors import PlugError

TEXT = ["今天天气很好，我们去公园。", "明天天气不好，我们在家！", "hello world，你好。", "春夏秋冬"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXT), encoding="utf-8")
    return path


def plug_jax_vocab(*arguments):
    return main.main(["vocab", *map(str, arguments)])


def train(texts, directory, **options):
    return train_sentencepiece(texts, directory=directory, **options)


# --- the training function


def test_pieces_are_the_most_frequent_characters(tmp_path):
    trained = train(["一一一一二二二三三四"], tmp_path, vocab_size=8)
    pieces = [trained.id_to_piece(i) for i in range(trained.vocab_size)]
    assert pieces == [*SPECIAL_PIECES, "一", "二", "三"]
    assert load_vocabulary(tmp_path) == trained
    lines = (tmp_path / "sentencepiece.vocab").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == pieces


def test_the_same_text_gives_the_same_model(tmp_path):
    texts = ["".join(letters) for letters in itertools.permutations("天地玄黄宇宙", 4)]
    for model_type, size in (("char", 10), ("bpe", 20), ("unigram", 20)):
        for name in ("a", "b"):
            train(texts, tmp_path / model_type / name, vocab_size=size, model_type=model_type)
        models = [tmp_path / model_type / name / "sentencepiece.model" for name in ("a", "b")]
        assert models[0].read_bytes() == models[1].read_bytes()
        assert load_vocabulary(models[0]).vocab_size == size


def test_words_are_learnt(tmp_path):
    trained = train(
        ["天气很好", "看天气", "天气预报"] * 20, tmp_path, vocab_size=16, model_type="bpe"
    )
    assert "天气" in [trained.id_to_piece(i) for i in trained.encode("坏天气")]


def test_punctuation_keeps_its_width_and_the_rest_is_folded(tmp_path):
    text = "，,！（１9）…“Ａ”Ａb：　é"
    trained = train([text], tmp_path, vocab_size=20)
    assert trained.decode(trained.encode("，！（１９）…")) == "，！（19）…"
    assert trained.decode(trained.encode("“ＡＢ”")) == "“A[UNK]”"
    assert trained.encode("b\u3000\t9\u200b\n1") == trained.encode("b 9 1")
    assert trained.decode(trained.encode("e\u0301")) == "é"


def test_long_documents_are_read_to_their_end(tmp_path):
    texts = ["长" * 20_000 + "尾", "𠀀" * 5000 + "末", "▅有"]
    trained = train(texts, tmp_path, vocab_size=10)
    assert trained.unk_id not in trained.encode("长尾𠀀末有")


def test_a_sample_is_drawn_from_the_whole_text(tmp_path):
    rare = [chr(0x4E00 + i) for i in range(2000)]
    trained = train(rare, tmp_path / "a", vocab_size=115, max_sentences=110)
    drawn = [rare.index(trained.id_to_piece(i)) for i in trained.regular_ids]
    assert min(drawn) < 500
    assert max(drawn) > 1500
    again = train(rare, tmp_path / "b", vocab_size=115, max_sentences=110)
    assert again == trained


def test_coverage_leaves_rare_characters_out(tmp_path):
    texts = ["一" * 500 + "二" * 499 + "三"]
    trained = train(texts, tmp_path / "a", vocab_size=7, character_coverage=0.999)
    assert trained.decode(trained.encode("一三")) == "一[UNK]"
    with pytest.raises(PlugError, match="at most 7 pieces"):
        train(texts, tmp_path / "b", vocab_size=8, character_coverage=0.999)
    assert train(texts, tmp_path / "c", vocab_size=8).encode("三") == [7]


@pytest.mark.parametrize("model_type", ["char", "unigram", "bpe"])
def test_too_large_a_vocabulary_says_how_large_it_can_be(tmp_path, model_type):
    options = dict(model_type=model_type, character_coverage=1)
    with pytest.raises(PlugError, match=rf"at most \d+ pieces of type {model_type}") as caught:
        train(TEXT, tmp_path, vocab_size=5000, **options)
    assert not (tmp_path / "sentencepiece.model").exists()
    largest = int(str(caught.value).split("at most ")[1].split()[0])
    assert train(TEXT, tmp_path, vocab_size=largest, **options).vocab_size == largest


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_small_a_vocabulary_says_how_large_it_must_be(tmp_path, model_type):
    options = dict(model_type=model_type, character_coverage=1)
    with pytest.raises(PlugError, match=r"it takes at least \d+") as caught:
        train(TEXT, tmp_path, vocab_size=10, **options)
    least = int(str(caught.value).split("at least ")[1].split(",")[0])
    assert train(TEXT, tmp_path, vocab_size=least, **options).vocab_size == least


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(vocab_size=5), "no room beside the 5 special pieces"),
        (dict(model_type="word"), "'word': use char, unigram or bpe"),
        (dict(character_coverage=0.0), r"must be in \(0, 1\]"),
        (dict(character_coverage=1.1), r"must be in \(0, 1\]"),
        (dict(max_sentences=100), "ask for 101 or more"),
        (dict(max_sentences=-1), "ask for 101 or more"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(PlugError, match=message):
        train(TEXT, tmp_path, **{"vocab_size": 20, **options})


@pytest.mark.parametrize("texts", [[], [""], ["  ", "\n\u3000"], ["▅"]])
def test_no_text(tmp_path, texts):
    with pytest.raises(PlugError, match="no text to train"):
        train(texts, tmp_path, vocab_size=20)


def test_errors_of_the_texts_come_through(tmp_path):
    def texts():
        yield "一"
        raise PlugError("the second document")

    with pytest.raises(PlugError, match="^the second document$"):
        train(texts(), tmp_path, vocab_size=6)


def test_an_interruption_while_the_text_is_read(corpus, tmp_path, monkeypatch, capsys):
    def texts(*_):
        yield "一"
        raise KeyboardInterrupt

    monkeypatch.setattr(vocab, "_documents", texts)
    for model_type, size in (("char", 20), ("wordpiece", 22_000)):
        options = ["--model_type", model_type, "--vocab_size", size]
        assert plug_jax_vocab("--input", corpus, "--output", tmp_path, *options) == 130
        assert capsys.readouterr().err == "plug-jax: interrupted\n"


def test_a_model_is_overwritten_only_when_asked(tmp_path):
    train(["一"], tmp_path, vocab_size=6)
    with pytest.raises(PlugError, match=r"sentencepiece\.model exists"):
        train(["二"], tmp_path, vocab_size=6)
    assert load_vocabulary(tmp_path).id_to_piece(5) == "一"
    assert train(["二"], tmp_path, vocab_size=6, overwrite=True).id_to_piece(5) == "二"


def test_the_whole_text_and_a_sample_larger_than_it_are_the_same(tmp_path):
    everything = train(TEXT, tmp_path / "a", vocab_size=20, max_sentences=0)
    sampled = train(TEXT, tmp_path / "b", vocab_size=20)
    pieces = [[v.id_to_piece(i) for i in range(20)] for v in (everything, sampled)]
    assert pieces[0] == pieces[1]


# --- coverage


def test_coverage_counts_characters_and_tokens(tmp_path):
    trained = train(["一二"], tmp_path, vocab_size=7)
    coverage = measure_coverage(trained, iter(["一三二", "", "三 三\u3000\u200b"] * 100))
    # SentencePiece makes one [UNK] of a run, and here a space is unknown, too.
    assert coverage == Coverage(
        characters=500, covered_characters=200, tokens=400, unknown_tokens=200
    )
    assert str(coverage) == (
        "40.0000% of 500 characters covered, 50.0000% [UNK] in 400 tokens, 0.800 tokens per "
        "character"
    )
    assert measure_coverage(trained, []) == Coverage(0, 0, 0, 0)
    assert "0 characters" in str(measure_coverage(trained, []))


def test_held_out_documents_depend_on_their_text_alone():
    documents = [f"文档{i}" for i in range(5_000)]
    first, second = HeldOut(), HeldOut()
    kept = list(first.filter(iter(documents)))
    again = set(second.filter(reversed(documents * 2)))
    assert 25 <= len(first.texts) <= 75
    assert not first.is_trained_on
    assert sorted(kept + first.texts) == sorted(documents)
    assert again == set(kept)
    assert set(second.texts) == set(first.texts)
    assert kept == [text for text in documents if text in again]  # in order


def test_a_short_text_is_measured_on_itself():
    held_out = HeldOut()
    assert list(held_out.filter(TEXT)) == TEXT
    assert held_out.is_trained_on
    assert sorted(held_out.texts) == sorted(TEXT)


def test_if_the_choice_falls_on_all_documents_they_are_trained_on(tmp_path, capsys):
    chosen = HeldOut()
    list(chosen.filter(f"天地{i}" for i in range(1_000)))
    documents = chosen.texts[:2]
    held_out = HeldOut()
    assert list(held_out.filter(documents)) == held_out.texts == documents
    assert held_out.is_trained_on
    path = tmp_path / "corpus.txt"
    path.write_text(documents[0] + "\n", encoding="utf-8")
    assert plug_jax_vocab("--input", path, "--output", tmp_path, "--vocab_size", 7) == 0
    assert "of 1 document of the TRAINING text" in capsys.readouterr().out


def test_held_out_text_in_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(coverage, "_MAX_CHARACTERS", 100)
    documents = [f"{i:010}" for i in range(20_000)]
    held_out = HeldOut()
    trained_on = set(held_out.filter(documents))
    assert len(held_out.texts) == 10
    assert not trained_on & set(held_out.texts)
    assert 100 < len(documents) - len(trained_on) < 300
    other = HeldOut()
    list(other.filter(reversed(documents)))
    assert other.texts == held_out.texts


# --- the command


def test_trains_on_files_and_reports(corpus, tmp_path, capfd):
    output = tmp_path / "made" / "here"
    assert plug_jax_vocab("--input", corpus, "--output", output, "--vocab_size", 20) == 0
    trained = load_vocabulary(output)
    assert trained.vocab_size == 20
    out, err = capfd.readouterr()
    coverage = measure_coverage(trained, TEXT)
    assert 0 < coverage.unknown_tokens < coverage.tokens
    assert out.splitlines() == [
        f"20 pieces in {output}/sentencepiece.model",
        "of 4 documents of the TRAINING text (too short to hold any out; see --held_out): "
        f"{coverage}",
    ]
    assert "trainer_interface" not in err


def test_reads_the_other_formats(tmp_path, capsys):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"content": text}) for text in TEXT) + "\n{}\n")
    options = ["--format", "jsonl", "--text_key", "content", "--model_type", "bpe"]
    options += ["--character_coverage", "1", "--max_sentences", "101", "--vocab_size", "45"]
    assert plug_jax_vocab("--input", path, "--output", tmp_path, *options) == 0
    assert load_vocabulary(tmp_path).vocab_size == 45
    assert "left out: 1 (missing_text_key)\n" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--vocab_size", "30"], ["--model_type", "wordpiece"]])
def test_no_document_has_the_field(tmp_path, capsys, options):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"content": "天地"}\n')
    arguments = ["--input", path, "--format", "jsonl", "--output", tmp_path, *options]
    assert plug_jax_vocab(*arguments) == 2
    said = capsys.readouterr().err
    assert "There is no document in " in said and "missing_text_key 1. Name the field" in said


def test_formats_without_files_are_refused(tmp_path, capsys):
    arguments = ["vocab", "--model_type", "wordpiece", "--output", str(tmp_path)]
    for option in (("--format", "jsonl"), ("--text_key", "content")):
        assert main.main([*arguments, *option]) == 2
        assert f"{option[0]} goes with --input or --held_out" in capsys.readouterr().err


def test_several_inputs_and_globs(tmp_path):
    for name, text in (("a.txt", "一一一"), ("b.txt", "二二"), ("c.md", "三")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    inputs = [tmp_path / "*.txt", tmp_path / "c.md"]
    assert plug_jax_vocab("--input", *inputs, "--output", tmp_path, "--vocab_size", 8) == 0
    assert load_vocabulary(tmp_path).encode("一二三") == [5, 6, 7]


def test_mistakes_end_with_status_2_and_one_line(corpus, tmp_path, capsys):
    nowhere = tmp_path / "nowhere.txt"
    assert plug_jax_vocab("--input", nowhere, "--output", tmp_path, "--vocab_size", 20) == 2
    assert "nowhere.txt" in capsys.readouterr().err
    assert plug_jax_vocab("--input", corpus, "--output", tmp_path, "--vocab_size", 9999) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert plug_jax_vocab("--input", corpus, "--output", tmp_path, "--vocab_size", 20) == 0
    assert plug_jax_vocab("--input", corpus, "--output", tmp_path, "--vocab_size", 21) == 2
    assert "exists" in capsys.readouterr().err
    overwrite = ["--vocab_size", 21, "--overwrite"]
    assert plug_jax_vocab("--input", corpus, "--output", tmp_path, *overwrite) == 0
    assert load_vocabulary(tmp_path).vocab_size == 21


@pytest.mark.parametrize("model_type", ["char", "wordpiece"])
def test_a_file_that_cannot_be_read_is_found_first(corpus, tmp_path, capsys, model_type):
    (tmp_path / "z.txt").symlink_to(tmp_path / "gone.txt")
    options = ["--output", tmp_path, "--vocab_size", 22_000, "--model_type", model_type]
    assert plug_jax_vocab("--input", tmp_path / "*.txt", *options) == 2
    assert "1 of the files of the text are missing or cannot be read: " in capsys.readouterr().err


def test_measures_on_documents_kept_out_of_training(tmp_path, capsys):
    documents = [chr(0x4E00 + i) * 3 for i in range(1_000)]
    held_out = HeldOut()
    kept = list(held_out.filter(documents))
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(documents), encoding="utf-8")
    size = 5 + len(kept)
    assert plug_jax_vocab("--input", path, "--output", tmp_path, "--vocab_size", size) == 0
    report = capsys.readouterr().out
    assert f"of {len(held_out.texts)} documents held out of training: 0.0000% of" in report
    assert plug_jax_vocab("--input", path, "--output", tmp_path, "--vocab_size", size + 1) == 2


def test_measures_on_other_files_and_trains_on_everything(corpus, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("春夏\n秋龘", encoding="utf-8")
    documents = [chr(0x4E00 + i) for i in range(1_000)] + ["春夏秋冬"]
    corpus.write_text("\n".join(documents), encoding="utf-8")
    size = 5 + len({*"".join(documents)})
    options = ["--output", tmp_path, "--vocab_size", size, "--held_out", other]
    assert plug_jax_vocab("--input", corpus, *options) == 0
    out = capsys.readouterr().out
    assert "of the text in --held_out: 75.0000% of 4 characters covered, 25.0000% [UNK] in" in out


def test_reads_the_input_once(corpus, tmp_path, monkeypatch):
    opened = []
    documents = vocab._documents

    def spy(args, files):
        opened.append(files)
        return documents(args, files)

    monkeypatch.setattr(vocab, "_documents", spy)
    for model_type, size in (("char", 20), ("wordpiece", 22_000)):
        options = ["--model_type", model_type, "--vocab_size", size]
        output = tmp_path / model_type
        assert plug_jax_vocab("--input", corpus, "--output", output, *options) == 0
    assert opened == [[str(corpus)]] * 2


def test_writes_the_default_wordpiece_vocabulary(tmp_path, capsys):
    options = ["--model_type", "wordpiece", "--output", tmp_path]
    assert plug_jax_vocab(*options) == 0
    assert capsys.readouterr().out == f"21128 pieces in {tmp_path}/vocab.txt\n"
    assert load_vocabulary(tmp_path) == default_vocabulary()
    assert plug_jax_vocab(*options) == 2
    assert "vocab.txt exists" in capsys.readouterr().err
    assert plug_jax_vocab(*options, "--overwrite", "--vocab_size", 30_000) == 2
    assert "Without --input there is only the default" in capsys.readouterr().err


def test_trains_word_pieces(tmp_path, capsys):
    path = tmp_path / "corpus.txt"
    path.write_text("你好 transformers\n" * 20, encoding="utf-8")
    options = ["--model_type", "wordpiece", "--vocab_size", 21_200]
    assert plug_jax_vocab("--input", path, "--output", tmp_path, *options) == 0
    trained = load_vocabulary(tmp_path)
    assert trained.vocab_size == 21_200
    assert [trained.id_to_piece(i) for i in trained.encode("Transformers")] == ["transformers"]
    assert "0.0000% [UNK] in 60 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocab_size", 20], "--model_type char needs --input"),
        (["--input", "x", "--model_type", "bpe"], "--model_type bpe needs --vocab_size"),
        (["--model_type", "wordpiece", "--max_sentences", 500], "--max_sentences is for Sentence"),
        (["--model_type", "wordpiece", "--character_coverage", 1], "--character_coverage is for"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, options, message):
    assert plug_jax_vocab("--output", tmp_path, *options) == 2
    assert message in capsys.readouterr().err


def test_the_examples_in_the_help_parse():
    parser = argparse.ArgumentParser()
    vocab.add_arguments(parser)
    lines = [line for line in vocab.EXAMPLE.splitlines() if "plug-jax vocab" in line]
    parsed = [parser.parse_args(line.replace("'", "").split()[2:]) for line in lines]
    assert [args.model_type for args in parsed] == ["char", "wordpiece", "wordpiece"]
    assert [args.vocab_size for args in parsed] == [8000, None, 30000]
