"""`plug-jax convert verify` on a Hugging Face checkpoint, and its errors."""

import io
import json
import zipfile

import numpy as np
import pytest

from plug_jax.cli import main
from plug_jax.convert.from_torch import ImportOptions, import_weights
from plug_jax.convert.sources import open_hf
from plug_jax.convert.verify import verify
from plug_jax.errors import PlugError


@pytest.fixture(scope="module")
def checkpoint(golden_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("verify") / "out"
    import_weights(open_hf(golden_dir / "structbert_hf"), output, ImportOptions())
    return output


@pytest.fixture
def golden(golden_dir):
    with np.load(golden_dir / "structbert_hf" / "golden.npz") as file:
        return dict(file)


def run(checkpoint, tmp_path, arrays, *options):
    path = tmp_path / "golden.npz"
    np.savez(path, **arrays)
    command = ["convert", "verify", "--checkpoint", str(checkpoint), "--golden", str(path)]
    return main.main([*command, *options])


def test_equal_outputs_pass_and_others_fail(checkpoint, golden, tmp_path, capsys):
    assert run(checkpoint, tmp_path, golden, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    differences = result["max_absolute_difference"]
    assert differences.pop("decoder_logits") is None
    assert all(0 < difference < 1e-5 for difference in differences.values())
    # Padding is not compared; everything else is.
    padding = golden["attention_mask"] == 0
    golden["last_hidden_state"][padding] = 7.0
    assert run(checkpoint, tmp_path, golden) == 0
    assert "decoder_logits   not compared" in capsys.readouterr().out
    golden["seq_relationship_logits"][2, 1] += 0.5
    assert run(checkpoint, tmp_path, golden) == 1
    shown = capsys.readouterr().out
    assert "sentence_logits  0.5" in shown
    assert "FAILED: over 0.0001" in shown
    assert run(checkpoint, tmp_path, golden, "--tolerance", "0.6") == 0
    golden["seq_relationship_logits"][2, 1] = np.nan
    capsys.readouterr()
    assert run(checkpoint, tmp_path, golden, "--tolerance", "1e9", "--json") == 1
    assert (
        json.loads(capsys.readouterr().out)["max_absolute_difference"]["sentence_logits"] == "nan"
    )


BROKEN = {
    "no input": (lambda a: a.pop("attention_mask"), "lacks attention_mask"),
    "no output": (
        lambda a: [a.pop(n) for n in list(a) if n.endswith(("logits", "state", "output"))],
        "no output to compare",
    ),
    "unknown": (lambda a: a.update(mlm_logit=np.zeros(1)), "holds mlm_logit; known are"),
    "too long": (
        lambda a: a.update(input_ids=np.zeros((3, 65), np.int64)),
        "input_ids is 65 long; this model has 64 positions",
    ),
    "no such id": (lambda a: a["input_ids"].fill(600), "input_ids holds 600; .* 0 to 511"),
    "no such type": (lambda a: a["token_type_ids"].fill(2), "token_type_ids holds 2"),
    "a decoder": (lambda a: a.update(decoder_logits=np.zeros(1)), "lacks decoder_input_ids"),
    "floats": (lambda a: a.update(input_ids=np.zeros((3, 24))), "float64 .* should be integers"),
    "no text": (lambda a: a["attention_mask"].fill(0), "attention_mask is 0 everywhere"),
    "a number": (lambda a: a.update(mlm_logits=np.float32(1)), r"mlm_logits is float32 \(\)"),
    "empty": (
        lambda a: a.update(mlm_logits=np.zeros((3, 24, 0))),
        r"mlm_logits is float64 \(3, 24, 0\); should be floats",
    ),
    "texts": (lambda a: a.update(pooled_output=np.full((3, 8), "天")), "pooled_output is <U1"),
    "fewer classes": (
        lambda a: a.update(seq_relationship_logits=a["seq_relationship_logits"][:, :1]),
        r"sentence_logits is \(3, 1\); this model gives \(3, ",
    ),
    "a narrower state": (
        lambda a: a.update(last_hidden_state=a["last_hidden_state"][..., :5]),
        r"encoder_hidden is \(3, 24, 5\); this model gives",
    ),
    "shapes": (lambda a: a.update(mlm_logits=np.zeros((3, 9, 512))), r"mlm_logits is \(3, 9"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_file_that_does_not_fit(checkpoint, golden, tmp_path, broken):
    change, message = BROKEN[broken]
    change(golden)
    np.savez(tmp_path / "golden.npz", **golden)
    with pytest.raises(PlugError, match=message):
        verify(checkpoint, tmp_path / "golden.npz", tolerance=1e-4)


def test_no_file(checkpoint, tmp_path):
    with pytest.raises(PlugError, match="cannot read .*nothing.npz"):
        verify(checkpoint, tmp_path / "nothing.npz", tolerance=1e-4)


def npz_of_shape(size):
    """A file whose header declares an array of this size."""
    member, content = io.BytesIO(), io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("hidden.npy", member.getvalue())
    return content.getvalue()


def test_a_file_that_did_not_arrive_whole(checkpoint, golden, tmp_path):
    path = tmp_path / "golden.npz"
    np.savez(path, **golden)
    whole = path.read_bytes()
    for content, message in (
        (b"version https://git-lfs.github.com/spec/v1\nsize 7\n", "is a git-lfs pointer"),
        (b"<html>", "is a web page"),
        (b"", "is empty"),
        (whole[:-100], "cannot read .* as an .npz file"),
        (whole[:400], "cannot read .* as an .npz file"),
        (b"\x93NUMPY" + whole[:60], "cannot read .* as an .npz file"),
        (npz_of_shape(10**12), "cannot read .* as an .npz file: Unable to allocate"),
        (npz_of_shape(10**20), "cannot read .* as an .npz file: .* too large"),
    ):
        path.write_bytes(content)
        with pytest.raises(PlugError, match=f"golden.npz {message}|{message}"):
            verify(checkpoint, path, tolerance=1e-4)


@pytest.mark.parametrize("tolerance", ["nan", "inf", "-1"])
def test_a_tolerance_that_is_none(tmp_path, capsys, tolerance):
    files = ["--checkpoint", str(tmp_path), "--golden", str(tmp_path / "golden.npz")]
    assert main.main(["convert", "verify", *files, f"--tolerance={tolerance}"]) == 2
    assert (
        f"--tolerance {float(tolerance)}: it must be a number of 0 or more"
        in capsys.readouterr().err
    )
