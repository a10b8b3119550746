"""`plug-jax embed` and `plug-jax fill-mask`, as commands."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

import plug_jax
from plug_jax.cli.main import main
from plug_jax.errors import PlugError
from plug_jax.inference.vector_file import write_vectors
from tests.small_disk import largest_file
from tests.stored_model import write_stored_model


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    return write_stored_model(tmp_path_factory.mktemp("stage1"), decoder=False)


@pytest.fixture(scope="module")
def model(stage1):
    return plug_jax.load(stage1)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One process: JAX has started already and cannot look for other processes."""
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_text_is_embedded(stage1, model, capsys):
    assert main(["embed", "--checkpoint", str(stage1), "--text", "天地", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["total"] == {"rows": 1, "errors": 0, "shortened": 0}
    np.testing.assert_allclose(said["rows"][0]["embedding"], model.embed("天地"), atol=1e-6)
    assert main(["embed", "--checkpoint", str(stage1), "--text", "天地", "--normalize"]) == 0
    assert "32 numbers of length 1.0000\nrows 1  errors 0" in capsys.readouterr().out


def test_lines_of_text_become_a_numpy_file(stage1, model, tmp_path, capsys):
    source, output = tmp_path / "texts.txt.gz", tmp_path / "vectors.npy"
    source.write_bytes(gzip.compress(f"天地\n\n{'人' * 60}\n马\n".encode()))
    embed = ["embed", "--checkpoint", str(stage1), "--input", str(source), "--pooling", "cls"]
    assert main([*embed, "--output", str(output)]) == 3
    said = capsys.readouterr()
    assert "rows 3  errors 1" in said.out
    assert "the first error: the text has 60 tokens" in said.err
    vectors = np.load(output)
    assert (vectors.shape, vectors.dtype) == ((3, 32), np.float32)
    np.testing.assert_allclose(
        vectors[[0, 2]], model.embed(["天地", "马"], pooling="cls"), atol=1e-6
    )
    assert np.isnan(vectors[1]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt.gz", "vectors.npy"]
    assert main([*embed, "--output", str(output)]) == 2
    assert f"{output} exists" in capsys.readouterr().err
    assert main([*embed, "--output", str(tmp_path / "no" / "vectors.npy")]) == 2
    assert "there is no directory for" in capsys.readouterr().err

    output = tmp_path / "short.npy"
    assert main([*embed, "--output", str(output), "--max_length", "12"]) == 0
    assert "errors 0  shortened 1" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(output)[1], model.embed("人" * 10, pooling="cls"), atol=1e-6)


def test_an_interrupted_file_of_vectors_is_not_there(stage1, tmp_path, monkeypatch):
    source, output = tmp_path / "texts.txt", tmp_path / "vectors.npy"
    source.write_text("天地\n", encoding="utf-8")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("plug_jax.inference.encoder.EncoderModel.vectors", interrupted)
    embed = ["embed", "--checkpoint", str(stage1), "--input", str(source), "--output", str(output)]
    assert main(embed) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_a_full_disk_is_found_before_the_work(tmp_path):
    def rows():
        raise AssertionError("asked for a row")
        yield

    output = tmp_path / "vectors.npy"
    with largest_file(1000), pytest.raises(PlugError, match=f"cannot write {output}: File too"):
        list(write_vectors(rows(), str(output), shape=(8, 32)))
    assert list(tmp_path.iterdir()) == []


def test_a_file_beside_it_is_not_taken(stage1, tmp_path, capsys):
    (tmp_path / "kept.npy.tmp").write_text("precious", encoding="utf-8")
    output = str(tmp_path / "kept.npy")
    assert main(["embed", "--checkpoint", str(stage1), "--text", "天", "--output", output]) == 2
    assert "kept.npy.tmp exists, where" in capsys.readouterr().err
    assert (tmp_path / "kept.npy.tmp").read_text(encoding="utf-8") == "precious"


def test_rows_get_their_vectors(stage1, model, tmp_path):
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": 1, "title": "天地"}\n{"id": 2}\n', encoding="utf-8")
    embed = ["embed", "--checkpoint", str(stage1), "--input", str(source), "--text_field", "title"]
    assert main([*embed, "--output", str(output)]) == 3
    first, second = lines(output)
    assert (first["id"], first["title"], second["id"]) == (1, "天地", 2)
    np.testing.assert_allclose(first["embedding"], model.embed("天地"), atol=1e-6)
    assert "no field 'title'" in second["error"]


def test_masks_are_filled(stage1, model, tmp_path, capsys):
    fill = ["fill-mask", "--checkpoint", str(stage1), "--top_k", "3"]
    assert main([*fill, "--text", "天[MASK]人[MASK]"]) == 0
    *shown, total = capsys.readouterr().out.splitlines()
    assert shown == [
        "  ".join(f"{c.piece} {c.probability:.4f}" for c in mask.candidates)
        for mask in model.fill_mask("天[MASK]人[MASK]", top_k=3)
    ]
    assert total.startswith("rows 1  errors 0")
    output = tmp_path / "out.jsonl"
    (tmp_path / "texts.txt").write_text("天[MASK]\n天\n", encoding="utf-8")
    assert main([*fill, "--input", str(tmp_path / "texts.txt"), "--output", str(output)]) == 3
    first, second = lines(output)
    assert len(first["masks"][0]["candidates"]) == 3
    assert first["masks"][0]["start"] == 1
    assert "there is no [MASK]" in second["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "--text", "天", "--pooling", "max"], "pooling must be one of 'mean', 'cls'"),
        (["embed", "--text", "天", "--input", "x"], "give either --input or --text"),
        (["embed", "--text", "天", "--max_length", "99"], "max_length is 99; it must be between"),
        (["embed"], "name what to read: either files (--input, INPUT) or a seqio task"),
        (["embed", "--input", "missing.txt"], "No file of rows matches missing.txt"),
        (["embed", "--text", "天", "--no_sep"], "unknown argument '--no_sep'"),
        (["fill-mask", "--text", "[MASK]", "--top_k", "-1"], "top_k is -1"),
        (["fill-mask", "--text", "[MASK]", "--output", "f.npy"], "'f.npy' would be JSON lines"),
        (
            ["embed", "--text", "天", "--output", "f.npz"],
            "not what .npz promises; let its name end",
        ),
        (["embed", "--text", "天", "--output", "f.NPY"], "'f.NPY' would be JSON lines"),
    ],
)
def test_mistakes(stage1, capsys, arguments, message):
    assert main([*arguments, "--checkpoint", str(stage1)]) == 2
    assert message in capsys.readouterr().err
