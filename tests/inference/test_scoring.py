"""Scores against the uncached model, generation and evaluation."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.errors import PlugError
from plug_jax.inference.generator import generate
from plug_jax.inference.jobs import Job, run
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.inference.rows import Row, RowSource
from plug_jax.inference.scoring import Scoring, Total
from plug_jax.objectives.stages import PALM
from plug_jax.partitioning import Partitioner
from plug_jax.tasks import pretrain
from plug_jax.training.evaluate import EvaluateConfig, evaluate_checkpoint
from plug_jax.training.step import StepConfig
from tests.inference_model import CONFIG, jitted, lively_model, lively_params, padded
from tests.stored_model import CHARACTERS, write_stored_model

CLS, SEP = 2, 3


def brute_force(prompt: list[int], target: list[int]) -> float:
    """log P(target | prompt) by the uncached model, one pair at a time."""
    params = lively_params(CONFIG)
    inputs, segments = padded([[CLS, *target[:-1]]], 48), padded([[1] * len(prompt)], 48)
    encoded = jitted(CONFIG, "encode")(params, padded([prompt], 48), segment_ids=segments)
    logits = jitted(CONFIG, "decode")(params, inputs, encoded, encoder_segment_ids=segments)
    log_probs = jax.nn.log_softmax(logits[0])
    return float(sum(log_probs[i, token] for i, token in enumerate(target)))


def scored(rows: list[dict], **options) -> list[dict]:
    """The answers for a batch, from `lively_model`."""
    work, model = Scoring(**options), lively_model()
    items = [work.prepare(model, Row(fields), 0) for fields in rows]
    return [answer.fields for answer in work.answer(model, items)]


@pytest.mark.parametrize("sep", [True, False])
def test_scores_equal_those_of_the_uncached_model(sep):
    rows = [{"prompt": "HELLO", "target": "WORLD"}, {"prompt": "A", "target": "B" * 30}]
    encode = lively_model().vocabulary.encode
    for row, score in zip(rows, scored(rows, sep=sep), strict=True):
        target = encode(row["target"]) + [SEP] * sep
        total = brute_force([CLS, *encode(row["prompt"]), SEP], target)
        assert score["log_likelihood"] == pytest.approx(total, abs=1e-4)
        assert score["tokens"] == len(target)
        assert score["mean_log_likelihood"] == score["log_likelihood"] / len(target)
        assert score["perplexity"] == pytest.approx(math.exp(-score["mean_log_likelihood"]))


def test_a_list_of_targets_gives_lists():
    row = {"prompt": "HELLO", "targets": ["WORLD", "MOON", "X"]}
    [lists] = scored([row])
    for i, target in enumerate(row["targets"]):
        [single] = scored([{"prompt": "HELLO", "target": target}])
        # A batch of other rows sums in another order: an ulp of a float32 log-likelihood.
        same = pytest.approx(single, rel=1e-5)
        assert {name: values[i] for name, values in lists.items()} == same
    [one] = scored([{"prompt": "HELLO", "target": ["MOON"]}])
    assert one["tokens"] == [5]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_generated_text_has_the_log_probability_that_it_was_written_with(temperature):
    options = GenerationOptions(max_new_tokens=20, temperature=temperature, top_k=0, num_samples=4)
    prompts = ["HELLO", "ABC", "XYZ", "Z" * 40]  # the greedy text of the last row ends by itself
    texts = generate(lively_model(), prompts, options)
    pairs = [(p, t) for p, of in zip(prompts, texts, strict=True) for t in of]
    assert {text.stopped for _, text in pairs} == {True, False}
    for stopped in (True, False):
        kind = [(prompt, text) for prompt, text in pairs if text.stopped == stopped]
        rows = [{"prompt": prompt, "target": text.text} for prompt, text in kind]
        scores = scored(rows, sep=stopped)
        assert [s["log_likelihood"] for s in scores] == pytest.approx(
            [text.log_prob for _, text in kind], abs=1e-4
        )


def test_the_total_weighs_rows_by_their_tokens():
    total = Total()
    for log_likelihood, tokens in ((-4.0, 2), ([-6.0, -2.0], [3, 1])):
        total.add({"log_likelihood": log_likelihood, "tokens": tokens})
    total.add({"error": "bad"})
    fields = total.fields()
    assert fields == {
        "rows": 3,
        "errors": 1,
        "targets": 3,
        "log_likelihood": -12.0,
        "tokens": 6,
        "mean_log_likelihood": -2.0,
        "perplexity": math.exp(2),
    }
    assert Total().fields() == {"rows": 0, "errors": 0, "targets": 0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "A"}, "no field 'target' or 'targets'; the row has prompt"),
        ({"target": "A"}, "no field 'prompt'"),
        ({"prompt": "A", "target": []}, "field 'target' must hold a text or a list of texts"),
        ({"prompt": "A", "target": ["B", 3]}, "field 'target' must hold a text or a list"),
        ({"prompt": "A", "target": None}, "field 'target' must hold a text or a list"),
        ({"prompt": "A", "target": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "A", "target": "B" * 48}, "a target has 49 tokens"),
        ({"prompt": "B" * 47, "target": "A"}, "a prompt has 47 tokens"),
    ],
)
def test_a_row_that_cannot_be_scored_says_why(fields, message):
    with pytest.raises(PlugError, match=message):
        scored([fields])


def test_an_empty_target_is_its_end_or_nothing():
    [score] = scored([{"prompt": "A", "target": ""}])
    assert score["tokens"] == 1
    with pytest.raises(PlugError, match="a target has 0 tokens"):
        scored([{"prompt": "A", "target": ""}], sep=False)


def test_named_fields():
    [score] = scored([{"q": "HELLO", "a": "X"}], prompt_field="q", target_field="a")
    assert [score] == scored([{"prompt": "HELLO", "target": "X"}])


def test_a_corpus_scores_as_in_evaluation(tmp_path):
    """decoder_loss of a stage-2 task: from its tokens, and from their texts as JSON lines."""
    model_dir = write_stored_model(tmp_path)
    rng = np.random.default_rng(1)
    documents = ["".join(rng.choice(list(CHARACTERS), 60)) for _ in range(6)]
    (tmp_path / "a.txt").write_text("\n".join(documents), encoding="utf-8")
    name = pretrain.palm_text(
        train_files=str(tmp_path / "a.txt"),
        validation_files=str(tmp_path / "a.txt"),
        vocabulary=str(model_dir / "checkpoints" / "1" / "vocabulary"),
        min_length=6,
        max_length=24,
        name="scoring_palm",
    )
    data = DatasetConfig(
        name,
        {"encoder": 48, "decoder": 48},
        "validation",
        batch_size=8,
        shuffle=False,
        seed=0,
        num_epochs=1,
        packing_window=32,
    )
    mesh = Partitioner(data=8)
    metrics = evaluate_checkpoint(
        EvaluateConfig(
            checkpoint=str(model_dir),
            objectives=PALM,
            data=data,
            partitioner=mesh,
            step=StepConfig(),
        )
    )
    source = RowSource(mixture_or_task_name=name)
    as_text = [Row(row.fields) for row in source]
    for rows, partitioner in ((source, None), (as_text, mesh)):
        total = Total()
        job = Job(checkpoint=str(model_dir), rows=rows, batch_size=4, partitioner=partitioner)
        for row in run(job, Scoring()):
            total.add(row)
        fields = total.fields()
        assert fields["errors"] == 0 and fields["rows"] == len(as_text) > 6
        assert -fields["mean_log_likelihood"] == pytest.approx(metrics["decoder_loss"], rel=1e-5)
        assert fields["perplexity"] == pytest.approx(metrics["decoder_perplexity"], rel=1e-5)
