"""The padded examples of a task equal its examples, for seqio's functions and for packing."""

import numpy as np
import pytest
import tensorflow as tf

from plug_jax.data.features import STRUCTBERT, feature_lengths, features_declared
from plug_jax.data.pipeline.batched_task import BatchedMixture
from plug_jax.data.pipeline.feature_converters import RowFeatureConverter
from plug_jax.tasks.pretrain import palm_task, structbert_task
from tests.cached_corpus import random_text, vocabulary_of, write_corpus

STAGES = ("structbert", "palm")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two tasks of each stage, each over its own documents."""
    directory = tmp_path_factory.mktemp("text")
    vocabulary = vocabulary_of(directory)
    found = {stage: [] for stage in STAGES}
    for number in range(2):
        rng = np.random.default_rng(number)
        documents = [
            "".join(random_text(rng) for _ in range(rng.integers(1, 9))) for _ in range(120)
        ]
        source = write_corpus(directory / str(number), [documents])
        found["structbert"].append(
            structbert_task(f"first_{number}", source, vocabulary, max_length=64)
        )
        found["palm"].append(
            palm_task(f"second_{number}", source, vocabulary, min_length=8, max_length=40)
        )
    return found


def read(provider, *, shuffle=True, num_epochs=1):
    return provider.get_dataset(None, split="train", shuffle=shuffle, seed=5, num_epochs=num_epochs)


def without_padding(example):
    """A padded example with its padding checked and removed."""
    lengths = {side: int(example.pop(f"{side}_length")) for side in ("encoder", "decoder")
               if f"{side}_length" in example}  # fmt: skip
    cut = {}
    for name, values in example.items():
        length = lengths["decoder" if name.startswith("decoder") else "encoder"]
        assert not values[length:].any()
        cut[name] = values[:length]
    return cut


def assert_same(padded, exact, number):
    count = 0
    for one, other in zip(padded.as_numpy_iterator(), exact.as_numpy_iterator(), strict=True):
        one = without_padding(one)
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
        count += 1
    assert count >= number


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_padded_examples_are_the_examples(tasks, stage, shuffle):
    task = tasks[stage][0]
    padded = read(task.padded, shuffle=shuffle, num_epochs=2)
    assert {spec.dtype for spec in padded.element_spec.values()} == {tf.int32}
    width = {"structbert": 64, "palm": 40}[stage]
    assert {tuple(spec.shape) for spec in padded.element_spec.values()} == {(width,), ()}
    assert_same(padded, read(task, shuffle=shuffle, num_epochs=2), 300)


@pytest.mark.parametrize("stage", STAGES)
def test_padded_examples_are_mixed_as_examples_are(tasks, stage):
    mixture = BatchedMixture(
        "mixed", [(task, rate) for task, rate in zip(tasks[stage], (3, 1), strict=True)]
    )
    assert mixture.padded.total_rate == mixture.total_rate == 4
    padded, exact = (read(part, num_epochs=None).take(300) for part in (mixture.padded, mixture))
    assert_same(padded, exact, 300)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_rows_are_those_of_the_examples(tasks, stage, pack):
    """The same rows from padded batches as from single examples."""
    task = tasks[stage][0]
    sides = {"structbert": {"encoder": 100}, "palm": {"encoder": 90, "decoder": 80}}[stage]
    converter = RowFeatureConverter(features_declared(task.output_features), pack=pack, window=70)
    lengths = feature_lengths(sides, task.output_features)
    batches = list(converter.batches(read(task.padded), lengths, 8).as_numpy_iterator())
    rows = list(converter(read(task), lengths).as_numpy_iterator())
    assert {len(batch["encoder_positions"]) for batch in batches[:-1]} == {8}
    for name in rows[0]:
        joined = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(joined, np.stack([row[name] for row in rows]))


def test_rows_may_be_shorter_than_the_padding(tasks):
    """If the row's length limits the examples; a longer example is an error."""
    lengths = feature_lengths({"encoder": 50}, tasks["structbert"][0].output_features)
    padded = tasks["structbert"][0].padded
    examples = padded.get_dataset(lengths, split="train", seed=5, trim_output_features=False)
    for pack in (False, True):
        converter = RowFeatureConverter(STRUCTBERT, pack=pack)
        rows = converter.batches(examples, lengths, 8)
        for batch in rows.as_numpy_iterator():
            assert {values.shape[1] for values in batch.values()} == {50}
        with pytest.raises(tf.errors.InvalidArgumentError, match="tokens, but a row holds 50"):
            list(converter.batches(read(padded), lengths, 8))
