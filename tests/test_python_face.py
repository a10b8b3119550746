"""The Python interface, as documented in docs/python.md."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import plug_jax
from plug_jax.clue.tasks import find_task
from plug_jax.inference.generator import generate
from plug_jax.inference.jobs import Job, run
from plug_jax.inference.prediction import Prediction
from plug_jax.inference.rows import Row
from plug_jax.tasks.clue import clue_format
from tests.downstream.tiny_encoder import write_encoder, write_fine_tuned
from tests.stored_model import write_stored_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def stage2(tmp_path_factory):
    return write_stored_model(tmp_path_factory.mktemp("stage2"))


@pytest.fixture(scope="module")
def writer(stage2):
    return plug_jax.load(stage2)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return plug_jax.load(write_stored_model(tmp_path_factory.mktemp("stage1"), decoder=False))


@pytest.fixture(scope="module")
def labels_of_pairs(tmp_path_factory):
    """A MODEL_DIR fine-tuned for AFQMC."""
    directory = tmp_path_factory.mktemp("runs") / "afqmc"
    return write_fine_tuned(directory, "clue_afqmc", clue_format(find_task("afqmc"), 32))


def test_importing_it_is_light_and_every_name_is_there():
    program = """
import sys, plug_jax
assert {"jax", "tensorflow", "numpy", "flax"} & set(sys.modules) == set()
assert set(plug_jax.__all__) <= set(dir(plug_jax))
plug_jax.PlugError
assert {"jax", "tensorflow", "numpy", "flax"} & set(sys.modules) == set()
for name in plug_jax.__all__:
    assert getattr(plug_jax, name) is not None, name
assert "tensorflow" in sys.modules
from plug_jax import *
assert Model is plug_jax.Model and load.__module__ == "plug_jax.inference.loaded"
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    with pytest.raises(AttributeError, match="module 'plug_jax' has no attribute 'lod'"):
        _ = plug_jax.lod


def test_texts_are_those_of_the_command(writer):
    [text] = writer.generate("天地", max_new_tokens=6, seed=3)
    options = plug_jax.GenerationOptions(max_new_tokens=6, seed=3)
    [[expected]] = generate(writer._placed, ["天地"], options)
    assert dataclasses.replace(text, log_probs=[], log_prob=0, score=0) == dataclasses.replace(
        expected, log_probs=[], log_prob=0, score=0
    )
    assert text.log_prob == pytest.approx(expected.log_prob, abs=1e-5)
    assert writer.generate("天地", options) == [text]
    [four] = writer.generate(["天地"], options, num_samples=4)
    assert len({one.text for one in four}) > 1
    assert four[0].ids == text.ids
    *_, last = writer.stream("天地", options)
    assert last.ids == text.ids


def test_a_prompt_of_a_list_gets_what_it_gets_alone(writer):
    """For lists of any length, and prompts of any length."""
    small = plug_jax.Model(writer._saved, writer._placed, batch_size=2)
    prompts = ["天地", "人" * 40, "马", "天地", "风花雪"]
    together = small.generate(prompts, max_new_tokens=5, seed=9)
    for prompt, texts in zip(prompts, together, strict=True):
        assert [t.ids for t in texts] == [
            t.ids for t in small.generate(prompt, max_new_tokens=5, seed=9)
        ]
    assert writer.generate([]) == []


def test_scores_are_log_likelihoods(writer):
    [text] = writer.generate("天地", max_new_tokens=6, temperature=0)
    score = writer.score("天地", text.text, sep=text.stopped)
    assert score.log_likelihood == pytest.approx(text.log_prob, abs=1e-4)
    assert score.tokens == len(text.log_probs)
    one, two = writer.score("天地", ["人", "马牛"])
    assert (one.tokens, two.tokens) == (2, 3)
    aligned = writer.score(["天地", "日"], ["人", "马牛"])
    assert aligned[0].log_likelihood == pytest.approx(one.log_likelihood, abs=1e-5)
    assert aligned[1].log_likelihood != pytest.approx(two.log_likelihood, abs=1e-5)
    lists = writer.score(["天地", "日"], [["人", "马牛"], ["月"]])
    assert [len(scores) for scores in lists] == [2, 1]
    assert lists[0][1].log_likelihood == pytest.approx(two.log_likelihood, abs=1e-5)
    with pytest.raises(plug_jax.PlugError, match="there are 2 prompts and 1 targets"):
        writer.score(["天", "地"], ["人"])


def test_zero_shot_labels_are_given(writer):
    found = writer.classify("天地", labels=["大", "小"], template="{label}人")
    assert found.prediction in found.probabilities
    assert sum(found.probabilities.values()) == pytest.approx(1)
    words = writer.classify(["天地"], labels={"a": "大", "b": "小"}, template="{label}人")
    assert list(words[0].probabilities) == ["a", "b"]
    assert [*words[0].probabilities.values()] == pytest.approx([*found.probabilities.values()])
    with pytest.raises(plug_jax.PlugError, match="give the labels to choose from"):
        writer.classify("天地")
    with pytest.raises(plug_jax.PlugError, match="text_pair is read only where a template has"):
        writer.classify("天地", "人", labels=["大", "小"])
    both = {"labels": ["大", "小"], "prompt_template": "{text}{text_pair}"}
    assert writer.classify("天", "地", **both) == writer.classify("天地", labels=["大", "小"])
    with pytest.raises(plug_jax.PlugError, match="there is no option tempalte"):
        writer.classify("天地", labels=["大", "小"], tempalte="{label}")


def test_a_fine_tuned_model_classifies(labels_of_pairs):
    model = plug_jax.load(labels_of_pairs)
    assert model.labels == ("0", "1")
    found = model.classify("怎么还款", "还款的方法")
    rows = [{"text": "怎么还款", "text_pair": "还款的方法"}]
    [row] = run(Job(checkpoint=str(labels_of_pairs), rows=[Row(rows[0])]), Prediction())
    assert found.prediction == row["prediction"]
    assert found.probabilities == pytest.approx(row["probabilities"])
    again = model.classify(["怎么还款"] * 2, ["还款的方法", "怎么还款"])
    assert again[0].probabilities == pytest.approx(found.probabilities, abs=1e-6)
    assert again[1].probabilities != pytest.approx(found.probabilities, abs=1e-6)
    assert model.predict(rows)[0].keys() == {"prediction", "probabilities"}
    assert model.embed("怎么还款").shape == (32,)
    for wrong, message in (
        (lambda: model.classify("怎", labels=["a", "b"]), "answers with its own head"),
        (lambda: model.classify("怎", template="x"), "template: of zero-shot"),
        (lambda: model.classify(["怎"], ["a", "b"]), "there are 1 texts and 2 text_pairs"),
        (lambda: model.generate("怎"), "fine-tuned for 'clue_afqmc'.*neither generates"),
        (lambda: model.fill_mask("[MASK]"), "its masked LM head was not trained with it"),
        (lambda: model.predict([{"n": 1}]), "a row needs `text`"),
        (lambda: model.predict([{"text": None}]), "field 'text' must hold text, not null"),
        (lambda: model.predict("怎"), "there must be a list of rows, dicts .*, not str"),
        (lambda: model.predict([rows[0], "怎"]), r"list of rows.*; number 1 \(from 0\) is str"),
    ):
        with pytest.raises(plug_jax.PlugError, match=message):
            wrong()


def test_what_a_model_cannot_do_is_said(encoder, writer, tmp_path):
    for wrong, message in (
        (lambda: encoder.generate("天"), "has no decoder.*`plug-jax embed`"),
        (lambda: encoder.score("天", "地"), "has no decoder"),
        (lambda: encoder.classify("天"), "was not fine-tuned for a task"),
        (lambda: encoder.classify("天", labels=["a", "b"]), "has no decoder"),
        (lambda: encoder.predict([{}]), "was not fine-tuned for a task"),
        (lambda: writer.labels, "was not fine-tuned for a task"),
        (lambda: writer.generate("天", max_tokens=1), "no option max_tokens; .*max_new_tokens"),
        (lambda: writer.generate("天", plug_jax.MaskOptions()), "must be of GenerationOptions"),
        (lambda: writer.generate(["天", "人" * 99]), r"number 1 \(from 0\): a prompt has 99"),
        (lambda: writer.generate(["天", None]), r"number 1 \(from 0\) is not text but NoneType"),
        (lambda: writer.stream("天", num_samples=2), "a stream is one sampled text"),
        (lambda: plug_jax.load(tmp_path), "no checkpoint in"),
        (lambda: plug_jax.load(tmp_path, batch_size=0), "batch_size is 0"),
        (lambda: plug_jax.load(tmp_path, batch_size="3"), "batch_size is '3'"),
        (lambda: plug_jax.load(tmp_path, verify="no"), "verify is 'no'; it must be True or False"),
        (lambda: plug_jax.load(None), "a checkpoint is a path, not NoneType"),
        (lambda: plug_jax.load(encoder._saved.path, mesh={1: 2}), "no option 1"),
        (lambda: writer.generate(None), "a text or a list of them, not NoneType"),
        (lambda: encoder.embed(b"abc"), "a text or a list of them, not bytes"),
        (lambda: encoder.embed({"a": 1}), "a text or a list of them, not dict"),
        (
            lambda: encoder.encode("天", max_length=4.5),
            "max_length must be .*, not 4.5",
        ),
        (lambda: encoder.encode("天\ud800"), "half of a surrogate pair"),
        (lambda: writer.stream(["天", "地"]), "one prompt, a text, not list"),
        (lambda: writer.score(["天", "地"], "ab"), "has a list of targets, not one text"),
        (lambda: writer.score("天", 3), "not int"),
        (lambda: writer.classify("天", labels="天地"), "labels are a list of texts, not one"),
        (lambda: writer.classify("天", labels=5), "not int"),
    ):
        with pytest.raises(plug_jax.PlugError, match=message):
            wrong()


def test_a_mesh_gives_the_same(stage2, writer):
    mesh = plug_jax.Partitioner(data=1, fsdp=2, devices=tuple(jax.devices()[:2]))
    spread = plug_jax.load(stage2, mesh=mesh)
    texts = ["天地人", "马" * 40, "日月"]
    np.testing.assert_allclose(spread.embed(texts), writer.embed(texts), atol=1e-5)
    [here], [there] = (model.fill_mask("天[MASK]人", top_k=0) for model in (writer, spread))
    np.testing.assert_allclose(
        [c.probability for c in here.candidates],
        [c.probability for c in there.candidates],
        atol=1e-5,
    )
    options = {"max_new_tokens": 5, "temperature": 0}
    assert [t.text for [t] in spread.generate(texts, **options)] == [
        t.text for [t] in writer.generate(texts, **options)
    ]
    for wrong, message in (
        ({"mesh": {"fdsp": 2}}, "there is no option fdsp"),
        ({"mesh": {"fsdp": 3}}, "does not match the 8 devices"),
        ({"mesh": 2}, "mesh must be sizes such as"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'bfloat16'"),
    ):
        with pytest.raises(plug_jax.PlugError, match=message):
            plug_jax.load(stage2, **wrong)
    everywhere = plug_jax.load(stage2, mesh={"data": 4, "tensor": 2})
    np.testing.assert_allclose(everywhere.embed(texts), writer.embed(texts), atol=1e-5)


def test_another_dtype(stage2, writer):
    half = plug_jax.load(stage2, dtype="bfloat16")
    assert half.config.dtype == "bfloat16"
    vector = half.embed("天地人")
    assert vector.dtype == np.float32
    assert 0 < np.abs(vector - writer.embed("天地人")).max() < 0.2


def test_int8(stage2, writer):
    pytest.importorskip("qwix")
    small = plug_jax.load(stage2, int8=True)
    difference = np.abs(small.embed("天地人") - writer.embed("天地人")).max()
    assert 0 < difference < 0.05
    assert len(small.generate("天地", max_new_tokens=3)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/python.md", "README.md"])
def test_the_documented_examples_run(page, labels_of_pairs, tmp_path, monkeypatch, capsys):
    """In order, in a directory with the models that they name."""
    write_encoder(tmp_path / "run1", max_positions=512)
    write_encoder(tmp_path / "run2", max_positions=512, num_decoder_layers=1)
    shutil.copytree(labels_of_pairs, tmp_path / "finetuned" / "afqmc")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    ours = [block for block in blocks if "plug_jax" in block or "model." in block]
    assert ours
    for block in ours:
        exec(compile(block, page, "exec"), names)
    assert capsys.readouterr().out
