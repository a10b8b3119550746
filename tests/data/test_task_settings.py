"""Settings derived from a task's preprocessors, and the objectives' constraints on its lengths."""

import functools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from plug_jax.data.features import PALM, STRUCTBERT, output_features
from plug_jax.data.preprocessors.lengths import sample_lengths
from plug_jax.data.preprocessors.masking import masked_language_model
from plug_jax.data.preprocessors.sentence_order import sentence_pairs
from plug_jax.data.preprocessors.word_order import shuffle_windows
from plug_jax.data.task_settings import AskedLengths, TaskSettings
from plug_jax.objectives.continuation import Continuation
from plug_jax.objectives.sentence_structural import SentenceStructural
from tests.inspected_examples import make_vocabulary


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return make_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def task(name, features, *preprocessors, splits=("train",)):
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors({"text": np.str_("")}),
        splits=splits,
    )
    return seqio.Task(
        name, source=source, preprocessors=list(preprocessors), output_features=features
    )


def masking(vocabulary, **options):
    return functools.partial(masked_language_model, vocabulary=vocabulary, **options)


def palm(vocabulary, name="palm", mask_rate=0.15, **options):
    return task(
        name,
        output_features(PALM, vocabulary),
        functools.partial(sample_lengths, vocabulary=vocabulary, **options),
        masking(vocabulary, mask_rate=mask_rate),
    )


def test_stage1(vocabulary):
    found = TaskSettings.of(
        task(
            "structbert",
            output_features(STRUCTBERT, vocabulary),
            functools.partial(sentence_pairs, vocabulary=vocabulary, max_length=64),
            masking(vocabulary, mask_rate=0.2),
            functools.partial(shuffle_windows, vocabulary=vocabulary, window=4, rate=0.1),
        ),
        "train",
    )
    assert found.get(masked_language_model, "mask_rate") == 0.2
    assert found.get(shuffle_windows, "rate") == 0.1
    assert found.get(shuffle_windows, "window") == 4
    assert found.uses(sentence_pairs) and not found.uses(sample_lengths)
    assert SentenceStructural().asked_lengths(found) == {"encoder": AskedLengths(longest=64)}


def test_stage2(vocabulary):
    found = TaskSettings.of(palm(vocabulary, min_length=8, max_length=96), "train")
    assert found.get(masked_language_model, "mask_rate") == 0.15
    asked = AskedLengths(8, 96, uniform=True)
    assert Continuation().asked_lengths(found) == {"encoder": asked, "decoder": asked}


def test_arguments_that_are_not_set_have_their_defaults(vocabulary):
    found = TaskSettings.of(palm(vocabulary), "train")
    assert found.get(sample_lengths, "max_length") == 512
    assert found.get(sample_lengths, "min_length") == 32
    shuffling = functools.partial(shuffle_windows, vocabulary=vocabulary, label_moved_only=True)
    found = TaskSettings.of(task("words", {}, masking(vocabulary), shuffling), "train")
    assert found.get(masked_language_model, "mask_rate") == 0.15
    assert found.get(shuffle_windows, "rate") == 0.05
    assert found.get(shuffle_windows, "label_moved_only") is True


def test_preprocessors_that_are_none_of_ours_are_read_and_ask_for_nothing():
    trim = functools.partial(seqio.utils.trim_dataset, sequence_length={"a": 3})
    found = TaskSettings.of(task("foreign", {}, lambda dataset: dataset, trim), "train")
    assert found.get(seqio.utils.trim_dataset, "sequence_length") == {"a": 3}
    assert not found.uses(masked_language_model)
    assert found.get(masked_language_model, "mask_rate") is None
    assert SentenceStructural().asked_lengths(found) == {}


def test_a_mixture_asks_for_what_its_tasks_agree_on(vocabulary, request):
    tasks = [palm(vocabulary), palm(vocabulary, "other", mask_rate=0.3, min_length=64)]
    for item in tasks:
        seqio.TaskRegistry.add_provider(item.name, item)
        request.addfinalizer(functools.partial(seqio.TaskRegistry.remove, item.name))
    seqio.MixtureRegistry.add("both", ["palm", "other"], default_rate=1.0)
    request.addfinalizer(lambda: seqio.MixtureRegistry.remove("both"))
    found = TaskSettings.of(seqio.get_mixture_or_task("both"), "train")
    assert found.get(masked_language_model, "mask_rate") is None
    assert Continuation().asked_lengths(found)["decoder"] == AskedLengths(None, 512, uniform=True)
