"""The claims from texts to report, with a few steps per run."""

import json
from pathlib import Path

import pytest

from claims import runs
from claims.__main__ import main

FEW_STEPS = [
    "--seeds=1",
    "--gin.TRAIN_STEPS=2",
    "--gin.EVAL_EVERY=2",
    "--gin.LOG_EVERY=1",
    "--gin.BATCH_SIZE=8",  # a row per test device
]


@pytest.fixture
def few_held_out_texts(monkeypatch):
    write_corpus = runs.write_corpus

    def write_some(directory):
        corpus = write_corpus(directory)
        articles = corpus.validation.read_text().split("\n\n")
        corpus.validation.write_text("\n\n".join(articles[:5]))
        return corpus

    monkeypatch.setattr(runs, "write_corpus", write_some)


@pytest.mark.long
def test_two_claims(tmp_path, monkeypatch, capfd, few_held_out_texts):
    monkeypatch.chdir(Path(__file__).parents[2])  # so that the change made by the command is undone
    command = ["--output", str(tmp_path), "--claims", "be", *FEW_STEPS]
    assert main(command) == 0
    trained = capfd.readouterr().out.count("== ")
    assert trained == 5  # structbert, plugged, scratch, scratch_as_plugged, decoder_alone
    found = json.loads((tmp_path / "claims.json").read_text())
    values = found["e"]["quantities"][0]["values"]
    assert set(values) == {"scratch", "plugged", "decoder_alone"}
    assert found["b"]["quantities"][0]["values"]["scratch"] == values["scratch"]
    assert (tmp_path / "claim_e.png").exists()

    assert main(command) == 0  # everything is there
    assert "== " not in capfd.readouterr().out
    assert json.loads((tmp_path / "claims.json").read_text()) == found

    assert main([*command, "--gin.LEARNING_RATE=1e-3"]) == 2
    assert "holds a run of other settings" in capfd.readouterr().err

    assert main(["--output", str(tmp_path), "--report", *FEW_STEPS]) == 0
    assert "(d) perplexity at 8" in capfd.readouterr().err  # not trained


def test_what_is_not_there(capsys):
    assert main(["--claims", "bz"]) == 2
    assert "there is no 'z'" in capsys.readouterr().err
    assert main(["--seeds", "0"]) == 2
    assert "--seeds must be 1 or more" in capsys.readouterr().err
