"""BLEU, ROUGE and distinct-n: values computed by hand, and by other programs."""

import json
import math
from pathlib import Path

import pytest

from plug_jax.errors import PlugError
from plug_jax.generation_tasks.bleu import bleu, count, distinct, method1, method3, tiny, total
from plug_jax.generation_tasks.conventions import CONVENTIONS, score
from plug_jax.generation_tasks.rouge import dureader, rouge_chinese, rouge_l, rouge_n, rouge_package

GOLDEN = json.loads((Path(__file__).with_name("golden_scores.json")).read_text(encoding="utf-8"))


def corpus(case, **options):
    return [
        count(text.split(), [r.split() for r in of], **options)
        for text, of in zip(case["texts"], case["references"], strict=True)
    ]


def mean(rouges, case, *, first=False):
    values = [
        rouges(text.split(), [r.split() for r in (of[:1] if first else of)])
        for text, of in zip(case["texts"], case["references"], strict=True)
    ]
    return {name: sum(of[name] for of in values) / len(values) for name in values[0]}


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=range(len(GOLDEN["cases"])))
def test_what_sacrebleu_nltk_rouge_rouge_chinese_and_dureader_give(case):
    ours = bleu(total(corpus(case)))
    assert [100 * b for b in ours] == pytest.approx(case["sacrebleu"], abs=1e-8)
    ours = bleu(total(corpus(case)), tiny)
    assert ours == pytest.approx(case["dureader_bleu"], abs=1e-7)
    nltk = corpus(case, least_total=1)
    assert bleu(total(nltk), method3) == pytest.approx(case["nltk_method3"])
    means = sum(bleu(c, method1)[3] for c in nltk) / len(nltk)
    assert means == pytest.approx(case["nltk_method1_mean"])

    assert mean(dureader, case)["rouge_l"] == pytest.approx(case["dureader_rouge_l"])
    for rouges in (rouge_package, rouge_chinese):
        golden = case["rouge" if rouges is rouge_package else "rouge_chinese"]
        wanted = {name.replace("-", "_"): value for name, value in golden.items()}
        assert mean(rouges, case, first=True) == pytest.approx(wanted, abs=1e-7)


def test_the_golden_cases_tell_the_rouges_apart():
    differing = [c for c in GOLDEN["cases"] if c["rouge"] != c["rouge_chinese"]]
    assert len(GOLDEN["cases"]) > 15 and len(differing) > 5


def test_counts_are_clipped_and_of_the_closest_reference():
    # The third 的 has no counterpart left; 的人, 人的 do not match any bigram.
    counts = count(list("的的的"), [list("的人的")])
    assert (counts.matches, counts.totals) == ((2, 0, 0, 0), (3, 2, 1, 0))
    # 3 tokens: references of 2 and 4 are equally close, and the shorter counts.
    assert count(list("天地人"), [list("天地人我"), list("天地")]).reference_length == 2
    # Clipping is by the reference with the most occurrences of an n-gram.
    assert count(list("天天地"), [list("天天"), list("天地地")]).matches == (3, 2, 0, 0)


def test_bleu_is_a_mean_of_precisions_by_the_brevity_penalty():
    # 天气很好 of 天气真好: 3 of 4 characters, 1 of 3 pairs, no triple.
    assert bleu(count(list("天气很好"), [list("天气真好")])) == pytest.approx([0.75, 0.5, 0, 0])
    # Everything matches, 3 of 6 tokens generated: exp(1 - 6/3).
    assert bleu(count(list("天地人"), [list("天地人你我他")]))[2] == pytest.approx(math.exp(-1))
    # Corpus BLEU adds counts: (3 + 1) / (4 + 1) with r = c = 5, not the mean of 3/4 and 1.
    parts = [count(list("天气很好"), [list("天气真好")]), count(["人"], [["人"]])]
    assert bleu(total(parts))[0] == pytest.approx(4 / 5)
    # Without a trigram match, method1 has 0.1 / 2; with two such orders, method3 1/2, then 1/4.
    counts = count(list("天气很好"), [list("天气真好")], least_total=1)
    assert bleu(counts, method1)[2] == pytest.approx((3 / 4 * 1 / 3 * 0.1 / 2) ** (1 / 3))
    smoothed = 3 / 4 * 1 / 3 * (1 / 2) / 2 * (1 / 4) / 1
    assert bleu(counts, method3)[3] == pytest.approx(smoothed ** (1 / 4))


def test_rouge_l_of_plug_takes_the_best_precision_and_the_best_recall():
    # 天人 is common: P 2/3, R 2/4; 2.44 * 1/3 / (1/2 + 1.44 * 2/3) = 0.557078.
    assert rouge_l(list("天地人"), [list("天人人好")], beta=1.2) == pytest.approx(
        0.557078, abs=1e-6
    )
    # P 3/3 of the first, R 1/1 of the second: 1, though neither is 1 alone.
    references = [list("天地人你我他"), list("天")]
    assert rouge_l(list("天地人"), references, beta=1.2) == pytest.approx(1)
    assert rouge_l([], references) == 0


def test_rouge_n_counts_different_ngrams_of_the_best_reference():
    assert rouge_n(list("的的人"), [list("的天")], 1) == pytest.approx(0.5)  # 1 of 2, 1 of 2
    assert rouge_n(list("天地人"), [list("我"), list("天地好")], 2) == pytest.approx(0.5)
    # rouge-chinese has LCS 的的 of 3 and 2 tokens: 0.8; `rouge` 的 of {的, 人} and {的}: 2/3.
    assert rouge_l(list("的的人"), [list("的的")]) == pytest.approx(0.8)
    assert rouge_package(list("的的人"), [list("的的")])["rouge_l"] == pytest.approx(2 / 3)
    for nothing in ([], ["."]):
        assert set(rouge_package(nothing, [["天"]]).values()) == {0}


def test_distinct():
    texts = [list("天天人"), list("天人")]
    assert distinct(texts, 1) == 2 / 5
    assert distinct(texts, 2) == 2 / 3  # 天天 天人, 天人; no bigram across texts
    assert distinct([["天"]], 2) == 0


# --- conventions

TEXTS, REFERENCES = ["iPhone 新品"], [["IPHONE新 机"]]


def test_the_tokens_of_each_convention():
    tokens = {name: of.tokenize(["iPhöne 新品."])[0] for name, of in CONVENTIONS.items()}
    assert tokens["plug"] == list("iphone新品.")
    assert tokens["paddlenlp"] == tokens["cpt"] == ["iphone", "新", "品", "."]
    assert tokens["t5_pegasus"] == list("iphöne") + ["", "", "新", "品", "."]
    assert tokens["t5_pegasus"] == tokens["clge"]


def test_the_same_texts_by_each_convention():
    got = {name: score(of, TEXTS, REFERENCES).metrics for name, of in CONVENTIONS.items()}
    # plug: 7 of 8 characters of iphone新品, 8 in the reference; paddlenlp: 2 of 3 words.
    assert got["plug"]["bleu_1"] == pytest.approx(100 * 7 / 8)
    assert got["paddlenlp"]["bleu_1"] == pytest.approx(100 * 2 / 3)
    assert got["plug"]["rouge_l"] == pytest.approx(100 * 7 / 8)
    # t5_pegasus: the space of either text is two empty tokens: of 10, the 6 + 2 + 新 are shared.
    assert got["t5_pegasus"]["bleu_1"] == pytest.approx(100 * 9 / 10)
    assert got["clge"] == got["t5_pegasus"]
    # cpt: (2/3 * 1/2 * (1/2)/1 * (1/4)/1) ** 1/4.
    assert got["cpt"]["bleu_4"] == pytest.approx(100 * (2 / 3 * 1 / 2 * 1 / 2 * 1 / 4) ** 0.25)
    names = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l"]
    for metrics in got.values():
        assert list(metrics) == [*names, "distinct_1", "distinct_2"]


def test_corpus_bleu_or_a_mean():
    texts, references = ["天气很好", "人"], [["天气真好"], ["人"]]
    assert score(CONVENTIONS["paddlenlp"], texts, references).metrics["bleu_1"] == pytest.approx(80)
    assert score(CONVENTIONS["clge"], texts, references).metrics["bleu_1"] == pytest.approx(87.5)


def test_plug_leaves_out_short_references_and_counts_them():
    texts, references = ["天地人", "好好", "我"], [["天地人"], ["好 好"], ["我", "你我他"]]
    got = score(CONVENTIONS["plug"], texts, references)
    assert (got.scored, got.short_references) == (2, 1)
    assert got.of_texts[1] is None and got.of_texts[0]["rouge_l"] == pytest.approx(100)
    assert got.of_texts[2]["rouge_1"] == pytest.approx(50)  # 我 of 你我他 alone: P 1, R 1/3
    assert score(CONVENTIONS["clge"], texts, references).scored == 3
    with pytest.raises(PlugError, match="of 1 texts none has a reference of at least 3 tokens"):
        score(CONVENTIONS["plug"], ["天"], [["天"]])


def test_empty_texts():
    for name, convention in CONVENTIONS.items():
        got = score(convention, ["", " "], [["天 地人。"], ["天 地人。"]]).metrics
        if name != "cpt":
            assert got["bleu_1"] == 0, name  # though a space of the reference is empty tokens
        # cpt scores "。" instead of an empty text: P 1, R 1/4.
        assert got["rouge_1"] == pytest.approx(40 if name == "cpt" else 0, abs=1e-4), name
