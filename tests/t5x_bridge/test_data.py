"""Our tasks as t5x reads them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import seqio
import tensorflow as tf

from plug_jax.data.pipeline.pipeline import DatasetConfig, make_iterator
from plug_jax.errors import PlugError
from plug_jax.objectives.composition import features_of
from plug_jax.objectives.stages import PALM, STRUCTBERT
from plug_jax.t5x_bridge import data
from plug_jax.t5x_bridge.data import T5xFeatureConverter, get_dataset, task_feature_lengths
from plug_jax.t5x_bridge.evaluated_tasks import evaluated_task, log_likelihood
from plug_jax.tasks import pretrain
from tests.t5x_bridge.corpus import write_corpus

LENGTHS = {"encoder": 48, "decoder": 32}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = write_corpus(tmp_path_factory.mktemp("corpus"))
    return {
        "train_files": str(directory / "train.txt"),
        "validation_files": str(directory / "validation.txt"),
        "vocabulary": str(directory / "vocab.txt"),
    }


@pytest.fixture(scope="module")
def palm(files):
    return pretrain.palm_text(**files, min_length=8, max_length=32, name="t5x_palm")


@pytest.fixture(scope="module")
def structbert(files):
    return pretrain.structbert_text(**files, max_length=48, name="t5x_structbert")


@pytest.fixture(scope="module")
def short(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("short") / "short.txt"
    path.write_text("一。\n", encoding="utf-8")
    return pretrain.palm_text(**{**files, "train_files": str(path)}, name="t5x_short")


def converter(pack=True, **options):
    return T5xFeatureConverter(features_of(PALM), pack=pack, **options)


def dataset_config(name, objectives, lengths, **changes):
    """The fields of t5x's DatasetConfig that are used."""
    values = {
        "mixture_or_task_name": name,
        "task_feature_lengths": task_feature_lengths(objectives=objectives, lengths=lengths),
        "split": "train",
        "batch_size": 4,
        "shuffle": True,
        "seed": 3,
        "pack": True,
        "use_cached": False,
        "module": None,
    }
    return SimpleNamespace(**values | changes)


def test_lengths_by_feature():
    lengths = task_feature_lengths(objectives=PALM, lengths=LENGTHS)
    assert lengths["encoder_input_tokens"] == lengths["encoder_loss_weights"] == 48
    assert lengths["decoder_target_tokens"] == 32
    assert task_feature_lengths(objectives=STRUCTBERT, lengths={"encoder": 48}).keys() == {
        feature.name for feature in features_of(STRUCTBERT)
    }
    with pytest.raises(PlugError, match="need lengths for decoder and encoder"):
        task_feature_lengths(objectives=PALM, lengths={"encoder": 48})


def test_what_the_evaluator_reads(palm):
    """Rows of one example each, whose number is known, whatever lengths are set."""
    lengths = task_feature_lengths(objectives=PALM, lengths=LENGTHS)
    examples = seqio.get_mixture_or_task(palm).get_dataset(lengths, "validation", shuffle=False)
    some = examples.take(5).apply(tf.data.experimental.assert_cardinality(5))
    rows = converter(pack=False)(some, {**lengths, "targets": 7})
    assert len(rows) == 5
    first = next(rows.as_numpy_iterator())
    assert first["encoder_input_tokens"].shape == (48,)
    assert "targets" not in first


def test_their_packing_is_refused():
    with pytest.raises(PlugError, match="use_custom_packing_ops"):
        converter(use_custom_packing_ops=True)


def test_training_data_are_those_of_our_trainer(structbert):
    cfg = dataset_config(structbert, STRUCTBERT, {"encoder": 48})
    dataset = get_dataset(cfg, 0, 1, lambda pack: T5xFeatureConverter(features_of(STRUCTBERT)))
    ours = make_iterator(
        DatasetConfig(structbert, {"encoder": 48}, "train", 4, shuffle=True, seed=3),
        features_of(STRUCTBERT),
    )
    pairs = zip(dataset.as_numpy_iterator(), ours, strict=True)
    for theirs, expected in itertools.islice(pairs, 12):
        assert theirs.keys() == expected.keys()
        for name, rows in expected.items():
            np.testing.assert_array_equal(theirs[name], rows)
    assert all(spec.shape[1:] == (48,) for spec in dataset.element_spec.values())


@pytest.mark.parametrize("seed", [3, None])
def test_a_shard_is_a_stream(structbert, monkeypatch, seed):
    asked = []
    monkeypatch.setattr(data, "stream_batches", lambda *arguments: asked.append(arguments))
    cfg = dataset_config(structbert, STRUCTBERT, {"encoder": 48}, seed=seed, use_cached=True)
    get_dataset(cfg, 1, 2, lambda pack: T5xFeatureConverter(features_of(STRUCTBERT)))
    ((config, features, shard),) = asked
    assert (shard.index, shard.num_shards) == (1, 2)
    assert features == features_of(STRUCTBERT)
    assert (config.use_cached, config.feature_lengths) == (True, {"encoder": 48})
    # Without a seed, t5x's default: the time, in seconds.
    assert config.seed == 3 if seed else config.seed > 1_600_000_000


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"num_epochs": 1}, "train.get_dataset_fn alone"),
        ({}, {"continue_from_last_checkpoint": True}, "train.get_dataset_fn alone"),
        ({"batch_size": 3}, {}, "BATCH_SIZE 3 does not divide into 2 shards"),
        ({"mixture_or_task_name": "t5x_palms"}, {}, "Did you mean .*t5x_palm"),
        ({"use_cached": True}, {}, "run `plug-jax cache` first"),
        ({"mixture_or_task_name": "t5x_short"}, {}, "gives no example .* document_too_short 1"),
    ],
)
def test_what_is_wrong_is_said(palm, short, changes, arguments, message):
    cfg = dataset_config(palm, PALM, LENGTHS, **changes)
    with pytest.raises(PlugError, match=message):
        get_dataset(cfg, 0, 2, converter, **arguments)


def test_an_evaluated_task(palm):
    task = seqio.get_mixture_or_task(evaluated_task(task=palm))
    assert task.score_metric_fns and not task.predict_metric_fns
    lengths = task_feature_lengths(objectives=PALM, lengths=LENGTHS)
    example = next(task.get_dataset(lengths, "validation", shuffle=False).as_numpy_iterator())
    vocabulary = task.output_features["targets"].vocabulary
    np.testing.assert_array_equal(example["targets"], example["decoder_target_tokens"])
    prompt = vocabulary.decode(example["encoder_original_tokens"].tolist())
    assert example["inputs_pretokenized"].decode() == prompt
    assert "[MASK]" not in prompt and len(prompt) > 3
    assert example["targets_pretokenized"].decode() == vocabulary.decode(
        example["targets"].tolist()
    )
    (metric,) = task.metric_objs
    scored = metric.from_model_output([example], np.array([-6.0]), task.output_features)
    values, _ = scored.actual_compute([example], task.output_features)
    assert values["tokens"] == len(example["targets"])


def test_a_task_without_a_decoder_is_not_evaluated(structbert):
    with pytest.raises(
        PlugError, match="'t5x_structbert' is not a task with a text for the decoder"
    ):
        evaluated_task(task=structbert)


def test_the_mean_is_over_tokens():
    assert log_likelihood([3, 1], [-6.0, -2.0]) == {
        "log_likelihood_per_token": -2.0,
        "tokens": 4,
    }
