"""A strong simple baseline for text classification: logistic regression on character n-grams."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plug_jax.errors import PlugError

LONGEST = (2, 3, 4)  # longest n-grams to try, in characters; shorter ones count too
INVERSE_PENALTIES = (3.0, 10.0, 30.0, 100.0)  # scikit-learn's C

Texts = Sequence[tuple[str, str]]  # (text, label)


@dataclasses.dataclass(frozen=True)
class NgramBaseline:
    """The setting chosen on dev, and all that were tried; accuracies in percent."""

    tried: dict[str, float]  # dev accuracy by setting, such as "1-3 characters, C 10"
    setting: str
    dev: float
    test: float
    predictions: list[str]  # for the test split


def ngram_baseline(
    train: Texts, dev: Texts, test: Texts, *, say: Callable[[str], None]
) -> NgramBaseline:
    """Fit each setting on train, choose the best on dev (the first of equal ones), score on test.

    Features are tf-idf with 1 + ln of the counts, for n-grams in at least two texts.

    Raises:
        PlugError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise PlugError("the baseline needs scikit-learn: pip install 'plug-jax[demo]'") from error
    best: tuple[float, str, Any, Any] | None = None
    tried: dict[str, float] = {}
    for longest in LONGEST:
        vectorizer = TfidfVectorizer(
            analyzer="char", ngram_range=(1, longest), sublinear_tf=True, min_df=2
        )
        counted = vectorizer.fit_transform([text for text, _ in train])
        of_dev = vectorizer.transform([text for text, _ in dev])
        for penalty in INVERSE_PENALTIES:
            setting = f"1-{longest} characters, C {penalty:g}"
            model = _fit(counted, [label for _, label in train], penalty)
            tried[setting] = _accuracy(model.predict(of_dev), dev)
            say(f"baseline, {setting}: {tried[setting]:.2f} on dev")
            if best is None or tried[setting] > best[0]:
                best = (tried[setting], setting, vectorizer, model)
    assert best is not None
    dev_accuracy, setting, vectorizer, model = best
    predictions = model.predict(vectorizer.transform([text for text, _ in test]))
    return NgramBaseline(
        tried, setting, dev_accuracy, _accuracy(predictions, test), predictions.tolist()
    )


def _fit(counted: Any, labels: Sequence[str], penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=penalty, solver="liblinear", random_state=0).fit(counted, labels)


def _accuracy(predictions: Sequence[str], texts: Texts) -> float:
    return 100 * float(
        np.mean([p == label for p, (_, label) in zip(predictions, texts, strict=True)])
    )
