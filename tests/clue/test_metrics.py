"""Metrics against values computed by hand, as explained in comments."""

import numpy as np
import pytest

from plug_jax.clue.blanks import decode_blanks
from plug_jax.clue.entity_metrics import macro_f1, micro_f1
from plug_jax.clue.metrics import board_mean, score
from plug_jax.clue.reading_metrics import exact_match, mixed_tokens, overlap_f1
from plug_jax.clue.records import (
    BlankRecord,
    ChoiceRecord,
    Entity,
    EntityRecord,
    QuestionRecord,
    SpanAnswer,
    TextRecord,
)
from plug_jax.clue.tasks import CLUE
from plug_jax.clue.word_tokens import word_tokens
from plug_jax.errors import PlugError


@pytest.mark.parametrize(
    ("answer", "prediction", "expected"),
    [
        ("九米", "九米", 1),
        ("九米", " 九米。 ", 1),  # leading and trailing spaces and 。 are ignored
        ("九米", "九米 。", 0),  # stripped first: the space before 。 stays
        ("九米", "九米.", 0),  # a full stop is
        ("九米", "九米!", 0),
        ("九米", "(九米)", 0),
        ("九米", "（九米）", 1),
        ("‘九米’", "‘九米", 1),  # of the single quotes only the closing one is deleted
        ("九米", "‘九米", 0),
        ("九米…", "九米", 0),  # the list has …… as one entry, which no single character equals
        ("10:30", "1030", 1),
        ("3-4", "3*4", 1),
        ("1,000", "1000", 0),
        ("NBA", "nba", 1),
        ("a - b", "a  b", 1),  # inner spaces stay, the - goes
        ("new york", "newyork", 0),
        ("《桥》", "“桥”", 1),
        ("。", "", 1),  # nothing is left of either
    ],
)
def test_exact_match(answer, prediction, expected):
    assert exact_match([answer], prediction) == expected


def test_each_mark_that_does_not_count():
    for mark in "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』":
        assert exact_match(["甲乙"], f"甲{mark}乙") == 1
        assert overlap_f1(["甲乙"], f"甲{mark}乙") == 1
    for mark in ",.!?()‘…;\"'#%【】—&":
        assert exact_match(["甲乙"], f"甲{mark}乙") == 0
        assert overlap_f1(["甲乙"], f"甲{mark}乙") < 1


@pytest.mark.parametrize(
    ("answer", "prediction", "expected"),
    [
        ("九米", "九米", 1),
        # 九 米 . : run of 2; precision 2/3, recall 1; 2 * 2/3 / (5/3) = 4/5.
        ("九米", "九米.", 4 / 5),
        # The longest contiguous run is 丙丁: precision 2/3, recall 2/4; 2 * 1/3 / (7/6) = 4/7.
        # As a subsequence or a bag it would be 3, and F1 6/7.
        ("甲乙丙丁", "甲丙丁", 4 / 7),
        # Words: [1,000 米] and [1000 米] share 米: 1/2 and 1/2.
        ("1,000米", "1000米", 1 / 2),
        # [new york 市] and [york 市]: run of 2; precision 1, recall 2/3; 4/3 / (5/3) = 4/5.
        ("New York市", "York市", 4 / 5),
        # : is deleted within the run, which stays one word: [1030] is no [10].
        ("10:30", "10", 0),
        # 龦 (U+9FA6) is beyond the range: 龦龦 is one word, not two characters.
        ("龦龦", "龦", 0),
        ("龥龥", "龥", 2 / 3),  # U+9FA5, the last within: precision 1, recall 1/2
        ("九米", "", 0),
        ("。", "", 0),  # no tokens, so no common run, though they match exactly
    ],
)
def test_overlap_f1(answer, prediction, expected):
    assert overlap_f1([answer], prediction) == pytest.approx(expected)


def test_the_best_of_several_answers_counts():
    assert exact_match(["九", "九米"], "九米") == 1
    # Against 九: run 1, precision 1/3, recall 1: 1/2. Against 有九米: run 2 of 3 and of 3: 2/3.
    assert overlap_f1(["九", "有九米"], "九米长") == pytest.approx(2 / 3)


def test_tokens_of_chinese_with_other_runs():
    assert mixed_tokens(" 他在 New-York, U.S. 的don't！") == [
        *("他", "在", "newyork", ",", "u.s", ".", "的", "do", "n't"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the u.s. (3,500 km), don't.", "the u.s. ( 3,500 km ) , do n't ."),
        ("$3.88 50% at&t", "$ 3.88 50 % at & t"),
        ("they'll say \"hi\" to dogs'", "they 'll say `` hi '' to dogs '"),
        ("what?! yes...", "what ? ! yes ..."),
        ("'hello' it's", "' hello ' it 's"),
        ("cannot", "can not"),
        ("a,b 1,2 end,", "a , b 1,2 end ,"),
        ("rock'n'roll o'neil", "rock'n'roll o'neil"),
        ("e.g.", "e.g ."),
        ("", ""),
        ("  ", ""),
    ],
)
def test_words_by_the_rules_of_the_treebank(text, words):
    assert word_tokens(text) == words.split()


def question(key, *answers):
    return QuestionRecord(key, "", "", tuple(SpanAnswer(text, 0) for text in answers))


def test_scores_of_questions_are_means_over_all_of_them():
    records = [question("a", "九米"), question("b", "甲乙丙丁", "乙"), question("c", "他")]
    # a: EM 1, F1 1. b: EM 0, F1 4/7 (nothing in common with 乙). c: unanswered, both 0.
    # EM 1/3 = 33.333 %, F1 (1 + 4/7) / 3 = 11/21 = 52.381 %.
    scores = score(CLUE["cmrc2018"], records, {"a": "九米", "b": "甲丙丁"})
    assert scores == {"em": pytest.approx(100 / 3), "f1": pytest.approx(1100 / 21)}
    assert score(CLUE["drcd"], records, {"a": "九米", "b": "甲丙丁"}) == scores


def test_accuracy_of_labels_choices_and_blanks():
    texts = [TextRecord(number, ("",), label) for number, label in enumerate("0110")]
    # Correct: 0, 2 and 3.
    assert score(CLUE["afqmc"], texts, {0: "0", 1: "0", 2: "1", 3: "0"}) == {"accuracy": 75}
    choices = [ChoiceRecord(number, "", "", ("甲", "乙"), number) for number in range(2)]
    assert score(CLUE["c3"], choices, {0: 1, 1: 1}) == {"accuracy": 50}
    blanks = [BlankRecord(f"#idiom{n}#", 0, "", "", (), n) for n in range(4)]
    predictions = {"#idiom0#": 0, "#idiom1#": 0, "#idiom2#": 3, "#idiom3#": 2}
    assert score(CLUE["chid"], blanks, predictions) == {"accuracy": 25}


def test_what_cannot_be_scored():
    records = [TextRecord(0, ("",), "0"), TextRecord(1, ("",), None)]
    with pytest.raises(
        PlugError, match="1 of 2 records of afqmc have no prediction; the first is 1"
    ):
        score(CLUE["afqmc"], records, {0: "0"})
    with pytest.raises(PlugError, match="record 1 of afqmc has no answer to compare with"):
        score(CLUE["afqmc"], records, {0: "0", 1: "0"})
    with pytest.raises(PlugError, match="a prediction is for 7, which is not a record of afqmc"):
        score(CLUE["afqmc"], records, {0: "0", 1: "0", 7: "0"})
    with pytest.raises(PlugError, match="record 'a' of drcd has no answer"):
        score(CLUE["drcd"], [question("a")], {})
    with pytest.raises(PlugError, match="nothing to score for drcd"):
        score(CLUE["drcd"], [], {})


LOGITS = np.zeros((3, 10))
LOGITS[0, :3] = [9, 8, 0]
LOGITS[1, :3] = [8, 1, 0]
LOGITS[2, :3] = [7, 6, 5]


def test_blanks_are_filled_best_pair_first():
    # 9 is blank 0 with candidate 0; 8 of blank 0 (filled) and of blank 1 (0 is taken), 7 of blank 2
    # (taken) fall out; 6 is blank 2 with candidate 1; of blank 1 the 1 is taken: 0 for candidate 2.
    assert decode_blanks([4, 4, 4], LOGITS) == [0, 2, 1]
    # The sums: 9 + 0 + 6 = 15 so, and 8 + 8 + 5 = 21 with [1, 0, 2].
    assert decode_blanks([4, 4, 4], LOGITS, "optimal") == [1, 0, 2]
    # Separately, each blank would take candidate 0.
    assert decode_blanks([0, 1, 2], LOGITS) == [0, 0, 0]


def test_the_blanks_of_a_line_need_not_be_neighbours():
    # Blanks 0 and 2 share line 5: 9 for (0, 0), then 6 for (2, 1). Blank 1 is free to take 0.
    assert decode_blanks([5, 3, 5], LOGITS) == [0, 0, 1]


def test_equal_logits_go_to_the_first():
    assert decode_blanks([0, 0], np.zeros((2, 10))) == [0, 1]
    # All ten of a line. The ones, in their order: (0, 1), then (1, 0), and so on by pairs; the
    # other ones of a row are taken or come later.
    logits = np.array([[(i + j) % 2 for j in range(10)] for i in range(10)])
    assert decode_blanks([0] * 10, logits) == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8]


def test_logits_that_cannot_be_decoded():
    with pytest.raises(PlugError, match="line 0 has 11 blanks, and 10 candidates"):
        decode_blanks([0] * 11, np.zeros((11, 10)))
    with pytest.raises(PlugError, match=r"logits of 2 blanks have the shape \(3, 10\)"):
        decode_blanks([0, 0], LOGITS)
    with pytest.raises(PlugError, match="NaN"):
        decode_blanks([0], np.full((1, 10), np.nan))
    with pytest.raises(PlugError, match="no assignment 'best' of idioms"):
        decode_blanks([0], np.zeros((1, 10)), "best")


GOLD = (
    Entity("name", "王", 0, 1),
    Entity("name", "王", 5, 6),
    Entity("name", "李", 7, 8),
    Entity("address", "杭州", 2, 4),
)
PREDICTED = (
    Entity("name", "王", 0, 1),
    Entity("address", "杭州", 8, 10),  # the right string at the wrong position
    Entity("scene", "杭州", 2, 4),  # the right position with the wrong type
)


def test_the_published_f1_of_entities_is_a_macro_mean_over_strings():
    # name: strings {王, 李} and {王}: 1 true, 0 false, 1 missed: 2 / 3. address: {杭州} twice: 1.
    # scene: none true: 0; the other seven have nothing: 0. The mean of ten: (2/3 + 1) / 10.
    types = CLUE["cluener"].labels
    assert macro_f1([(GOLD, PREDICTED)], types) == pytest.approx((2 / 3 + 1) / 10)
    # A second sentence with nothing predicted: 王 is missed there, though it is found elsewhere.
    # name: 1 true, 0 false, 2 missed: 2 / 4.
    pairs = [(GOLD, PREDICTED), (GOLD[:1], ())]
    assert macro_f1(pairs, types) == pytest.approx((2 / 4 + 1) / 10)


def test_the_usual_f1_of_entities_is_over_all_places():
    # Gold 4, predicted 3, and of both (name, 0, 1) alone: 2 * 1 / 7.
    assert micro_f1([(GOLD, PREDICTED)]) == pytest.approx(2 / 7)
    assert micro_f1([((), ())]) == 0
    # A prediction given twice counts once: 2 * 1 / 5.
    assert micro_f1([(GOLD, PREDICTED[:1] * 2)]) == pytest.approx(2 / 5)


def test_scores_of_entities_have_both():
    records = [EntityRecord(0, "", GOLD), EntityRecord(1, "", ())]
    scores = score(CLUE["cluener"], records, {0: PREDICTED, 1: ()})
    assert scores == {
        "macro_f1": pytest.approx(100 * (2 / 3 + 1) / 10),
        "micro_f1": pytest.approx(200 / 7),
    }


def test_means_of_the_boards():
    names = ("afqmc", "tnews10", "iflytek", "cmnli", "ocnli", "cluewsc10", "csl")
    # PLUG's entry: the sum of its seven is 564.300, and the board's figure 80.614.
    figures = (77.441, 73.060, 64.000, 84.949, 83.267, 94.483, 87.100)
    scores = {name: {"accuracy": figure} for name, figure in zip(names, figures, strict=True)}
    classification = board_mean("1.0", scores)
    assert round(classification.mean, 3) == 80.614
    assert classification.missing == ()
    scores |= {"cmrc2018": {"em": 70, "f1": 90}, "c310": {"accuracy": 75}}
    reading = board_mean("1.0-reading", scores)
    assert (reading.mean, reading.missing) == (72.5, ("chid10",))  # the EM, and two of three
    # Of the test sets 1.1, TNEWS, CLUEWSC, CHID and C3 are missing.
    assert board_mean("1.1", scores).missing == ("tnews", "cluewsc", "chid", "c3")
    assert board_mean("1.1", {}).mean is None
    # The plain name, as for the validation split, is the 1.0 leaderboard's too.
    assert board_mean("1.0-reading", {"chid": {"accuracy": 1}}).missing == ("cmrc2018", "c310")
