"""Incomplete downloads: each is named for what it is, with what to do."""

import json
import re
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from plug_jax.cli import main
from plug_jax.convert.sources import open_hf, open_plug
from plug_jax.convert.tensor_files import read_safetensors, read_torch_file
from plug_jax.errors import PlugError
from tests.convert import weights

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 1302227304\n"
)
IN_PLACE = {
    "pointer": (
        POINTER,
        "is a git-lfs pointer: it stands for a file of 1,302,227,304 bytes.*`git lfs pull`",
    ),
    "page": (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<title>404</title>", "is a web page.*fetch the file"),
    "empty": (b"", "is empty.*fetch it again"),
    "answer": (b"Invalid username or password.", "is a text.*'Invalid username or password.'"),
    "answer in JSON": (b'{"error": "Entry not found"}', "is a text.*Entry not found"),
    "zeros": (bytes(4096), "holds only zeros.*fetch it again"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(40), "is a gzip archive; unpack it"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(40), "is an HDF5 file.*fetch the PyTorch"),
    "tar": (b"x" + bytes(256) + b"ustar\x0000" + bytes(300), "is a tar archive"),
}
FILES = ["model.safetensors", "pytorch_model.bin", "mp_rank_00_model_states.pt"]


def open_any(path):
    return (open_plug if path.suffix == ".pt" else open_hf)(path.parent)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", IN_PLACE)
def test_what_lies_in_the_place_of_weights(tmp_path, file, kind):
    """Detected before PyTorch is imported, so torch is not needed."""
    content, message = IN_PLACE[kind]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(PlugError, match=f"{file} {message}"):
        open_any(tmp_path / file)


@pytest.mark.parametrize("file", FILES)
def test_links_and_unfinished_downloads(tmp_path, file):
    path = tmp_path / file
    path.symlink_to("blobs/4d7a")
    with pytest.raises(PlugError, match=f"{file} is a link to blobs/4d7a, which does not exist"):
        open_any(path)
    path.unlink()
    path.write_bytes(b"anything")
    (tmp_path / f"{file}.aria2").touch()
    with pytest.raises(PlugError, match=f"{file} is cut short: {file}.aria2 says so"):
        open_any(path)


@pytest.mark.parametrize("file", FILES[1:])
def test_archives_that_are_no_pytorch_file(tmp_path, file):
    path = tmp_path / file
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/readme.txt", "hello")
    with pytest.raises(PlugError, match="is a zip archive of weights/readme.txt ...; unpack it"):
        open_any(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(PlugError, match="is cut short"):
        open_any(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", "hello" * 100)
    with pytest.raises(PlugError, match="was compressed again"):
        open_any(path)
    path.write_bytes(b"\x01\x02\x03\xff" * 5)
    with pytest.raises(PlugError, match=r"is not a PyTorch file: it begins with b'\\x01"):
        open_any(path)


def test_a_safetensors_file_cut_anywhere(tmp_path):
    path = tmp_path / "model.safetensors"
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}
    save_file(values, path)
    whole = path.read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(PlugError, match="is cut short|holds only zeros"):
            read_safetensors(path)
    path.write_bytes(whole[:-4])
    with pytest.raises(PlugError, match=f"{len(whole) - 4} of {len(whole)} bytes"):
        read_safetensors(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(PlugError, match=f"has {len(whole) + 4} bytes, .* tells of {len(whole)}"):
        read_safetensors(path)
    path.write_bytes(whole)
    weights.same({name: t.read() for name, t in read_safetensors(path).items()}, values)


def test_weights_under_another_name(tmp_path):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(PlugError, match="is a safetensors file under another name; rename it"):
        open_hf(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04\x00\x00\x08\x08")
    with pytest.raises(PlugError, match="is a PyTorch file under another name; rename it"):
        open_hf(tmp_path)
    header = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"8" * 8
    )
    with pytest.raises(PlugError, match="is a damaged safetensors file"):
        open_hf(tmp_path)


INDICES = {
    "pointer": (POINTER, "is a git-lfs pointer"),
    "page": (b"<html>", "is a web page"),
    "empty": (b"", "is empty"),
    "cut": (b'{"weight_map": {"a": ', "is not JSON, or cut short"),
    "list": (b"[]", "is not a JSON object"),
    "other": (b'{"error": "Entry not found"}', "is not an index of shards"),
    "none": (b'{"weight_map": {}}', "is not an index of shards"),
    "odd": (b'{"weight_map": {"a": 1}}', "is not an index of shards"),
    "elsewhere": (b'{"weight_map": {"a": "../../x"}}', "is not an index of shards"),
}


@pytest.mark.parametrize("file", FILES[:2])
@pytest.mark.parametrize("kind", INDICES)
def test_an_index_that_is_none(tmp_path, file, kind):
    content, message = INDICES[kind]
    (tmp_path / f"{file}.index.json").write_bytes(content)
    with pytest.raises(PlugError, match=f"{file}.index.json {message}"):
        open_hf(tmp_path)


def test_shards_that_do_not_fit_their_index(tmp_path):
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for i, name in enumerate(names):
        save_file({f"t{i}": np.full(2, i, np.float32)}, tmp_path / name)
    with pytest.raises(PlugError, match="holds model-00001-of-.*, a shard, and no index of them"):
        open_hf(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    places = {f"t{i}": name for i, name in enumerate(names)}
    index.write_text(json.dumps({"weight_map": places}))
    assert open_hf(tmp_path).ranks[0]["t2"].read().tolist() == [2, 2]
    index.write_text(json.dumps({"weight_map": places | {"t9": names[1]}}))
    with pytest.raises(PlugError, match="model-00002-of-00003.safetensors lacks t9, which model.s"):
        open_hf(tmp_path)
    save_file({"t1": np.zeros(2, np.float32), "t0": np.zeros(2, np.float32)}, tmp_path / names[1])
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(PlugError, match="00002-of-00003.safetensors holds t0, and so does another"):
        open_hf(tmp_path)
    for name in names[1:]:
        (tmp_path / name).unlink()
    with pytest.raises(
        PlugError, match=f"lacks {names[1]}, {names[2]}, which model.safetensors.in"
    ):
        open_hf(tmp_path)


def test_a_directory_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(PlugError, match="neither model.safetensors nor .*; it holds tf_model.h5"):
        open_hf(tmp_path)


@pytest.mark.parametrize("content", [b"", POINTER, b"gone", b"\xce\xde"])
def test_a_file_that_names_no_checkpoint(tmp_path, content):
    (tmp_path / "latest").write_bytes(content)
    with pytest.raises(
        PlugError, match="latest (is empty|is a git-lfs|names '.*', which is not a dir)"
    ):
        open_plug(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "vocab.txt"])
def test_small_files_too(tmp_path, capsys, name):
    tensors = weights.state_dict(weights.bert_config(), "bert", rows=90)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    for content, message in (IN_PLACE[kind] for kind in ("pointer", "page", "empty")):
        (tmp_path / name).write_bytes(content)
        command = ["import-hf", "--input", str(tmp_path), "--output", str(tmp_path / "out")]
        assert main.main(["convert", *command]) == 2
        assert re.search(f"error: .*{name} {message}", capsys.readouterr().err)
    (tmp_path / name).write_bytes(b'{"a": ')
    assert main.main(["convert", *command]) == 2


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pytorch_file_cut_anywhere(tmp_path, legacy):
    import torch

    path = tmp_path / "pytorch_model.bin"
    content = {"a": torch.ones(2, 3), "b": {"c": torch.arange(4)}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(PlugError, match="is cut short|not a PyTorch file: it begins with b'P"):
            read_torch_file(path)
    path.write_bytes(whole)
    assert read_torch_file(path)["b"]["c"].read().tolist() == [0, 1, 2, 3]
