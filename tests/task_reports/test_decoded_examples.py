"""Each token's kind (masked, kept, ...), and the decoded text around it."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from plug_jax.data.vocabularies.sentencepiece_training import train_sentencepiece
from plug_jax.objectives.examples import Corruption, Fate, Section, TextSpan
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.stages import PALM, STRUCTBERT
from plug_jax.task_reports.decoded_examples import decode_example, describe_example
from tests.inspected_examples import STAGE1, STAGE2, make_vocabulary, to_ids


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return make_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def special(piece):
    return TextSpan(piece, piece, special=True, unknown=piece == "[UNK]")


def plain(text):
    return TextSpan(text, text)


def test_the_fates_of_the_docstring():
    example = {
        "encoder_original_tokens": np.array([2, 11, 12, 13, 14, 15]),
        "encoder_input_tokens": np.array([2, 4, 22, 13, 15, 14]),
        "encoder_loss_weights": np.array([0, 1, 1, 1, 1, 1]),
        "encoder_shuffled": np.array([0, 0, 0, 0, 1, 1]),
    }
    expected = [Fate.PLAIN, Fate.MASKED, Fate.REPLACED, Fate.KEPT, Fate.SHUFFLED, Fate.SHUFFLED]
    assert Corruption.of(example, mask_id=4).fates.tolist() == expected


def test_stage1_is_two_segments_with_marks(vocabulary):
    decoded = decode_example(to_ids(STAGE1[0]), STRUCTBERT, vocabulary)
    assert decoded.facts == (
        ("lengths", "encoder 11 (A 5, B 6)"),
        ("tokens", "4 plain, 2 masked, 1 replaced, 1 kept, 3 shuffled"),
        ("label", "2: B precedes A"),
    )
    window = TextSpan("天地人", "人天地", Fate.SHUFFLED)
    assert decoded.sections == (
        Section("A", (special("[CLS]"), window, special("[SEP]"))),
        Section(
            "B",
            (
                TextSpan("你", "[MASK]", Fate.MASKED),
                TextSpan("我", "我", Fate.KEPT),
                TextSpan("play", "well", Fate.REPLACED),
                plain("ing"),
                plain(" "),
                TextSpan("well", "[MASK]", Fate.MASKED),
                special("[SEP]"),
            ),
        ),
    )


def test_an_unknown_piece_is_a_span_of_its_own(vocabulary):
    decoded = decode_example(to_ids(STAGE1[1]), STRUCTBERT, vocabulary)
    assert decoded.sections[0].spans[1:3] == (plain("天"), special("[UNK]"))


def test_stage2_is_encoder_and_decoder(vocabulary):
    decoded = decode_example(to_ids(STAGE2[0]), PALM, vocabulary)
    assert [section.name for section in decoded.sections] == ["encoder", "decoder"]
    assert decoded.sections[1].spans == (plain("人你我"), special("[SEP]"))


def test_decoder_inputs_that_are_not_the_targets_shifted_are_shown(vocabulary):
    decoded = decode_example(to_ids(STAGE2[1]), PALM, vocabulary)
    assert decoded.facts[0] == ("lengths", "encoder 3, decoder 3")
    assert decoded.facts[-1] == ("predicted", "2 of 3 decoder tokens")
    assert decoded.sections[2] == Section("its inputs", (special("[CLS]"), plain("天地")))


def test_a_token_that_changed_though_it_is_not_predicted_stands_out(vocabulary):
    example = to_ids(STAGE1[0])
    example["encoder_loss_weights"][7] = 0
    assert Corruption.of(example, vocabulary.mask_id).fates[6:9].tolist() == [
        Fate.KEPT,
        Fate.STRAY,
        Fate.PLAIN,
    ]
    assert (
        TextSpan("play", "well", Fate.STRAY)
        in decode_example(example, STRUCTBERT, vocabulary).sections[1].spans
    )


def test_adjacent_masks_are_told_apart_and_a_window_is_one_span(vocabulary):
    example = to_ids(STAGE1[0])
    example["encoder_shuffled"][:] = 0
    changed = [
        (span.text, span.seen)
        for span in decode_example(example, STRUCTBERT, vocabulary).sections[0].spans
    ]
    assert changed[1:4] == [("天", "人"), ("地", "天"), ("人", "地")]


def test_spaces_survive_between_spans(tmp_path):
    """SentencePiece, which drops a text's leading space."""
    spaced = train_sentencepiece(["天地 人你我 "] * 9, directory=tmp_path, vocab_size=11)
    original = np.array([spaced.cls_id, *spaced.encode("天 地人 你 我"), spaced.sep_id], np.int32)
    assert original.size == 10
    example = {
        "encoder_original_tokens": original,
        "encoder_input_tokens": np.where([0, 0, 0, 1, 0, 1, 0, 0, 0, 0], spaced.mask_id, original),
        "encoder_loss_weights": np.array([0, 0, 0, 1, 0, 1, 0, 0, 0, 0]),
        "encoder_token_types": np.zeros(10, np.int32),
    }
    spans = decode_example(example, (MaskedLM(),), spaced).sections[0].spans
    marked = "".join(f"{{{span.text}}}" if span.fate else span.text for span in spans)
    assert marked == "[CLS]天 {地}人{▁}你 我[SEP]"


def test_other_tasks_are_described_feature_by_feature(vocabulary):
    features = {
        "inputs": seqio.Feature(vocabulary, add_eos=False),
        "score": seqio.Feature(
            seqio.PassThroughVocabulary(1), add_eos=False, rank=0, dtype=tf.float32
        ),
    }
    example = {"inputs": np.int32([5, 6]), "score": np.float32(0.5), "source": "报纸".encode()}
    assert describe_example(example, features).facts == (
        ("inputs", "(2) 天地"),
        ("score", "0.5"),
        ("source", "报纸"),
    )
