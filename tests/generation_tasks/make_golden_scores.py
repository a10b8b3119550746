"""Write golden_scores.json: what others' programs say of small texts.

    python3.11 -m venv golden && golden/bin/pip install \
        sacrebleu==2.6.0 rouge==1.0.1 rouge-chinese==1.0.3 nltk==3.10.4 numpy
    golden/bin/python tests/generation_tasks/make_golden_scores.py dureader_eval.py

`dureader_eval.py` is sofa/sofa/utils/dureader_eval.py of github.com/alibaba/AliceMind.
Texts are given as tokens with a space between them, so that the metrics alone are compared.
"""

import contextlib
import importlib.util
import io
import json
import random
import sys
from importlib.metadata import version
from pathlib import Path

import rouge
import rouge_chinese
import sacrebleu
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu

SMOOTH = SmoothingFunction()
WEIGHTS = [(1 / n,) * n for n in range(1, 5)]


def main(dureader_eval: str) -> None:
    spec = importlib.util.spec_from_file_location("dureader_eval", dureader_eval)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    golden = {
        "versions": {
            name: version(name) for name in ("sacrebleu", "rouge", "rouge-chinese", "nltk")
        },
        "cases": [_scores(module, *case) for case in _cases()],
    }
    path = Path(__file__).with_name("golden_scores.json")
    text = json.dumps(golden, ensure_ascii=False, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")


def _cases():
    """(texts, references of each): words with a space between them."""
    yield ["天 气 很 好"], [["天 气 真 好"]]
    yield ["的 的 的"], [["的 人 的"]]  # clipped
    yield ["天 地 人"], [["天 地 人 你 我 他"]]  # brevity
    yield ["天 地 人 和"], [["天 地", "天 地 人 和 你 我"]]  # both as close: the shorter
    yield ["今 天 . 明 天 . 后 天 天"], [["明 天 . 今 天 . 昨 天"]]  # sentences of `rouge`
    yield ["红", "天 地 玄 黄"], [["黑"], ["天 地 玄 黄"]]  # a text without a match
    yield ["红", "好"], [["黑"], ["坏"]]  # nothing matches at all
    rng = random.Random(0)
    for words in ("天地人", "天地人你我他来去.", "天地人你我他来去上下大小好多年月日时分.,ab"):
        for _ in range(4):
            rows = rng.randint(1, 4)
            texts = [_text(rng, words) for _ in range(rows)]
            yield texts, [[_text(rng, words) for _ in range(rng.randint(1, 3))] for _ in texts]


def _text(rng: random.Random, words: str) -> str:
    return " ".join(rng.choice(words) for _ in range(rng.randint(2, 14)))


def _scores(dureader, texts: list[str], references: list[list[str]]) -> dict:
    firsts = [of[0] for of in references]
    tokens = [text.split() for text in texts]
    wanted = [[r.split() for r in of] for of in references]
    width = max(map(len, references))
    streams = [[of[i] if i < len(of) else None for of in references] for i in range(width)]
    predictions = {str(i): [text] for i, text in enumerate(texts)}
    golds = {str(i): of for i, of in enumerate(references)}
    with contextlib.redirect_stdout(io.StringIO()):
        dureader_bleus, _ = dureader.Bleu(4).compute_score(golds, predictions)
    return {
        "texts": texts,
        "references": references,
        "sacrebleu": [
            sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=n, force=True)
            .corpus_score(texts, streams)
            .score
            for n in range(1, 5)
        ],
        "dureader_bleu": dureader_bleus,
        "dureader_rouge_l": float(dureader.Rouge().compute_score(golds, predictions)[0]),
        "nltk_method1_mean": sum(
            sentence_bleu(of, text, smoothing_function=SMOOTH.method1)
            for text, of in zip(tokens, wanted, strict=True)
        )
        / len(texts),
        "nltk_method3": [
            corpus_bleu(wanted, tokens, weight, smoothing_function=SMOOTH.method3)
            for weight in WEIGHTS
        ],
        "rouge": _fs(rouge.Rouge(), texts, firsts),
        "rouge_chinese": _fs(rouge_chinese.Rouge(), texts, firsts),
    }


def _fs(program, texts: list[str], references: list[str]) -> dict[str, float]:
    scores = program.get_scores(texts, references, avg=True)
    return {name: value["f"] for name, value in scores.items()}


if __name__ == "__main__":
    main(sys.argv[1])
