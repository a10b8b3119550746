"""export-hf of fine-tuned checkpoints: heads, config.json, and transformers' own logits."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from plug_jax.clue.tasks import find_task
from plug_jax.convert.to_torch import export_hf
from plug_jax.inference.fine_tuned import FineTunedModel
from plug_jax.tasks.clue import clue_format
from tests.clue.official import FOLDER_OF, write_clue
from tests.downstream.tiny_encoder import write_fine_tuned

# A task for each transformers model class; the name of the head's layer, and its rows.
HEADS = {
    "tnews": ("BertForSequenceClassification", "classifier", 15),
    "c3": ("BertForMultipleChoice", "classifier", 1),
    "cmrc2018": ("BertForQuestionAnswering", "qa_outputs", 2),
    "cluener": ("BertForTokenClassification", "classifier", 31),
}


def exported(directory: Path, name: str, *, use_pooler: bool) -> tuple[Path, Path]:
    """A MODEL_DIR and its export."""
    lengths = {"max_question": 16, "stride": 8} if name == "cmrc2018" else {}
    format = clue_format(find_task(name), 40, **lengths)
    run = write_fine_tuned(
        directory / "run", f"clue_{name}", format, norm_placement="post", use_pooler=use_pooler
    )
    export_hf(run, directory / "out")
    return run, directory / "out"


@pytest.mark.parametrize("use_pooler", [False, True])
@pytest.mark.parametrize("name", ["tnews", "cmrc2018"])
def test_heads_have_the_names_of_transformers(tmp_path, name, use_pooler):
    run, out = exported(tmp_path, name, use_pooler=use_pooler)
    tensors = load_file(out / "model.safetensors")
    architecture, layer, rows = HEADS[name]
    params = FineTunedModel.load(run).params
    head = params["heads"]["classification" if name == "tnews" else "span"]
    assert tensors[f"{layer}.weight"].shape == (rows, 32)
    np.testing.assert_array_equal(
        tensors[f"{layer}.weight"], np.asarray(head["output"]["kernel"]).T
    )
    if name == "tnews":
        pooler = params["pooler"] if use_pooler else head["dense"]
        kernel = np.asarray(pooler["kernel"]).T
        np.testing.assert_array_equal(tensors["bert.pooler.dense.weight"], kernel)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [architecture]
    labels = find_task(name).labels
    assert config.get("label2id", {}) == {label: i for i, label in enumerate(labels)}
    assert config.get("id2label", {}) == {str(i): label for i, label in enumerate(labels)}


@pytest.mark.parity
@pytest.mark.parametrize("name", HEADS)
def test_logits_equal_those_of_transformers(tmp_path, name):
    torch = pytest.importorskip("torch")
    transformers = importlib.import_module("transformers")
    run, out = exported(tmp_path, name, use_pooler=False)
    write_clue(tmp_path / "clue", {FOLDER_OF[name]})
    records = find_task(name).read(tmp_path / "clue", "validation").records[:2]
    ours = FineTunedModel.load(run)
    examples = ours.examples(ours.format.examples(records, ours.vocabulary))
    theirs = getattr(transformers, HEADS[name][0]).from_pretrained(out).eval()
    for example in examples:
        inputs = {
            "input_ids": example["encoder_input_tokens"],
            "token_type_ids": example["encoder_token_types"],
            "attention_mask": (example["encoder_segment_ids"] > 0).astype(np.int32),
        }
        choice = name == "c3"  # [1, choices, tokens]; [1, tokens] for others
        with torch.no_grad():
            made = theirs(
                **{k: torch.tensor(v[None] if choice else v).long() for k, v in inputs.items()}
            )
        if name == "cmrc2018":
            expected = torch.stack([made.start_logits, made.end_logits], dim=1)
        else:
            expected = made.logits
        [found] = next(iter(ours.outputs([example]).values()))
        expected = expected[0].numpy()
        found = found[tuple(slice(size) for size in expected.shape)]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    if name in ("tnews", "cluener"):
        assert list(theirs.config.id2label.values()) == list(ours.format.make_objective().labels)
