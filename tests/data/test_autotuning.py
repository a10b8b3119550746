"""No command waits for tf.data's tuning thread: none is started."""

import argparse

import pytest
import seqio
import tensorflow as tf

from plug_jax.cli import vocab
from plug_jax.data.features import STRUCTBERT
from plug_jax.data.pipeline.pipeline import DatasetConfig, make_iterator, stream_batches
from plug_jax.data.sources.text_source import TextSource
from plug_jax.data.vocabularies.vocabulary import default_vocabulary
from plug_jax.inference.rows import RowSource
from plug_jax.task_reports.inspection import Inspected
from plug_jax.tasks.pretrain import structbert_task
from tests.cached_corpus import cache


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("天地玄黄。宇宙洪荒。\n日月盈昃。辰宿列张。\n" * 20, encoding="utf-8")
    return [str(path)]


@pytest.fixture(scope="module")
def name(files):
    task = structbert_task("untuned", TextSource(train=files), default_vocabulary())
    seqio.TaskRegistry.add_provider("untuned", task)
    yield "untuned"
    seqio.TaskRegistry.remove("untuned")


@pytest.fixture
def tuned(monkeypatch):
    """Whether each dataset that is iterated over from now on is tuned."""
    found = []
    begin = tf.data.Dataset.__iter__

    def iterate(dataset):
        found.append(dataset.options().autotune.enabled is not False)
        return begin(dataset)

    monkeypatch.setattr(tf.data.Dataset, "__iter__", iterate)
    return found


@pytest.mark.parametrize("num_epochs", [None, 1])
def test_batches(name, tuned, num_epochs):
    config = DatasetConfig(
        name, {"encoder": 32}, "train", batch_size=2, shuffle=True, seed=0, num_epochs=num_epochs
    )
    next(make_iterator(config))
    assert tuned and not any(tuned)


def test_batches_for_other_trainers(name, tuned):
    config = DatasetConfig(name, {"encoder": 32}, "train", batch_size=2, shuffle=True, seed=0)
    next(iter(stream_batches(config, STRUCTBERT, seqio.ShardInfo(0, 1))))
    assert tuned and not any(tuned)


def test_inspect(name, tuned):
    inspected = Inspected(
        seqio.get_mixture_or_task(name), split="train", seed=0, feature_lengths="", named=()
    )
    inspected.count(inspected.examples(4))
    assert tuned and not any(tuned)


def test_cache(name, tmp_path, tuned):
    cache(seqio.get_mixture_or_task(name), tmp_path)
    assert tuned and not any(tuned)


def test_vocab(files, tuned):
    args = argparse.Namespace(format=None, text_key=None)
    assert len(list(vocab._documents(args, files))) == 40
    assert tuned and not any(tuned)


def test_rows_of_a_task(name, tuned):
    assert list(RowSource(mixture_or_task_name=name, split="train"))
    assert tuned and not any(tuned)
