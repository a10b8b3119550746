"""A claim from the texts to the report, with a few steps a run."""

import json

import pytest

from claims.__main__ import main

FEW_STEPS = ["--seeds", "1", "--gin.TRAIN_STEPS=2", "--gin.EVAL_EVERY=2", "--gin.LOG_EVERY=1"]


@pytest.mark.slow
def test_two_claims(tmp_path, capfd):
    command = ["--output", str(tmp_path), "--claims", "be", *FEW_STEPS]
    assert main(command) == 0
    assert capfd.readouterr().out.count("== ") == 4  # structbert, plugged, scratch, decoder_alone
    found = json.loads((tmp_path / "claims.json").read_text())
    values = found["e"]["quantities"][0]["values"]
    assert set(values) == {"scratch", "plugged", "decoder_alone"}
    assert found["b"]["quantities"][0]["values"]["scratch"] == values["scratch"]
    assert (tmp_path / "claim_e.png").exists()

    assert main(command) == 0  # all is there
    assert "== " not in capfd.readouterr().out
    assert json.loads((tmp_path / "claims.json").read_text()) == found

    assert main([*command, "--gin.LEARNING_RATE=1e-3"]) == 2
    assert "holds a run of other settings" in capfd.readouterr().err


def test_what_is_not_there(capsys):
    assert main(["--claims", "bz"]) == 2
    assert "there is no 'z'" in capsys.readouterr().err
    assert main(["--seeds", "0"]) == 2
    assert "--seeds must be 1 or more" in capsys.readouterr().err
