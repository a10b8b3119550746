"""Zero-shot classification: the comparison, and its token counts."""

import numpy as np
import pytest

from plug_jax.errors import PlugError
from plug_jax.inference import classification
from plug_jax.inference.classification import Accuracy, Classification, read_labels
from plug_jax.inference.rows import Row
from plug_jax.inference.scoring import Score, Scoring
from tests.inference_model import lively_model

LABELS = {"x": "XYLO", "b": "BA"}


def score(prompt: str, target: str, *, sep: bool = True) -> tuple[float, int]:
    """log P(target | prompt) and its tokens, by `Scoring`."""
    work, model = Scoring(sep=sep), lively_model()
    [answer] = work.answer(
        model, [work.prepare(model, Row({"prompt": prompt, "target": target}), 0)]
    )
    return answer.fields["log_likelihood"], answer.fields["tokens"]


def classified(rows: list[dict], **options) -> list[dict]:
    work, model = Classification(**{"labels": LABELS, **options}), lively_model()
    items = [work.prepare(model, Row(fields), 0) for fields in rows]
    return [answer.fields for answer in work.answer(model, items)]


@pytest.mark.parametrize("sep", [True, False])
@pytest.mark.parametrize("normalize", ["sum", "mean", "pmi"])
def test_what_is_compared(normalize, sep):
    texts = ["HELLO", "CAT", "JAX"]
    found = classified(
        [{"text": text} for text in texts],
        template="IT{label}S",
        prompt_template="A{text}",
        normalize=normalize,
        sep=sep,
    )
    for text, answer in zip(texts, found, strict=True):
        expected = {}
        for name, words in LABELS.items():
            total, tokens = score(f"A{text}", f"IT{words}S", sep=sep)
            expected[name] = {
                "sum": total,
                "mean": total / tokens,
                "pmi": total - score("A", f"IT{words}S", sep=sep)[0],
            }[normalize]
        assert answer["scores"] == pytest.approx(expected, abs=1e-4)
        values = np.array(list(expected.values()))
        softmax = np.exp(values) / np.exp(values).sum()
        assert list(answer["probabilities"].values()) == pytest.approx(softmax, abs=1e-4)
        assert answer["prediction"] == max(expected, key=expected.get)


def test_calibration_takes_off_what_a_label_has_without_the_text():
    """After the empty prompt every label scores 0, however common or short it is."""
    [answer] = classified([{"text": ""}])
    assert answer["scores"] == pytest.approx({"x": 0.0, "b": 0.0}, abs=1e-5)
    [plain] = classified([{"text": ""}], normalize="sum")
    assert abs(plain["scores"]["x"] - plain["scores"]["b"]) > 1


@pytest.mark.parametrize(
    ("normalize", "prediction", "scores"),
    [
        ("sum", "b", {"x": -6.0, "b": -4.0}),
        ("mean", "x", {"x": -1.2, "b": -4 / 3}),  # of 5 and 3 tokens: letters and [SEP]
        ("pmi", "x", {"x": 3.0, "b": -1.0}),  # x: -6 - -9, b: -4 - -3
    ],
)
def test_answers_of_known_log_likelihoods(monkeypatch, normalize, prediction, scores):
    """b is the commoner text, also after nothing; the prompt favours x over b."""
    after_text, after_nothing = (-6.0, -4.0), (-9.0, -3.0)

    def known(model, items):
        return [
            [
                Score(value, len(target))
                for value, target in zip(
                    after_text if len(item.prompt) > 2 else after_nothing,
                    item.targets,
                    strict=True,
                )
            ]
            for item in items
        ]

    monkeypatch.setattr(classification, "score_pairs", known)
    [answer] = classified([{"text": "HELLO"}], normalize=normalize)
    assert answer["prediction"] == prediction
    assert answer["scores"] == pytest.approx(scores)


def test_labels_that_each_row_lists_itself():
    rows = [{"text": "HELLO", "of": ["CAT", "DOG"]}, {"text": "CAT", "of": ["DOG", "CAT"]}]
    found = classified(rows, labels="of", template="A{label}")
    for row, answer in zip(rows, found, strict=True):
        expected = {
            str(number): score(row["text"], f"A{text}")[0] - score("", f"A{text}")[0]
            for number, text in enumerate(row["of"])
        }
        assert answer["scores"] == pytest.approx(expected, abs=1e-4)
        assert answer["prediction"] == max(expected, key=expected.get)
    for of in ("CAT", ["CAT"], ["CAT", 3]):
        with pytest.raises(PlugError, match="'of' must be a list of two texts or more"):
            classified([{"text": "HELLO", "of": of}], labels="of")


def test_the_longest_text_of_a_long_prompt_loses_its_end():
    row = {"text": "H" * 40, "pair": "C" * 20}
    options = {"prompt_template": "A{text}{pair}", "normalize": "sum"}
    for most, kept in ((32, ("H" * 15, "C" * 14)), (100, ("H" * 25, "C" * 20))):  # the model has 48
        [answer] = classified([row], **options, max_prompt_tokens=most)
        text, pair = kept
        assert answer["left_out"] == 60 - len(text + pair)
        expected = {name: score(f"A{text}{pair}", LABELS[name])[0] for name in LABELS}
        assert answer["scores"] == pytest.approx(expected, abs=1e-4)
    [whole] = classified([{**row, "text": "H" * 25}], **options, max_prompt_tokens=100)
    assert "left_out" not in whole
    with pytest.raises(PlugError, match="a prompt has 61 tokens"):
        classified([row], **options)
    with pytest.raises(PlugError, match="alone has 41 tokens, and there is room for 30"):
        classified([row], prompt_template="A" * 41 + "{text}", max_prompt_tokens=32)


def test_labels_alone_are_calibrated_once(monkeypatch):
    calls = []
    real = classification.score_pairs
    monkeypatch.setattr(
        classification,
        "score_pairs",
        lambda model, items: calls.append(items) or real(model, items),
    )
    work, model = Classification(labels=LABELS), lively_model()
    items = [work.prepare(model, Row({"text": text}), 0) for text in ("HELLO", "CAT")]
    first = work.answer(model, items)
    assert work.answer(model, items) == first
    assert [len(batch) for batch in calls] == [2, 1, 2]


def test_templates_take_any_field_of_a_row():
    row = {"premise": "HELLO", "claim": "CAT", "label": "x"}
    options = {"template": "{label}{claim}", "prompt_template": "{premise}", "normalize": "pmi"}
    rows = [row, {**row, "claim": "DOG"}]
    found = classified(rows, **options)
    for fields, answer in zip(rows, found, strict=True):
        target = f"XYLO{fields['claim']}"
        expected = score("HELLO", target)[0] - score("", target)[0]
        assert answer["scores"]["x"] == pytest.approx(expected, abs=1e-4)
    work, model = Classification(labels=LABELS, **options), lively_model()
    for fields, answer in zip(rows, found, strict=True):  # in batches of their own
        [alone] = work.answer(model, [work.prepare(model, Row(fields), 0)])
        assert alone.fields["scores"] == pytest.approx(answer["scores"], abs=1e-4)
    with pytest.raises(PlugError, match="no field 'claim'; the row has premise"):
        classified([{"premise": "HELLO"}], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": {"a": "A"}}, "two labels or more"),
        ({"template": "IT"}, "needs {label} somewhere"),
        ({"prompt_template": "IT"}, "needs a row's field"),
        ({"prompt_template": "{text}{label}"}, "and no {label}"),
        ({"normalize": "none"}, "normalize must be one of 'sum', 'mean', 'pmi', not 'none'"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    with pytest.raises(PlugError, match=message):
        Classification(**{"labels": LABELS, **options})


def test_labels_from_the_command_line_and_from_a_file(tmp_path):
    three = {name: name for name in ("体育", "财经", "娱乐")}
    for text in ("体育, 财经,娱乐", "体育，财经，娱乐", "体育、财经，娱乐"):
        assert read_labels(text) == three
    path = tmp_path / "labels.txt"
    path.write_text("\ufeff100\t故事\n\n101\t文化 \n军事\n", encoding="utf-8")
    assert read_labels(str(path)) == {"100": "故事", "101": "文化", "军事": "军事"}
    for text, message in (
        ("a,b,a", "'a' occurs twice"),
        ("a,,b", "one of them is empty"),
        ("体育，，财经", "one of them is empty"),
        ("labels.text", "there is no such file; labels themselves need commas"),
    ):
        with pytest.raises(PlugError, match=message):
            read_labels(text)


def test_accuracy_counts_rows_with_a_label_that_was_asked_for():
    accuracy = Accuracy({"1": "a", "2": "b"})
    for gold, prediction in (("1", "1"), (2, "1"), (1, "1"), ("other", "2"), (None, "2")):
        accuracy.add({"label": gold, "prediction": prediction})
    accuracy.add({"label": "1", "error": "bad"})
    assert accuracy.fields() == {
        "rows": 6,
        "errors": 1,
        "labeled": 3,
        "unknown_labels": 1,
        "correct": 2,
        "accuracy": 2 / 3,
        "predictions": {"1": 3, "2": 2},
    }
    assert "accuracy" not in Accuracy({"1": "a", "2": "b"}).fields()
