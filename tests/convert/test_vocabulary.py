"""The imported vocabulary with its settings, through checkpoints and exports."""

import json

import pytest
from safetensors.numpy import save_file

from plug_jax.checkpoints.saved_model import load_for_inference, open_checkpoint
from plug_jax.cli import main
from plug_jax.convert.from_torch import ImportOptions, import_weights
from plug_jax.convert.model_sizes import ModelOptions
from plug_jax.convert.sources import open_hf
from plug_jax.convert.to_torch import export_hf
from plug_jax.data.vocabularies.sentencepiece_training import train_sentencepiece
from plug_jax.data.vocabularies.vocabulary import (
    SPECIAL_PIECES,
    SentencePieceVocabulary,
    load_vocabulary,
    save_vocabulary,
)
from plug_jax.errors import PlugError
from tests.convert import weights

PIECES = [*SPECIAL_PIECES, "A", "##B", "a", "##b", *map(chr, range(0x4E00, 0x4E00 + 81))]
AS_IT_IS, LOWERED = [5, 6], [7, 8]  # of "AB"


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "in"
    path.mkdir()
    save_file(
        weights.state_dict(weights.bert_config(), "bert", rows=90), path / "model.safetensors"
    )
    (path / "config.json").write_text(json.dumps({"num_attention_heads": 4, "vocab_size": 90}))
    (path / "vocab.txt").write_text("\n".join(PIECES))
    return path


def settings(path, **said):
    (path / "tokenizer_config.json").write_text(json.dumps(said))


def bring_in(directory, output, **options):
    import_weights(open_hf(directory), output, ImportOptions(**options))
    return open_checkpoint(output).vocabulary()


@pytest.mark.parametrize(("lower", "ids"), [(False, AS_IT_IS), (True, LOWERED), (None, LOWERED)])
def test_a_cased_vocabulary_stays_cased(directory, tmp_path, lower, ids):
    settings(directory, do_lower_case=lower)
    assert bring_in(directory, tmp_path / "out").encode("AB") == ids
    assert load_for_inference(tmp_path / "out")[2].encode("AB") == ids
    export_hf(tmp_path / "out", tmp_path / "back")
    said = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert said["do_lower_case"] == (ids == LOWERED)
    assert bring_in(tmp_path / "back", tmp_path / "again").encode("AB") == ids


def test_a_vocabulary_from_elsewhere_must_not_say_otherwise(directory, tmp_path):
    settings(directory, do_lower_case=False)
    other = tmp_path / "other"
    other.mkdir()
    (other / "words.txt").write_text("\n".join(PIECES))
    with pytest.raises(PlugError, match="'do_lower_case': False.* nothing beside .*words.txt does"):
        bring_in(directory, tmp_path / "out", vocabulary=str(other / "words.txt"))
    settings(other, do_lower_case=False)
    found = bring_in(directory, tmp_path / "out", vocabulary=str(other / "words.txt"))
    assert found.encode("AB") == AS_IT_IS
    settings(other, do_lower_case=True)  # an explicit option is trusted
    found = bring_in(directory, tmp_path / "lowered", vocabulary=str(other / "words.txt"))
    assert found.encode("AB") == LOWERED


def test_tokenizer_json_without_vocab_txt(directory, tmp_path):
    (directory / "vocab.txt").unlink()
    normalizer = {"type": "BertNormalizer", "lowercase": False}
    model = {"type": "WordPiece", "vocab": {piece: i for i, piece in enumerate(PIECES)}}
    whole = {
        "normalizer": normalizer,
        "model": model,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
    }
    (directory / "tokenizer.json").write_text(json.dumps(whole))
    assert bring_in(directory, tmp_path / "out").encode("AB") == AS_IT_IS
    (directory / "vocab.txt").write_text("\n".join(reversed(PIECES)))
    with pytest.raises(
        PlugError, match=r"vocab.txt and the tokenizer.json beside it hold different"
    ):
        bring_in(directory, tmp_path / "other")


def test_a_setting_that_is_not_honoured_ends_the_import(directory, tmp_path, capsys):
    settings(directory, do_basic_tokenize=False)
    command = ["convert", "import-hf", "--input", str(directory), "--output", str(tmp_path / "out")]
    assert main.main(command) == 2
    assert "do_basic_tokenize = false; here it can be true only" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_a_sentencepiece_vocabulary_is_exported_too(directory, tmp_path, capsys):
    texts = ["一二三四五六七八九十", "上下左右前后东西南北中"] * 10
    model = train_sentencepiece(
        texts, directory=tmp_path / "model", vocab_size=24, model_type="char"
    )
    found = bring_in(directory, tmp_path / "out", vocabulary=str(tmp_path / "model"))
    assert found == model
    export_hf(tmp_path / "out", tmp_path / "back")
    assert "sentencepiece.model: import-hf and import-plug read it" in capsys.readouterr().err
    assert isinstance(load_vocabulary(tmp_path / "back"), SentencePieceVocabulary)
    assert bring_in(tmp_path / "back", tmp_path / "again") == model
    save_vocabulary(model, directory)
    with pytest.raises(PlugError, match="holds both"):
        bring_in(directory, tmp_path / "both")
    assert bring_in(directory, tmp_path / "named", vocabulary=str(directory / "vocab.txt"))


@pytest.mark.parametrize(("length", "said"), [(16, True), (32, False), (10**30, False)])
def test_texts_that_the_tokenizer_would_cut(directory, tmp_path, capsys, length, said):
    settings(directory, model_max_length=length)
    bring_in(directory, tmp_path / "out")
    error = capsys.readouterr().err
    assert ("model_max_length" in error) == said
    assert ("has model_max_length = 16: rows may be longer here, up to the 32 pos" in error) == said


def test_a_config_of_more_pieces_than_there_are_rows(directory, tmp_path):
    """Of another model, even if the vocabulary would fit; an explicit option is trusted."""
    (directory / "config.json").write_text('{"num_attention_heads": 4, "vocab_size": 200}')
    with pytest.raises(PlugError, match="90 rows of embeddings, too few for 200 pieces"):
        bring_in(directory, tmp_path / "out")
    bring_in(directory, tmp_path / "out", model=ModelOptions(vocab_size=90))
