"""Statistics of splits, with one token per character."""

import pytest

from plug_jax.clue.inspection import input_lengths, summary
from plug_jax.clue.records import (
    BlankRecord,
    ChoiceRecord,
    Entity,
    EntityRecord,
    QuestionRecord,
    TextRecord,
)
from plug_jax.clue.tasks import CLUE, Split


def count(texts):
    return [len(text.replace(" ", "")) for text in texts]


@pytest.mark.parametrize(
    ("record", "length"),
    [
        (TextRecord(0, ("三个字",), None), 5),  # [CLS] 3 [SEP]
        (TextRecord(0, ("三个字", "两字"), None), 8),  # [CLS] 3 [SEP] 2 [SEP]
        # [CLS] 3 [SEP] 2 [SEP] 4 [SEP], of the longer choice
        (ChoiceRecord(0, "三个字", "问吗", ("一", "四个字的"), None), 13),
        # [CLS] 4 [SEP] 2 [unused1] 3 [SEP]; the other blank of the passage is four [MASK]
        (BlankRecord("#idiom1#", 0, "左边", "右边#idiom22#右", ("一心一意",), 0), 17),
        (QuestionRecord(0, "三个字", "问吗", ()), 8),  # [CLS] 2 [SEP] 3 [SEP]
        (QuestionRecord(0, "三个字", "问" * 65, ()), 70),  # 64 of the question
        (EntityRecord(0, "三 字", ()), 5),  # one token per character, including spaces
    ],
)
def test_the_length_of_an_input_is_that_of_the_baselines(record, length):
    assert input_lengths([record], count) == [length]


def test_the_figures_of_a_split():
    # Lengths with [CLS] and [SEP]: 3 to 20, 128, and 129, which is over 128.
    records = [TextRecord(n, ("字" * (n + 1),), "01"[n % 2]) for n in range(18)]
    records += [TextRecord(n, ("字" * (108 + n),), "01"[n % 2]) for n in (18, 19)]
    found = summary(CLUE["afqmc"], Split(records, {"no_gold_label": 3}, ""), count)
    assert found.to_json() == {
        "records": 23,
        "usable": 20,
        "dropped": {"no_gold_label": 3},
        "label_counts": {"0": 10, "1": 10},
        # Sorted: 3 .. 20, 128, 129. The median is between the 10th (12) and the 11th (13); 95% of
        # 20 are the first 19, of which the last is 128.
        "token_lengths": {"min": 3, "median": 12.5, "p95": 128, "max": 129},
        "cut": 1,
        "max_length": 128,
    }


def test_entities_are_counted_by_type_and_choices_by_index():
    entities = (
        Entity("name", "王", 0, 1),
        Entity("address", "杭", 1, 2),
        Entity("name", "李", 2, 3),
    )
    split = Split([EntityRecord(0, "王杭李", entities), EntityRecord(1, "无", None)], {}, "")
    assert summary(CLUE["cluener"], split, count).label_counts == {"address": 1, "name": 2}
    choices = Split([ChoiceRecord(n, "", "", ("一", "二"), n % 2) for n in range(3)], {}, "")
    assert summary(CLUE["c3"], choices, count).label_counts == {"0": 2, "1": 1}
