"""Every path argument of `convert`, with every character that a file system allows in a name."""

import json
import re

import pytest
from safetensors.numpy import load_file, save_file

from plug_jax.checkpoints.saved_model import open_checkpoint
from plug_jax.cli import main
from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES, load_vocabulary
from tests.convert import weights

PIECES = [*SPECIAL_PIECES, *map(chr, range(0x4E00, 0x4E00 + 85))]
NAMES = ["lr=[1e-4]", "[a-z]*?{b,c}!", " two\nlines ", "100%25#?x=1&y", "~nobody at all", "-dash"]


@pytest.fixture(scope="module")
def tensors():
    return weights.state_dict(weights.bert_config(), "bert", rows=90)


def write(directory, tensors):
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    (directory / "vocab.txt").write_text("\n".join(PIECES))
    return directory


def convert(*arguments):
    return main.main(["convert", *arguments])


@pytest.mark.parametrize("name", NAMES)
def test_any_name(tensors, tmp_path, monkeypatch, name):
    """As an input, a vocabulary, an output and a checkpoint, relative to the current directory."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, tensors)
    out, back = f"{name} 1", f"{name} 2/"
    options = [f"--input={name}", f"--output={out}", f"--vocabulary={name}/vocab.txt"]
    assert convert("import-hf", *options) == 0
    assert open_checkpoint(out).vocabulary().vocab_size == 90
    assert convert("export-hf", f"--checkpoint={out}", f"--output={back}") == 0
    weights.same(load_file(tmp_path / f"{name} 2" / "model.safetensors"), tensors)
    assert load_vocabulary(back) == load_vocabulary(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, out, back[:-1]]


def test_the_home_directory(tensors, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "in", tensors)
    options = ["--input=~/in/", "--output=~/a/../out", "--vocabulary=~/in/vocab.txt"]
    assert convert("import-hf", *options) == 0
    assert convert("export-hf", "--checkpoint=~/out", "--output=~/back") == 0
    assert (tmp_path / "back" / "vocab.txt").exists()
    assert convert("verify", "--checkpoint=~/out", "--golden=~/no.npz") == 2
    assert f"cannot read {tmp_path}/no.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--input=gbk\udcce", "--output=out"],
            r"not UTF-8: '--input=gbk\\udcce'.* rename a",
        ),
        (["--input=in", "--output=gbk\udcce"], r"not UTF-8: '--output=gbk\\udcce'"),
        (["--input=in", "--output=o", "--vocabulary=\udcce/vocab.txt"], "argument 4 is not UTF-8"),
        (["--input=in", "--output=back\\slash"], "a backslash or bytes that are not UTF-8"),
        (["--input=gs://bucket/in", "--output=out"], "gs://bucket/in is not on this machine"),
        (["--input=in", "--output=gs://bucket/out"], "gs://bucket/out is not on this machine"),
        (
            ["--input=in", "--output=in/config.json/out"],
            "cannot write .*: File exists .*config.json",
        ),
        (["--input=in", f"--output={'a' * 250}"], "cannot write .*: File name too long"),
        (["--input=nowhere", "--output=out"], "nowhere is not a directory"),
        (["--input=in", "--output=in"], "in exists; remove it"),
    ],
)
def test_paths_that_cannot_be(tensors, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in", tensors)
    assert convert("import-hf", *options) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_is_read_is_never_removed(tensors, tmp_path, capsys):
    """Even if its name is the temporary name of an interrupted import."""
    source = write(tmp_path / "x.partial", tensors)
    command = ["import-hf", "--input", str(source), "--output", str(tmp_path / "x")]
    assert convert(*command) == 2
    assert re.search("x.partial is where .*/x would be written", capsys.readouterr().err)
    assert len(list(source.iterdir())) == 3
    other = write(tmp_path / "in", tensors)
    words = ["--vocabulary", str(source / "vocab.txt")]
    assert convert(*command[:1], "--input", str(other), *command[3:], *words) == 2
    assert len(list(source.iterdir())) == 3


@pytest.mark.parametrize("there", [True, False])
def test_an_output_that_is_a_link(tensors, tmp_path, there):
    """The link's target, an empty or missing directory, is written to."""
    if there:
        (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    source = write(tmp_path / "in", tensors)
    assert convert("import-hf", "--input", str(source), "--output", str(tmp_path / "out")) == 0
    assert (tmp_path / "out").is_symlink()
    assert open_checkpoint(tmp_path / "disk").config.num_heads == 4
