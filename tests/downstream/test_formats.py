"""From records to examples, and from outputs to answers, worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plug_jax.clue.records import (
    BlankRecord,
    ChoiceRecord,
    Entity,
    EntityRecord,
    QuestionRecord,
    SpanAnswer,
    TextRecord,
)
from plug_jax.data.vocabularies.vocabulary import (
    SPECIAL_PIECES,
    PlugVocabulary,
    WordPieceVocabulary,
)
from plug_jax.downstream.choice_formats import BlankFormat, ChoiceFormat
from plug_jax.downstream.entity_format import EntityFormat
from plug_jax.downstream.examples import Examples
from plug_jax.downstream.formats import Format
from plug_jax.downstream.kinds import described_format
from plug_jax.downstream.question_format import QuestionFormat, _most_context, _window_starts
from plug_jax.downstream.text_format import TextFormat, cut_lengths
from plug_jax.errors import PlugError
from plug_jax.objectives.classification import Classification

CHARACTERS = "一二三四五六七八九十甲乙丙丁"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> WordPieceVocabulary:
    pieces = [
        *SPECIAL_PIECES,
        "[unused1]",
        *CHARACTERS,
        "-",
        '"',
        "。",
        "无",
        "效",
        "答",
        "案",
        "a",
    ]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return WordPieceVocabulary(path)


def pieces_of(ids: np.ndarray, vocabulary: PlugVocabulary) -> str:
    short = {"[CLS]": "<", "[SEP]": "|", "[PAD]": "_", "[MASK]": "?", "[unused1]": "#"}
    found = [vocabulary.id_to_piece(int(i)) for i in ids]
    return "".join(short.get(piece, piece) for piece in found)


def vectors(examples: Examples, number: int) -> dict[str, np.ndarray]:
    first, last = examples.splits[number : number + 2]
    return {name: values[first:last] for name, values in examples.values.items()}


def text(examples: Examples, number: int, vocabulary: PlugVocabulary) -> str:
    return pieces_of(vectors(examples, number)["encoder_input_tokens"], vocabulary)


class TestText:
    format = TextFormat(max_length=9, labels=("否", "是"))

    def test_one_and_two_texts(self, vocabulary: PlugVocabulary) -> None:
        records = [TextRecord(0, ("一二",), "是"), TextRecord(1, ("一二", "三"), None)]
        examples = self.format.examples(records, vocabulary)
        one, two = vectors(examples, 0), vectors(examples, 1)
        assert text(examples, 0, vocabulary) == "<一二|"
        assert one["classification_labels"].tolist() == [1, 0, 0, 0]
        assert one["classification_weights"].tolist() == [1, 0, 0, 0]
        assert text(examples, 1, vocabulary) == "<一二|三|"
        assert two["encoder_token_types"].tolist() == [0, 0, 0, 0, 1, 1]
        assert two["classification_weights"].tolist() == [0] * 6  # no label

    def test_the_longer_text_is_cut_first_then_the_second(self, vocabulary: PlugVocabulary) -> None:
        # Room for 6 tokens beside [CLS] and two [SEP]: 8 + 2 -> 4 + 2, and 5 + 5 -> 3 + 3.
        records = [TextRecord(0, ("一二三四五六七八", "甲乙"), "否"),
                   TextRecord(1, ("一二三四五", "甲乙丙丁十"), "否")]  # fmt: skip
        examples = self.format.examples(records, vocabulary)
        assert text(examples, 0, vocabulary) == "<一二三四|甲乙|"
        assert text(examples, 1, vocabulary) == "<一二三|甲乙丙|"
        assert cut_lengths([4, 4], 7) == [4, 3]

    def test_answers_are_the_likeliest_label_and_probabilities(
        self, vocabulary: PlugVocabulary
    ) -> None:
        records = [TextRecord(0, ("一",), "是"), TextRecord(1, ("二",), "否")]
        examples = self.format.examples(records, vocabulary)
        logits = np.log([[0.25, 0.75], [0.2, 0.8]])
        answers = self.format.answers(records, examples, {"classification_logits": logits})
        assert answers[0]["prediction"] == "是"
        assert answers[0]["probabilities"] == pytest.approx({"否": 0.25, "是": 0.75})
        assert self.format.metrics(records, answers) == {"accuracy": 50.0}


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(-3, 60))
def test_cut_lengths_are_those_of_cutting_token_by_token(lengths: list[int], room: int) -> None:
    left = list(lengths)
    while sum(left) > room:
        longest = max(left)
        left[max(n for n, length in enumerate(left) if length == longest)] -= 1
    assert cut_lengths(lengths, room) == left


def test_long_parts_are_cut_at_once() -> None:
    assert cut_lengths([10**15, 7, 10**14], 100) == [47, 7, 46]


class TestChoice:
    format = ChoiceFormat(max_length=10)
    record = ChoiceRecord("7-1", "一A二\n三", "四", ("五", "六六"), 1)

    def test_each_choice_has_its_part_of_the_row(self, vocabulary: PlugVocabulary) -> None:
        examples = self.format.examples([self.record], vocabulary)
        row = vectors(examples, 0)
        assert self.format.row_length == len(row["encoder_positions"]) == 40
        # The passage is lower-cased; 10 less [CLS] and three [SEP] leave 6 tokens: 4 + 1 + 1, then
        # 4 + 1 + 2 cut to 3 + 1 + 2, then 4 + 1 + 4 cut to 4 + 1 + 3, 3 + 1 + 3 and 3 + 1 + 2.
        assert text(examples, 0, vocabulary) == (
            "<一a二三|四|五|" + "<一a二|四|六六|" + "<一a二|四|无效|" * 2
        )
        assert row["encoder_segment_ids"].tolist() == [1] * 10 + [2] * 10 + [3] * 10 + [4] * 10
        assert row["encoder_positions"].tolist() == list(range(10)) * 4
        assert row["encoder_token_types"][:10].tolist() == [0] * 6 + [1] * 4
        assert np.flatnonzero(row["choice_weights"]).tolist() == [0]
        assert row["choice_labels"][0] == 1

    def test_a_choice_that_is_not_there_is_never_the_answer(
        self, vocabulary: PlugVocabulary
    ) -> None:
        examples = self.format.examples([self.record], vocabulary)
        outputs = {"choice_logits": np.array([[0.0, 1.0, 9.0, 9.0]])}
        (answer,) = self.format.answers([self.record], examples, outputs)
        assert answer["prediction"] == 1
        assert answer["probabilities"] == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e)])
        assert self.format.metrics([self.record], [answer]) == {"accuracy": 100.0}


class TestBlank:
    def test_the_window_and_other_blanks(self, vocabulary: PlugVocabulary) -> None:
        record = BlankRecord(
            "#idiom000002#", 0, "一二三四五六——#idiom000001#七", "八九“十", ("甲乙丙丁",) * 10, 3
        )
        format_ = BlankFormat(max_length=20)
        row = vectors(format_.examples([record], vocabulary), 0)
        # Room 20 - 4 - 4 = 12: the right side has 4 tokens (“ becomes "), so the left gets 8 of its
        # last: "--" for the dash, four [MASK] for the other blank.
        first = pieces_of(row["encoder_input_tokens"][:20], vocabulary)
        assert first == '<甲乙丙丁|六--????七#八九"十|'
        assert row["encoder_segment_ids"][19::20].tolist() == list(range(1, 11))
        assert not row["encoder_token_types"].any()
        assert row["choice_labels"][0] == 3

    def test_the_blanks_of_a_line_share_its_candidates(self, vocabulary: PlugVocabulary) -> None:
        names = tuple("一二三四五六七八九十")
        records = [BlankRecord(f"#idiom{n}#", 0, "一", "二", names, 0) for n in range(2)]
        records.append(BlankRecord("#idiom9#", 1, "一", "二", names, 0))
        format_ = BlankFormat(max_length=20)
        logits = np.zeros((3, 10))
        logits[0, :2] = [3.0, 2.0]
        logits[1, :2] = [4.0, 0.5]  # takes candidate 0 from the first, on the same line
        logits[2, 0] = 1.0  # another line: candidate 0 is free
        answers = format_.answers(
            records, format_.examples(records, vocabulary), {"choice_logits": logits}
        )
        assert [answer["prediction"] for answer in answers] == [1, 0, 0]
        assert format_.groups(records) == [0, 0, 1]


class TestQuestion:
    format = QuestionFormat(max_length=12, max_question=3, stride=3, max_answer=3, candidates=5)
    # The question is cut to 3 tokens; room for the context 12 - 3 - 3 = 6.
    record = QuestionRecord(
        "Q", "一二三四五六七八九", "甲乙丙丁", (SpanAnswer("七八", 6), SpanAnswer("八", 7))
    )

    @pytest.fixture
    def examples(self, vocabulary: PlugVocabulary) -> Examples:
        return self.format.examples([self.record], vocabulary)

    def test_windows(self, examples: Examples, vocabulary: PlugVocabulary) -> None:
        assert [text(examples, n, vocabulary) for n in range(len(examples))] == [
            "<甲乙丙|一二三四五六|",
            "<甲乙丙|四五六七八九|",
        ]
        assert vectors(examples, 0)["encoder_token_types"].tolist() == [0] * 5 + [1] * 7
        assert _window_starts(10, 4, 3) == [0, 3, 6]
        assert _window_starts(4, 4, 3) == [0]

    def test_the_answer_or_cls(self, examples: Examples) -> None:
        without, with_it = vectors(examples, 0), vectors(examples, 1)
        assert np.flatnonzero(without["span_starts"]).tolist() == [0]
        assert np.flatnonzero(without["span_ends"]).tolist() == [0]
        assert np.flatnonzero(with_it["span_starts"]).tolist() == [5 + 3]
        assert np.flatnonzero(with_it["span_ends"]).tolist() == [5 + 4]

    def test_a_token_belongs_to_the_window_with_most_around_it(self, examples: Examples) -> None:
        # Windows of tokens 0 to 5 and 3 to 8. The lesser of what is before and after: for token 3,
        # 2 in the first and 0 in the second; for token 4, 1 and 1 (the first has it, for windows
        # are equally long); for token 5, 0 and 2.
        assert _most_context([0, 3], 9, 6).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
        first, second = examples.notes
        assert first.best.tolist() == [True] * 5 + [False]
        assert second.best.tolist() == [False] * 2 + [True] * 4
        # A short last window loses to a long one with as much on both sides.
        assert _most_context([0, 2], 5, 4).tolist() == [0, 0, 0, 1, 1]

    def test_the_best_pair_within_bounds(self, examples: Examples) -> None:
        logits = np.full((2, 2, 12), -5.0)
        logits[0, :, 0] = 50.0  # [CLS] is not an answer
        logits[1, 0, 5 + 2], logits[1, 1, 5 + 3] = 4.0, 3.0  # 六七: 7.0
        logits[1, 0, 5 + 5], logits[1, 1, 5 + 1] = 9.0, 9.0  # ends before it begins
        logits[0, 0, 5 + 0], logits[0, 1, 5 + 3] = 9.0, 9.0  # four tokens: too long
        (answer,) = self.format.answers([self.record], examples, {"span_logits": logits})
        # 九 alone, begin 9.0 and end -5.0, scores less than 六七; so does 一 with its own end.
        assert answer["prediction"] == "六七"
        assert answer["nbest"][0] == {"text": "六七", "score": 7.0}

    def test_test_questions_have_no_labels(self, vocabulary: PlugVocabulary) -> None:
        record = QuestionRecord("Q", "一二三", "甲", ())
        row = vectors(self.format.examples([record], vocabulary), 0)
        assert not row["span_starts"].any() and not row["span_ends"].any()
        assert self.format.metrics([record], [{"prediction": "一"}]) == {}


class TestEntity:
    format = EntityFormat(max_length=10, types=("game", "name"))

    def test_tags_and_back(self, vocabulary: PlugVocabulary) -> None:
        entities = (Entity("name", "一", 0, 1), Entity("game", "三四五", 2, 5))
        record = EntityRecord(0, "一二三四五六", entities)
        examples = self.format.examples([record], vocabulary)
        row = vectors(examples, 0)
        tags = [self.format.tags[i] for i in row["tagging_labels"]]
        assert tags == ["O", "S-name", "O", "B-game", "I-game", "I-game", "O", "O"]
        assert row["tagging_weights"].tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
        logits = np.eye(len(self.format.tags))[row["tagging_labels"]][None]
        answers = self.format.answers([record], examples, {"tagging_logits": logits})
        assert [Entity(**one) for one in answers[0]["prediction"]] == list(entities)
        assert self.format.metrics([record], answers)["micro_f1"] == 100.0

    def test_a_beginning_without_an_inside_is_lost(self, vocabulary: PlugVocabulary) -> None:
        record = EntityRecord(0, "一二三", None)
        examples = self.format.examples([record], vocabulary)
        tags = [self.format.tags.index(tag) for tag in ("O", "B-game", "O", "I-game", "O")]
        logits = np.eye(len(self.format.tags))[tags][None]
        answers = self.format.answers([record], examples, {"tagging_logits": logits})
        assert answers == [{"prediction": []}]

    def test_beyond_the_longest_text_there_are_no_names(self, vocabulary: PlugVocabulary) -> None:
        record = EntityRecord(0, "一二三四五六七八九", (Entity("name", "八九", 7, 9),))
        row = vectors(self.format.examples([record], vocabulary), 0)
        assert len(row["tagging_labels"]) == 10
        assert set(row["tagging_labels"].tolist()) == {self.format.tags.index("O")}


@pytest.mark.parametrize(
    "format_",
    [
        TextFormat(max_length=16, labels=("b", "a")),
        ChoiceFormat(max_length=16),
        BlankFormat(max_length=32, assignment="optimal"),
        QuestionFormat(max_length=128, stride=32),
        EntityFormat(max_length=16, types=("x", "y")),
    ],
    ids=lambda one: one.kind,
)
def test_a_description_makes_the_same_format(format_: Format) -> None:
    assert described_format(json.loads(json.dumps(format_.description()))) == format_


def test_a_head_without_a_pooler_is_remembered() -> None:
    described = TextFormat(max_length=16, labels=("b", "a")).description() | {"pooler": False}
    assert described_format(described).make_objective() == Classification(
        labels=("b", "a"), pooler=False
    )
    assert TextFormat(max_length=16, labels=("b", "a")).make_objective().pooler


def test_what_no_version_described_is_said() -> None:
    with pytest.raises(PlugError, match="unknown kind, 'poem'"):
        described_format({"kind": "poem"})
    with pytest.raises(PlugError, match="another version"):
        described_format({"kind": "text", "max_length": 8, "labels": ["a", "b"], "colour": 1})
    with pytest.raises(PlugError, match="max_length must be 8 or more, got 2"):
        TextFormat(max_length=2, labels=("a", "b"))


def test_numbers_are_kept_in_the_smallest_type(vocabulary: PlugVocabulary) -> None:
    examples = TextFormat(max_length=9, labels=("否", "是")).examples(
        [TextRecord(0, ("一",), "是")], vocabulary
    )
    assert {values.dtype for values in examples.values.values()} == {np.dtype("uint8")}


def test_confusion_has_gold_labels_in_rows() -> None:
    format_ = TextFormat(max_length=8, labels=("a", "b", "c"))
    gold, predicted = ["a", "a", "b", None, "c"], ["a", "b", "b", "c", "a"]
    records = [TextRecord(n, ("一",), label) for n, label in enumerate(gold)]
    counts = format_.confusion(records, [{"prediction": one} for one in predicted])
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
