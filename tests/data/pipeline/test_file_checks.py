"""Damaged and unreachable files are found before any data are read."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest
import tensorflow as tf

from plug_jax.data.pipeline import file_checks
from plug_jax.data.pipeline.file_checks import check_files
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.data.sources.text_source import TextSource
from plug_jax.data.sources.token_source import TokenSource
from plug_jax.errors import PlugError
from plug_jax.tasks import pretrain

TEXT = "".join(f"第{n}篇天地人。\n" for n in range(2000))
VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n。\n天\n地\n人\n第\n篇\n"


def config_of(root: Path, split: str = "validation", **settings: object) -> DatasetConfig:
    (root / "vocab.txt").write_text(VOCABULARY, encoding="utf-8")
    name = pretrain.structbert_text(
        train_files=str(root / "*.txt.gz"),
        validation_files=str(root / "*.txt.gz"),
        vocabulary=str(root / "vocab.txt"),
        max_length=24,
        name="checked_files",
    )
    lengths = {"encoder": 32}
    return DatasetConfig(name, lengths, split, batch_size=8, shuffle=False, seed=0, **settings)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_one_compressed_file_of_several_is_cut_short(tmp_path: Path, split: str) -> None:
    whole = gzip.compress(TEXT.encode())
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt.gz").write_bytes(whole)
    config = config_of(tmp_path, split)
    check_files(config)
    (tmp_path / "b.txt.gz").write_bytes(whole[:-9])
    damaged = r"1 of the files of the \w+ split of 'checked_files' .*b\.txt\.gz is damaged"
    with pytest.raises(PlugError, match=damaged) as raised:
        check_files(config)
    assert "a.txt.gz" not in str(raised.value)


def test_of_much_only_the_beginnings_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_checks, "_BYTES_TO_READ", 100)
    whole = gzip.compress(TEXT.encode())
    (tmp_path / "a.txt.gz").write_bytes(whole)
    (tmp_path / "b.txt.gz").write_bytes(whole[:-9])
    check_files(config_of(tmp_path))
    (tmp_path / "c.txt.gz").write_text(TEXT, encoding="utf-8")
    with pytest.raises(PlugError, match="c.txt.gz is damaged or not compressed"):
        check_files(config_of(tmp_path))


def test_a_file_that_went_away_or_cannot_be_opened(tmp_path: Path) -> None:
    source = TextSource(train=str(tmp_path / "a.txt"))
    assert "cannot be read" in str(source.damage(str(tmp_path / "a.txt"), to_end=True))
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    assert source.damage(str(tmp_path / "a.txt"), to_end=True) is None


@pytest.mark.parametrize("packed", [False, True])
def test_carriage_returns_that_would_be_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, packed: bool
) -> None:
    def damage(text: str) -> str | None:
        path = tmp_path / ("a.txt.gz" if packed else "a.txt")
        content = text.encode()
        path.write_bytes(gzip.compress(content) if packed else content)
        return source.damage(str(path), to_end=True)

    caplog.set_level(logging.WARNING)  # libraries may have set another
    source = TextSource(train=str(tmp_path / "a.txt"))
    assert "carriage returns, which would be deleted: `tr " in str(damage("天。\r地。\r人。"))
    for text in ("天。\r\n地。\r\r\n", "天。\r", "天。", "天\r\n" * 30_000):
        assert damage(text) is None
    assert not caplog.records
    assert damage("天\r地。\n人。\n") is damage("天\r地。\n") is None
    [warning] = caplog.messages
    assert "and perhaps others, has carriage returns within lines" in warning


def test_records_of_tokens(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tfrecord")
    with tf.io.TFRecordWriter(path) as file:
        for number in range(200):
            file.write(bytes([number]) * 50)
    source = TokenSource(train=path)
    assert source.damage(path, to_end=True) is None
    content = Path(path).read_bytes()
    for damaged in (content[:-3], content[:6000] + b"\xff" + content[6001:]):
        Path(path).write_bytes(damaged)
        assert source.damage(path, to_end=True) == "is cut short or damaged"
        assert source.damage(path, to_end=False) is None
    Path(path).write_bytes(b"\0" * 100)
    assert source.damage(path, to_end=False) == "is cut short or damaged"
    assert "cannot be read" in str(source.damage(path + "x", to_end=False))
