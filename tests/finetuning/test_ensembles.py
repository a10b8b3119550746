"""Ensembles, worked by hand. No model runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plug_jax.clue.records import BlankRecord, TextRecord
from plug_jax.clue.tasks import Split
from plug_jax.downstream.choice_formats import BlankFormat
from plug_jax.downstream.examples import ExamplesBuilder
from plug_jax.downstream.formats import Format
from plug_jax.downstream.record_task import SplitRecords
from plug_jax.downstream.text_format import TextFormat
from plug_jax.errors import PlugError
from plug_jax.finetuning.ensembles import combine, ensemble, pick_members
from plug_jax.finetuning.runs import FineTunedRun


def of_labels(*probabilities: list[float]) -> dict[str, np.ndarray]:
    return {"classification_logits": np.log(probabilities)}


class Records(SplitRecords):
    """Records without texts: one example each."""

    def __init__(self, format_: Format, records: list[Any]) -> None:
        super().__init__(format_, None, lambda split: Split(records, {}, "file"), ("validation",))
        builder = ExamplesBuilder()
        for number in range(len(records)):
            builder.add(number, {"encoder_input_tokens": np.zeros(1, np.int32)})
        self.examples = lambda split: builder.build()


def run(path: str, records: Records, outputs: dict[str, np.ndarray], **saved: Any) -> FineTunedRun:
    task = {"name": "mine", **records.format.description()}
    known = {"task": task, "vocabulary_fingerprint": "v"} | saved
    made = SimpleNamespace(path=path, task="mine", saved=SimpleNamespace(**known), records=records)
    made.outputs = lambda split: outputs
    return made  # type: ignore[return-value]


def test_probabilities_are_averaged() -> None:
    # (0.9 + 0.3) / 2 = 0.6 beats 0.4, though the second model predicts the other label.
    mean = combine([of_labels([0.9, 0.1]), of_labels([0.3, 0.7])])["classification_logits"]
    np.testing.assert_allclose(np.exp(mean), [[0.6, 0.4]], rtol=1e-6)


def test_votes_are_counted_and_ties_go_by_probability() -> None:
    one, other = of_labels([0.9, 0.1]), of_labels([0.45, 0.55])
    # Two of three vote for the second label, though the mean favours the first.
    assert combine([one, other, other])["classification_logits"].argmax() == 0
    assert combine([one, other, other], "vote")["classification_logits"].argmax() == 1
    assert combine([one, other], "vote")["classification_logits"].argmax() == 0


def test_spans_are_summed_and_not_voted_on() -> None:
    one = {"span_logits": np.array([[[1.0, 4.0], [0.0, 2.0]]])}
    other = {"span_logits": np.array([[[5.0, 0.0], [0.0, 0.0]]])}
    assert combine([one, other])["span_logits"].tolist() == [[[3.0, 2.0], [0.0, 1.0]]]
    with pytest.raises(PlugError, match="use the mean for spans"):
        combine([one, other], "vote")


def test_one_model_answers_as_it_does_alone() -> None:
    """CHID's official decoding compares logits across blanks, which a softmax would change."""
    names = tuple("一二三四五六七八九十")
    records = [BlankRecord(f"#idiom{n}#", 0, "", "", names, 0) for n in range(2)]
    format_ = BlankFormat(max_length=20)
    logits = np.full((2, 10), -9.0)
    logits[0, :2] = [5.0, 4.9]  # by logits this blank comes first, and takes candidate 0
    logits[1, :2] = [4.0, -9.0]  # by probabilities this one would come first
    alone = {"choice_logits": logits}
    examples = Records(format_, records).examples("validation")
    answers = format_.answers(records, examples, combine([alone]))
    assert answers == format_.answers(records, examples, alone)
    assert answers[0]["prediction"] == 0 and answers[1]["prediction"] != 0


def test_members_are_added_while_they_help() -> None:
    scores = {(1,): 7.0, (0,): 6.0, (2,): 5.0, (1, 2): 8.0, (1, 0): 6.5, (1, 2, 0): 8.0}
    assert pick_members(3, scores.__getitem__) == [1, 2]  # all three are no better than these


class TestReport:
    format = TextFormat(max_length=16, labels=("a", "b"))
    records = Records(format, [TextRecord(n, ("x",), "a") for n in range(4)])

    def runs(self) -> list[FineTunedRun]:
        sure, unsure, wrong = [0.9, 0.1], [0.45, 0.55], [0.2, 0.8]
        first = of_labels(sure, sure, unsure, wrong)  # right on two of four
        second = of_labels(wrong, unsure, sure, wrong)  # right on one
        return [run("one", self.records, first), run("two", self.records, second)]

    def test_figures(self) -> None:
        report = ensemble(self.runs(), split="validation", metric=None, method="mean")
        assert report.metric == "accuracy"
        assert report.runs == {"one": 50.0, "two": 25.0}
        # Means of the right label: 0.55, 0.675, 0.675, 0.2: three of four.
        assert report.everyone == report.picked == 75.0
        assert report.members == ["one", "two"]
        assert report.best_single == 50.0 and report.mean_single == 37.5
        # Halves are records 0, 2 and 1, 3. On 0, 2 the first alone has 1 of 2 and both have 2: both
        # are picked, and have 1 of 2 on the other half. On 1, 3 the first alone has 1 of 2, and
        # both no more: it is picked, and has 1 of 2 on 0, 2.
        assert report.cross_validated == 50.0

    def test_what_does_not_mean_the_same_is_refused(self) -> None:
        one, two = self.runs()
        two.saved.task["labels"] = ["b", "a"]
        with pytest.raises(PlugError, match=r"labels is \['a', 'b'\] and \['b', 'a'\]"):
            ensemble([one, two], split="validation", metric=None, method="mean")

    def test_texts_of_other_lengths_and_vocabularies_are_averaged(self) -> None:
        one, two = self.runs()
        two.saved.task["max_length"] = 99
        two.saved.vocabulary_fingerprint = "w"
        ensemble([one, two], split="validation", metric=None, method="mean")

    def test_a_metric_that_there_is_not_is_named(self) -> None:
        with pytest.raises(PlugError, match="no metric 'f1'; the task has accuracy"):
            ensemble(self.runs(), split="validation", metric="f1", method="mean")
