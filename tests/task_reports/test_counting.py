"""Counts over hand-made examples, and over many with a known error."""

import numpy as np
import pytest

from plug_jax.data import features
from plug_jax.data.drops import reset_counts
from plug_jax.data.preprocessors.lengths import sample_lengths
from plug_jax.data.preprocessors.masking import masked_language_model
from plug_jax.data.preprocessors.sentence_order import sentence_pairs
from plug_jax.data.preprocessors.word_order import shuffle_windows
from plug_jax.data.task_settings import TaskSettings
from plug_jax.errors import PlugError
from plug_jax.objectives.shares import Verdict
from plug_jax.objectives.stages import PALM, STRUCTBERT
from plug_jax.task_reports import counting as task_counting
from plug_jax.task_reports.counting import count_examples, measure_fill
from tests.inspected_examples import STAGE1, STAGE2, make_vocabulary, to_ids

NOTHING = TaskSettings()
SHUFFLING = {"rate": 0.05, "window": 3, "label_moved_only": False}


def masking(rate):
    return {masked_language_model: {"mask_rate": rate}}


STAGE1_SETTINGS = TaskSettings(
    {
        **masking(0.15),
        shuffle_windows: SHUFFLING,
        sentence_pairs: {"max_length": 128},
    }
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return make_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def count(examples, vocabulary, settings=STAGE1_SETTINGS, objectives=STRUCTBERT, **options):
    reset_counts()
    return count_examples(
        [to_ids(e) for e in examples], objectives, vocabulary, settings, **options
    )


def shares(statistics):
    return {share.key: (share.count, share.total) for share in statistics.shares}


def test_stage1_by_hand(vocabulary):
    statistics = count(STAGE1, vocabulary)
    assert statistics.examples == 2
    assert shares(statistics) == {
        "mask_rate": (4, 10),  # 你, 我, play and well of 天地人你我 play ##ing well 天 地
        "masked_share": (2, 4),
        "replaced_share": (1, 4),
        "kept_share": (1, 4),
        "shuffle_rate": (1, 1),  # only 天地人 is a run of three free tokens
        "shuffled": (3, 10),
        "label_0": (1, 2),
        "label_1": (0, 2),
        "label_2": (1, 2),
        "special_predicted": (0, 7),
        "stray": (0, 3),
        "unknown": (1, 11),
        "encoder_too_long": (0, 2),
    }
    [lengths] = statistics.lengths
    assert (lengths.mean, lengths.extremes, lengths.longest_asked) == (8.5, (6, 11), 128)
    use = statistics.vocabulary_use
    assert (use.used, use.size, use.tokens) == (8, 10, 10)
    assert use.top[:3] == (("天", 2), ("地", 2), ("人", 1))
    assert statistics.fill.row_lengths == {"encoder": 256}
    assert statistics.fill.rows == 1
    assert statistics.fill.pad_fraction["encoder"] == pytest.approx(1 - 17 / 256)


def test_stage2_by_hand(vocabulary):
    statistics = count(STAGE2, vocabulary, NOTHING, PALM, row_lengths={"encoder": 7, "decoder": 4})
    assert shares(statistics) == {
        "mask_rate": (1, 3),
        "masked_share": (1, 1),
        "replaced_share": (0, 1),
        "kept_share": (0, 1),
        "special_predicted": (0, 4),
        "stray": (0, 2),
        "unshifted": (2, 7),  # 天地 of the second example
        "unknown": (0, 8),
        "encoder_too_long": (0, 2),
        "decoder_too_long": (0, 2),
    }
    assert [item.key for item in statistics.disagreeing] == ["unshifted"]
    fill = statistics.fill
    assert (fill.examples, fill.rows) == (2, 2)  # the decoders do not fit in one row
    assert fill.pad_fraction == pytest.approx({"encoder": 0.5, "decoder": 1 / 8})


def test_the_lengths_of_a_dataset_bound_what_is_asked(vocabulary):
    settings = TaskSettings({sample_lengths: {"min_length": 3, "max_length": 8}})
    bounds = {"encoder_input_tokens": 4, "decoder_target_tokens": 9}
    statistics = count(STAGE2, vocabulary, settings, PALM, bounds=bounds)
    assert [item.longest_asked for item in statistics.lengths] == [4, 8]
    assert [item.shortest_asked for item in statistics.lengths] == [3, 3]
    assert all(item.uniform for item in statistics.lengths)


def test_runs_that_could_be_shuffled(vocabulary):
    """Overlapping runs count; those with a masked token or across examples do not."""
    free = {
        "encoder_original_tokens": "天 地 人 你 我 ， 。",
        "encoder_input_tokens": "天 地 人 [MASK] 我 ， 。",
        "encoder_loss_weights": [0, 0, 0, 1, 0, 0, 0],
        "encoder_shuffled": [0] * 7,
        "encoder_token_types": [0] * 7,
        "sentence_labels": [0] * 7,
        "sentence_weights": [1, 0, 0, 0, 0, 0, 0],
    }
    assert shares(count([free] * 5, vocabulary))["shuffle_rate"] == (0, 10)
    settings = TaskSettings({shuffle_windows: SHUFFLING | {"window": 2}})
    assert shares(count([free] * 5, vocabulary, settings))["shuffle_rate"] == (0, 20)


def test_a_label_that_there_is_not_should_never_occur(vocabulary):
    strange = {**STAGE1[1], "sentence_labels": [5, 0, 0, 0, 0, 0]}
    statistics = count([STAGE1[0], strange], vocabulary)
    found = {share.key: share for share in statistics.shares}
    assert (found["label_5"].count, found["label_5"].target) == (1, 0)
    assert found["label_2"].target == pytest.approx(1 / 3)
    assert "label_5" in {item.key for item in statistics.disagreeing}


def test_windows_cannot_be_told_where_only_moved_tokens_are_marked(vocabulary):
    settings = TaskSettings({shuffle_windows: SHUFFLING | {"label_moved_only": True}})
    assert "shuffle_rate" not in shares(count(STAGE1, vocabulary, settings))
    assert "shuffled" in shares(count(STAGE1, vocabulary, settings))


def test_a_stray_change_and_a_predicted_special_are_found(vocabulary):
    stray = {**STAGE1[1], "encoder_input_tokens": "[CLS] 天 [UNK] [SEP] 人 [SEP]"}
    special = {**STAGE1[1], "encoder_loss_weights": [1, 0, 0, 0, 0, 0]}
    statistics = count([STAGE1[0], stray, special], vocabulary)
    found = shares(statistics)
    assert found["stray"] == (1, 5) and found["special_predicted"] == (1, 11)
    assert {"stray", "special_predicted"} <= {item.key for item in statistics.disagreeing}


def make_examples(number, *, mask_rate=0.15, mask_share=0.8, seed=0):
    """Many examples of 60 regular tokens, masked at the given rates."""
    random = np.random.default_rng(seed)
    for _ in range(number):
        original = random.integers(5, 15, size=60).astype(np.int32)
        original[[0, -1]] = 2, 3
        chosen = (random.random(60) < mask_rate) & (original >= 5)
        fate = random.random(60)
        seen = np.where(chosen & (fate < mask_share), 4, original)
        replaced = chosen & (fate > 0.9)
        seen[replaced] = random.integers(5, 15, size=replaced.sum())
        yield {
            "encoder_input_tokens": seen.astype(np.int32),
            "encoder_original_tokens": original,
            "encoder_loss_weights": chosen.astype(np.int32),
            "encoder_token_types": np.zeros(60, np.int32),
            "decoder_input_tokens": original,
            "decoder_target_tokens": np.append(original[1:], 3).astype(np.int32),
            "decoder_loss_weights": np.ones(60, np.int32),
        }


def test_rates_as_asked_are_within_and_others_are_not(vocabulary):
    """With ten regular pieces, one random piece in ten is the original: 9% and 11%."""
    settings = TaskSettings(masking(0.15))
    right = count_examples(make_examples(2000), PALM, vocabulary, settings)
    assert right.disagreeing == []
    asked = {share.key: share.target for share in right.shares}
    assert asked["replaced_share"] == pytest.approx(0.09)
    assert asked["kept_share"] == pytest.approx(0.11)
    more = count_examples(make_examples(2000, mask_rate=0.16), PALM, vocabulary, settings)
    assert [item.key for item in more.disagreeing] == ["mask_rate"]
    assert more.disagreeing[0].verdict is Verdict.OUTSIDE
    fewer = count_examples(make_examples(2000, mask_share=0.7), PALM, vocabulary, settings)
    assert [item.key for item in fewer.disagreeing] == ["masked_share", "kept_share"]


def test_a_task_is_compared_with_its_own_rate(vocabulary):
    statistics = count_examples(
        make_examples(2000, mask_rate=0.3), PALM, vocabulary, TaskSettings(masking(0.3))
    )
    assert statistics.disagreeing == []


def test_chunks_add_up(vocabulary, monkeypatch):
    examples = list(make_examples(50))
    whole = count_examples(examples, PALM, vocabulary, NOTHING)
    monkeypatch.setattr(task_counting, "_CHUNK", 7)
    assert count_examples(iter(examples), PALM, vocabulary, NOTHING) == whole


def test_examples_longer_than_a_row_are_counted_and_not_packed(vocabulary):
    statistics = count(STAGE1, vocabulary, row_lengths={"encoder": 8})
    assert shares(statistics)["encoder_too_long"] == (1, 2)
    assert statistics.fill.examples == 1
    assert count(STAGE1, vocabulary, row_lengths={"encoder": 5}).fill is None


def test_fill_is_that_of_the_converter():
    examples = [
        {name: np.ones(length, np.int32) for name in STAGE1[0]} for length in (6, 4, 7, 3, 5, 5)
    ]
    fill = measure_fill(examples, features.STRUCTBERT, {"encoder": 10})
    assert (fill.rows, fill.pad_fraction["encoder"]) == (3, 0)


def test_features_of_unequal_length_are_refused(vocabulary):
    wrong = {**STAGE1[0], "encoder_shuffled": [0, 1]}
    with pytest.raises(PlugError, match="has 11 values of encoder_.* but 2 of encoder_shuffled"):
        count([STAGE1[1], wrong], vocabulary)


def test_other_tasks_have_lengths_alone():
    examples = [{"inputs": np.arange(3), "score": 1.0}, {"inputs": np.arange(5), "score": 2.0}]
    statistics = count_examples(examples, (), None, NOTHING)
    [lengths] = statistics.lengths
    assert (lengths.name, lengths.mean, lengths.extremes) == ("inputs", 4, (3, 5))
    assert (statistics.examples, statistics.shares, statistics.fill) == (2, (), None)


def test_nothing_is_counted_of_nothing(vocabulary):
    assert count([], vocabulary).examples == 0
    assert count_examples([], (), None, NOTHING).examples == 0
