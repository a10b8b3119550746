"""seqio's own inspect_tasks_main over our tasks, in a single run, which is slow."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plug_jax.data.features import PALM
from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES
from tests.tfds_data import build_tfds

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "天地人你我他她它们的，天地人你我他她它们的。"


def test_seqios_own_tool_runs_on_our_tasks(tmp_path):
    """Answering its questions with c ends it. Tasks over TFDS come first."""
    (tmp_path / "corpus").mkdir()
    for name in ("train.txt", "validation.txt"):
        (tmp_path / "corpus" / name).write_text(SENTENCE * 20, encoding="utf-8")
    (tmp_path / "vocabulary").mkdir()
    pieces = "\n".join([*SPECIAL_PIECES, *dict.fromkeys(SENTENCE)])
    (tmp_path / "vocabulary" / "vocab.txt").write_text(pieces + "\n", encoding="utf-8")
    splits = dict.fromkeys(("train", "validation", "test"), [SENTENCE * 13] * 3)
    build_tfds(tmp_path, "wiki40b/zh-cn:1.3.0", splits)
    run = subprocess.run(
        [
            sys.executable, "-m", "seqio.scripts.inspect_tasks_main",
            "--module_import=plug_jax.tasks.pretrain", "--module_import=plug_jax.tasks.demo",
            "--tasks=demo_palm,palm_wiki40b_zh", "--decode_features",
            "--sequence_length={'encoder_input_tokens': 40, 'decoder_target_tokens': 50}",
        ],
        cwd=ROOT, text=True, input="\nc\nc\nc\n\nc\nc\n", capture_output=True, check=True,
        env={
            **os.environ,
            "PLUG_JAX_DEMO_DIR": str(tmp_path),
            "PLUG_JAX_VOCABULARY": str(tmp_path / "vocabulary"),
            "TFDS_DATA_DIR": str(tmp_path),
        },
    )  # fmt: skip
    for task, splits in {"demo_palm": 2, "palm_wiki40b_zh": 3}.items():
        (output,) = re.findall(
            rf"\*\*\* Task: {task} (.*) Inspecting Task: {task}", run.stdout, re.S
        )
        assert output.count("* Split: ") == splits
        # Tokens are decoded to one string; weights and token types are unchanged.
        shapes = dict(re.findall(r"'(\w+)': <tf\.Tensor: shape=\((\d*),?\)", output))
        assert shapes.keys() == {feature.name for feature in PALM}
        decoded = {name for name, shape in shapes.items() if not shape}
        assert decoded == {one.name for one in PALM if one.name.endswith("_tokens")}
        assert int(shapes["encoder_token_types"]) <= 40
