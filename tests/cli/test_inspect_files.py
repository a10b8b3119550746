"""`plug-jax inspect` over files that no task is registered for, and seqio's own tool."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import seqio

from plug_jax.cli.main import main
from plug_jax.data.features import PALM_FEATURES
from plug_jax.data.vocabularies import default_vocabulary, save_vocabulary
from tests.inspected_examples import make_vocabulary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return make_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def test_files_of_ones_own(vocabulary, tmp_path, capsys):
    save_vocabulary(vocabulary, tmp_path)
    for number in (1, 2):
        (tmp_path / f"{number}.txt").write_text("天地人你我，天地人。\n" * 20 + "\n我。\n")
    files = ["--input", str(tmp_path / "1.txt"), str(tmp_path / "2.txt")]
    common = [*files, "--vocabulary", str(tmp_path), "--json"]
    registered = seqio.TaskRegistry.names()
    assert main(["inspect", *common, "--stage", "2", "--format", "paragraphs"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["lengths"]["encoder"]["longest_asked"]) == ("stage2_of_input", 512)
    assert found["drops"]["document_too_short"] == 2  # the two of a single line
    assert found["shares"]["mask_rate"]["target"] == 0.15
    assert seqio.TaskRegistry.names() == registered
    assert main(["inspect", *files, "--json", "--stage", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["vocabulary"] == repr(default_vocabulary())
    assert found["shares"]["label_0"]["total"] == found["examples"] > 5
    assert found["shares"]["label_0"]["target"] == pytest.approx(1 / 3)
    missing = [
        "inspect",
        "--input",
        str(tmp_path / "3.txt"),
        "--vocabulary",
        str(tmp_path),
        "--stage",
        "1",
    ]
    assert main(missing) == 2
    assert "No text file matches" in capsys.readouterr().err
    assert main(["inspect", *common, "--stage", "1", "--split", "validation"]) == 2
    assert "no split 'validation'" in capsys.readouterr().err


def test_seqios_own_tool_runs_on_our_tasks(vocabulary, tmp_path):
    """It stops where its questions are answered with c."""
    (tmp_path / "corpus").mkdir()
    text = "天地人你我，天地人。\n" * 20
    for name in ("train.txt", "validation.txt"):
        (tmp_path / "corpus" / name).write_text(text, encoding="utf-8")
    save_vocabulary(vocabulary, tmp_path / "vocabulary")
    run = subprocess.run(
        [
            sys.executable, "-m", "seqio.scripts.inspect_tasks_main", "--module_import=tasks.demo",
            "--tasks=demo_palm", "--decode_features",
            "--sequence_length={'encoder_input_tokens': 40, 'decoder_target_tokens': 50}",
        ],
        cwd=ROOT, env={**os.environ, "PLUG_JAX_DEMO_DIR": str(tmp_path)}, text=True,
        input="\nc\nc\n", capture_output=True, check=True,
    )  # fmt: skip
    assert "*** Task: demo_palm ***" in run.stdout
    assert "*** Done Inspecting Task: demo_palm ***" in run.stdout
    assert "* Split: train *" in run.stdout and "* Split: validation *" in run.stdout
    # Tokens are decoded to one string; weights and token types pass as they are.
    shapes = dict(re.findall(r"'(\w+)': <tf\.Tensor: shape=\((\d*),?\)", run.stdout))
    assert shapes.keys() == {*PALM_FEATURES}
    decoded = {name for name, shape in shapes.items() if not shape}
    assert decoded == {name for name in PALM_FEATURES if name.endswith("_tokens")}
    assert int(shapes["encoder_token_types"]) <= 40
