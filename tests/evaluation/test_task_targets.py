"""What is read off a task's preprocessors."""

import functools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from plug_jax.data.features import palm_features, structbert_features
from plug_jax.data.lengths import sample_lengths
from plug_jax.data.masking import masked_language_model
from plug_jax.data.sentence_order import sentence_pairs
from plug_jax.data.word_order import shuffle_windows
from plug_jax.evaluation.task_targets import TaskTargets, find_targets
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
        palm_features(vocabulary),
        functools.partial(sample_lengths, vocabulary=vocabulary, **options),
        masking(vocabulary, mask_rate=mask_rate),
    )


def test_stage1(vocabulary):
    found = find_targets(
        task(
            "structbert",
            structbert_features(vocabulary),
            functools.partial(sentence_pairs, vocabulary=vocabulary, max_length=64),
            masking(vocabulary, mask_rate=0.2),
            functools.partial(shuffle_windows, vocabulary=vocabulary, window=4, rate=0.1),
        ),
        "train",
    )
    assert found == TaskTargets(
        mask_rate=0.2,
        shuffle_rate=0.1,
        shuffle_window=4,
        label_share=1 / 3,
        longest={"encoder": 64},
    )


def test_stage2(vocabulary):
    found = find_targets(palm(vocabulary, min_length=8, max_length=96), "train")
    assert found == TaskTargets(
        mask_rate=0.15,
        shortest={"encoder": 8, "decoder": 8},
        longest={"encoder": 96, "decoder": 96},
        uniform=True,
    )


def test_arguments_that_are_not_set_have_their_defaults(vocabulary):
    found = find_targets(palm(vocabulary), "train")
    assert found.longest == {"encoder": 512, "decoder": 512}
    assert found.shortest == {"encoder": 32, "decoder": 32}
    shuffling = functools.partial(shuffle_windows, vocabulary=vocabulary, label_moved_only=True)
    found = find_targets(task("words", {}, masking(vocabulary), shuffling), "train")
    assert (found.mask_rate, found.shuffle_rate, found.shuffle_window) == (0.15, 0.05, 3)
    assert not found.marks_unmoved


def test_row_lengths_bound_the_lengths(vocabulary):
    bounds = {"encoder_input_tokens": 40, "decoder_target_tokens": 600}
    found = find_targets(palm(vocabulary), "train", bounds)
    assert found.longest == {"encoder": 40, "decoder": 512}


def test_foreign_preprocessors_ask_for_nothing():
    foreign = task(
        "foreign", {}, lambda dataset: dataset, functools.partial(seqio.utils.trim_dataset)
    )
    assert find_targets(foreign, "train") == TaskTargets()


def test_a_mixture_asks_for_what_its_tasks_agree_on(vocabulary, request):
    tasks = [palm(vocabulary), palm(vocabulary, "other", mask_rate=0.3, min_length=64)]
    for item in tasks:
        seqio.TaskRegistry.add_provider(item.name, item)
        request.addfinalizer(functools.partial(seqio.TaskRegistry.remove, item.name))
    seqio.MixtureRegistry.add("both", ["palm", "other"], default_rate=1.0)
    request.addfinalizer(lambda: seqio.MixtureRegistry.remove("both"))
    assert find_targets(seqio.get_mixture_or_task("both"), "train") == TaskTargets(
        longest={"encoder": 512, "decoder": 512}, uniform=True
    )
