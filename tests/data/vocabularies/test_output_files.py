"""The files of a new vocabulary: complete, and in agreement, or not there."""

import pytest

from plug_jax.data.vocabularies import sentencepiece_training
from plug_jax.data.vocabularies.sentencepiece_training import train_sentencepiece
from plug_jax.data.vocabularies.wordpiece_training import train_wordpiece, write_default_wordpiece
from plug_jax.errors import PlugError
from tests.small_disk import largest_file


def test_what_contradicts_it_is_refused_before_the_work(tmp_path):
    def texts():
        raise AssertionError("read")
        yield

    for name in ("tokenizer.json", "special_tokens_map.json", "sentencepiece.model"):
        other = tmp_path / name
        other.write_text("{}")
        with pytest.raises(PlugError, match=f"{name} exists, which belongs to another tokenizer"):
            train_wordpiece(texts(), directory=tmp_path, overwrite=True)
        other.unlink()
    (tmp_path / "vocab.txt").write_text("天\n")
    with pytest.raises(PlugError, match=r"vocab\.txt exists, which belongs to another tokenizer"):
        train_sentencepiece(texts(), directory=tmp_path, vocab_size=9, overwrite=True)
    assert (tmp_path / "vocab.txt").read_text() == "天\n"


@pytest.mark.parametrize("most", [10, 1000])  # bytes: not even the settings, and the settings only
def test_a_full_disk_leaves_no_part_of_a_vocabulary(tmp_path, monkeypatch, most):
    model = tmp_path / "model"
    train_sentencepiece(["天" * 99], directory=model, vocab_size=6)
    content = (model / "sentencepiece.model").read_bytes()
    monkeypatch.setattr(sentencepiece_training, "_train", lambda *_, **__: content)
    with largest_file(most), pytest.raises(OSError, match=f"{tmp_path}/words"):
        write_default_wordpiece(tmp_path / "words")
    with largest_file(min(most, 100)), pytest.raises(OSError, match=f"{tmp_path}/pieces"):
        train_sentencepiece([], directory=tmp_path / "pieces", vocab_size=6)
    left = {path.name for path in tmp_path.glob("*s/*")}
    assert left <= {"tokenizer_config.json", "sentencepiece.vocab"}
