"""The fine-tuning objectives against their formulas in NumPy."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.checkpoints.parameters import init_params
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.classification import Classification
from plug_jax.objectives.composition import (
    check_rows,
    evaluate,
    evaluation_metrics,
    metrics_of,
    texts_a_row,
    training_forward,
)
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.multiple_choice import MultipleChoice
from plug_jax.objectives.regression import Regression
from plug_jax.objectives.span import Span
from plug_jax.objectives.tagging import Tagging
from plug_jax.objectives.task_heads import TaskObjective
from tests import synthetic

CONFIG = synthetic.tiny_config(num_decoder_layers=0, num_encoder_layers=1)
MODEL = PlugModel(CONFIG)
LENGTH = 12


def params_of(objective: TaskObjective, config: Any = CONFIG) -> Any:
    """Random parameters: initial biases are 0, and would hide a missing one."""
    params = init_params(PlugModel(config), jax.random.key(0), (objective,))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree,
        [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)],
    )


def text(rows: int, lengths: list[list[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens of several segments a row."""
    rng = np.random.default_rng(seed)
    shape = (rows, LENGTH)
    batch = {
        "encoder_input_tokens": rng.integers(5, 90, shape),
        "encoder_token_types": np.zeros(shape),
        "encoder_segment_ids": np.zeros(shape),
        "encoder_positions": np.zeros(shape),
        "example_index": np.zeros(shape),
    }
    for row, of_row in enumerate(lengths):
        first = 0
        for number, size in enumerate(of_row):
            batch["encoder_segment_ids"][row, first : first + size] = number + 1
            batch["encoder_positions"][row, first : first + size] = np.arange(size)
            first += size
    real = batch["encoder_segment_ids"] > 0
    return {name: (values * real).astype(np.int32) for name, values in batch.items()}


def states_of(params: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    return MODEL.apply(
        {"params": params},
        batch["encoder_input_tokens"],
        positions=batch["encoder_positions"],
        segment_ids=batch["encoder_segment_ids"],
        method="encode",
    )


def head_by_hand(params: Any, states: np.ndarray) -> np.ndarray:
    if "dense" in params:
        states = np.tanh(states @ params["dense"]["kernel"] + params["dense"]["bias"])
    return np.array(states @ params["output"]["kernel"] + params["output"]["bias"])


def values(objective: TaskObjective, params: Any, batch: dict[str, np.ndarray]) -> dict[str, float]:
    metrics = evaluation_metrics((objective,), MODEL, params, batch)
    return {name: float(mean.value()) for name, mean in metrics.items()}


def at_cls(batch: dict[str, np.ndarray], labels: list[float], dtype: Any = np.int32) -> Any:
    """Values at the first tokens of the segments in order, and their weights."""
    places = (batch["encoder_positions"] == 0) & (batch["encoder_segment_ids"] > 0)
    found = np.zeros(places.shape, dtype)
    found[places] = labels
    return found, places.astype(np.int32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(logits.astype(np.float32)))


class TestClassification:
    objective = Classification(labels=("a", "b", "c"))

    def batch(self, lengths: list[list[int]], labels: list[int]) -> dict[str, np.ndarray]:
        batch = text(len(lengths), lengths)
        found, weights = at_cls(batch, labels)
        return {**batch, "classification_labels": found, "classification_weights": weights}

    def test_cross_entropy_at_cls(self) -> None:
        params = params_of(self.objective)
        batch = self.batch([[12], [7]], [2, 0])
        logits = head_by_hand(params["heads"]["classification"], states_of(params, batch)[:, 0])
        expected = -log_softmax(logits)[[0, 1], [2, 0]].mean()
        found = values(self.objective, params, batch)
        assert found["classification_loss"] == pytest.approx(expected, rel=1e-5)
        hits = (logits.argmax(1) == [2, 0]).mean()
        assert found["classification_accuracy"] == pytest.approx(hits)

    def test_packed_is_unpacked(self) -> None:
        params = params_of(self.objective)
        packed = self.batch([[5, 4, 3]], [2, 0, 1])
        alone = text(3, [[5], [4], [3]])
        for row, (first, size) in enumerate([(0, 5), (5, 4), (9, 3)]):
            for name in ("encoder_input_tokens", "encoder_token_types"):
                alone[name][row] = 0
                alone[name][row, :size] = packed[name][0, first : first + size]
        found, weights = at_cls(alone, [2, 0, 1])
        alone |= {"classification_labels": found, "classification_weights": weights}
        one, other = values(self.objective, params, packed), values(self.objective, params, alone)
        assert one["classification_loss"] == pytest.approx(other["classification_loss"], rel=1e-5)

    def test_unlabelled_examples_count_nothing(self) -> None:
        params = params_of(self.objective)
        batch = self.batch([[12], [7]], [2, 0])
        batch["classification_weights"][1] = 0
        one = {name: array[:1] for name, array in batch.items()}
        assert values(self.objective, params, batch)["classification_loss"] == pytest.approx(
            values(self.objective, params, one)["classification_loss"], rel=1e-6
        )

    def test_label_smoothing(self) -> None:
        """(1 - e) * CE(label) + e * mean over all labels of -log p."""
        objective = Classification(labels=("a", "b", "c"), label_smoothing=0.3)
        params = params_of(objective)
        batch = self.batch([[12], [7]], [2, 0])
        logits = head_by_hand(params["heads"]["classification"], states_of(params, batch)[:, 0])
        negative = -log_softmax(logits)
        expected = (0.7 * negative[[0, 1], [2, 0]] + 0.3 * negative.mean(1)).mean()
        found = values(objective, params, batch)["classification_loss"]
        assert found == pytest.approx(expected, rel=1e-5)

    def test_class_weights(self) -> None:
        """The mean weighted by the label's: (4 * loss of c + 1 * loss of a) / 5."""
        objective = Classification(labels=("a", "b", "c"), class_weights=(1.0, 2.0, 4.0))
        params = params_of(objective)
        batch = self.batch([[12], [7]], [2, 0])
        logits = head_by_hand(params["heads"]["classification"], states_of(params, batch)[:, 0])
        of_rows = -log_softmax(logits)[[0, 1], [2, 0]]
        expected = (4 * of_rows[0] + of_rows[1]) / 5
        found = values(objective, params, batch)["classification_loss"]
        assert found == pytest.approx(expected, rel=1e-5)

    def test_a_model_that_has_a_pooler_lends_it(self) -> None:
        config = synthetic.tiny_config(num_decoder_layers=0, num_encoder_layers=1, use_pooler=True)
        params = params_of(self.objective, config)
        head = params["heads"]["classification"]
        assert set(head) == {"output"}
        batch = self.batch([[12]], [1])
        model = PlugModel(config)
        _, outputs = evaluate((self.objective,), model, params, batch)
        states = np.asarray(states_of(params, batch)[:, 0])
        pooled = np.tanh(states @ params["pooler"]["kernel"] + params["pooler"]["bias"])
        expected = pooled @ head["output"]["kernel"] + head["output"]["bias"]
        np.testing.assert_allclose(outputs["classification_logits"], expected, rtol=2e-5, atol=2e-5)

    def test_without_a_pooler(self) -> None:
        objective = Classification(labels=("a", "b", "c"), pooler=False)
        params = params_of(objective)
        assert set(params["heads"]["classification"]) == {"output"}
        batch = self.batch([[12], [7]], [2, 0])
        logits = head_by_hand(params["heads"]["classification"], states_of(params, batch)[:, 0])
        _, outputs = evaluate((objective,), MODEL, params, batch)
        np.testing.assert_allclose(outputs["classification_logits"], logits, rtol=1e-4, atol=1e-5)

    def test_dropout_is_its_own(self) -> None:
        """With the head's dropout, training depends on the key; without it, it does not."""
        batch = self.batch([[12], [7]], [2, 0])

        def loss(objective: Classification, seed: int) -> float:
            forward = training_forward(
                (objective,), MODEL, params_of(objective), batch, jax.random.key(seed)
            )
            metrics = metrics_of((objective,), forward)
            return float(metrics["classification_loss"].value())

        without = Classification(labels=("a", "b", "c"), dropout_rate=0.0)
        assert loss(without, 0) == loss(without, 1)
        assert loss(self.objective, 0) != loss(self.objective, 1)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"labels": ("a",)}, "two different ones or more"),
            ({"labels": ("a", "a")}, "two different ones or more"),
            ({"labels": ("a", "b"), "label_smoothing": 1.0}, r"in \[0, 1\), got 1.0"),
            ({"labels": ("a", "b"), "class_weights": (1.0,)}, "each of the 2 labels a, b"),
            ({"labels": ("a", "b"), "dropout_rate": -0.1}, r"dropout_rate must be in \[0, 1\)"),
        ],
    )
    def test_what_makes_no_sense_is_said(self, fields: dict, message: str) -> None:
        with pytest.raises(PlugError, match=message):
            Classification(**fields)


class TestMultipleChoice:
    objective = MultipleChoice(choices=3)

    def batch(self) -> dict[str, np.ndarray]:
        """Two examples of three texts of 4 tokens; the last text of the second is absent."""
        batch = text(2, [[4, 3, 4], [4, 4]])
        segments = np.array([[1] * 4 + [2] * 3 + [0] + [3] * 4, [1] * 4 + [2] * 4 + [0] * 4])
        positions = np.tile(np.arange(4), 3)[None] * (segments > 0)
        rng = np.random.default_rng(3)
        batch["encoder_input_tokens"] = rng.integers(5, 90, segments.shape) * (segments > 0)
        batch |= {"encoder_segment_ids": segments, "encoder_positions": positions}
        labels, weights = np.zeros((2, LENGTH), np.int32), np.zeros((2, LENGTH), np.int32)
        labels[:, 0], weights[:, 0] = [2, 1], 1
        return {**batch, "choice_labels": labels, "choice_weights": weights}

    def test_softmax_over_the_texts(self) -> None:
        params, batch = params_of(self.objective), self.batch()
        # Each text encoded as a separate row.
        rows = {
            name: batch[name].reshape(6, 4)
            for name in ("encoder_input_tokens", "encoder_positions", "encoder_segment_ids")
        }
        states = states_of(params, rows)[:, 0]
        logits = head_by_hand(params["heads"]["choice"], states).reshape(2, 3)
        logits[1, 2] = -np.inf
        expected = -log_softmax(logits)[[0, 1], [2, 1]].mean()
        found = values(self.objective, params, batch)
        assert found["choice_loss"] == pytest.approx(expected, rel=1e-5)
        _, outputs = evaluate((self.objective,), MODEL, params, batch)
        np.testing.assert_allclose(outputs["choice_logits"][0], logits[0], rtol=1e-4, atol=1e-5)
        assert outputs["choice_logits"][1].argmax() == logits[1].argmax()

    def test_texts_are_read_apart(self) -> None:
        """No gradient from one text's logit to another's tokens."""
        params, batch = params_of(self.objective), self.batch()
        table = params["embeddings"]["word_embeddings"]

        def logit(table: jax.Array) -> jax.Array:
            changed = {**params, "embeddings": {**params["embeddings"], "word_embeddings": table}}
            _, outputs = evaluate((self.objective,), MODEL, changed, batch)
            return outputs["choice_logits"][0, 1]

        moved = np.flatnonzero(np.abs(jax.grad(logit)(table)).sum(1))
        own = set(batch["encoder_input_tokens"][0, 4:7].tolist())
        assert set(moved.tolist()) == own

    def test_rows_hold_one_example(self) -> None:
        assert texts_a_row((self.objective,)) == 3
        with pytest.raises(PlugError, match="MultipleChoice reads one example a row"):
            check_rows((self.objective,), pack=True)
        with pytest.raises(PlugError, match="do not agree on how many texts"):
            texts_a_row((self.objective, MaskedLM()))


def test_span_is_the_mean_of_both_ends() -> None:
    objective = Span()
    params = params_of(objective)
    batch = text(3, [[12], [7], [9]])
    starts, ends = np.zeros((3, LENGTH), np.int32), np.zeros((3, LENGTH), np.int32)
    starts[0, 3] = ends[0, 5] = starts[1, 0] = ends[1, 0] = 1  # the third is unlabelled
    batch |= {"span_starts": starts, "span_ends": ends}
    logits = head_by_hand(params["heads"]["span"], states_of(params, batch))
    logits[1, 7:] = logits[2, 9:] = -np.inf  # no padding is an end
    first, last = log_softmax(logits[..., 0]), log_softmax(logits[..., 1])
    expected = -np.mean([(first[0, 3] + last[0, 5]) / 2, (first[1, 0] + last[1, 0]) / 2])
    found = values(objective, params, batch)
    assert found["span_loss"] == pytest.approx(expected, rel=1e-5)
    _, outputs = evaluate((objective,), MODEL, params, batch)
    np.testing.assert_allclose(outputs["span_logits"][0, 1], logits[0, :, 1], rtol=1e-4, atol=1e-5)
    with pytest.raises(PlugError, match="Span reads one example a row"):
        check_rows((objective,), pack=True)


def test_tagging_is_the_mean_over_tokens() -> None:
    objective = Tagging(labels=("B", "I", "O"))
    params = params_of(objective)
    batch = text(2, [[5, 6], [4]])
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, (2, LENGTH)).astype(np.int32)
    weights = (batch["encoder_segment_ids"] > 0) & (batch["encoder_positions"] > 0)
    batch |= {"tagging_labels": labels, "tagging_weights": weights.astype(np.int32)}
    logits = head_by_hand(params["heads"]["tagging"], states_of(params, batch))
    of_tokens = -np.take_along_axis(log_softmax(logits), labels[..., None], -1)[..., 0]
    found = values(objective, params, batch)
    assert found["tagging_loss"] == pytest.approx(of_tokens[weights].mean(), rel=1e-5)
    hits = (logits.argmax(-1) == labels)[weights].mean()
    assert found["tagging_accuracy"] == pytest.approx(hits)
    check_rows((objective,), pack=True)
    with pytest.raises(PlugError, match="Tagging predicts one example a row"):
        check_rows((objective,), pack=True, predict=True)


def test_regression_is_the_mean_squared_error() -> None:
    objective = Regression()
    params = params_of(objective)
    batch = text(2, [[5, 6], [4]])
    targets, weights = at_cls(batch, [0.5, -1.0, 2.0], np.float32)
    batch |= {"regression_targets": targets, "regression_weights": weights}
    guesses = head_by_hand(params["heads"]["regression"], states_of(params, batch))[..., 0]
    errors = (guesses - targets)[weights > 0] ** 2
    assert values(objective, params, batch)["regression_loss"] == pytest.approx(
        errors.mean(), rel=1e-5
    )


def test_rows_that_are_no_example_are_told_apart() -> None:
    objective = Classification(labels=("a", "b"))
    batch = text(3, [[12], [7], []])
    batch["example_index"] = np.array([[4], [9], [0]]) * (batch["encoder_segment_ids"] > 0)
    found, weights = at_cls(batch, [0, 1])
    batch |= {"classification_labels": found, "classification_weights": weights}
    _, outputs = evaluate((objective,), MODEL, params_of(objective), batch)
    assert outputs["example_index"].tolist() == [4, 9, -1]


@pytest.mark.parametrize(
    "objective",
    [
        Classification(labels=("a", "b")),
        MultipleChoice(choices=3),
        Span(),
        Tagging(labels=("a", "b")),
        Regression(),
    ],
    ids=lambda one: one.name,
)
def test_heads_carry_logical_axes_and_torch_names(objective: TaskObjective) -> None:
    boxed = jax.eval_shape(
        lambda: objective.head(CONFIG).init(jax.random.key(0), jnp.zeros((1, 1, 16)))["params"]
    )
    assert all(isinstance(leaf, nn.LogicallyPartitioned) for leaf in jax.tree.leaves(
        boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)))  # fmt: skip
    layers = ["dense", "output"] if objective.pooler else ["output"]
    assert {entry.leaf for entry in objective.tensors} == {
        f"heads/{objective.name}/{layer}/{part}" for layer in layers for part in ("kernel", "bias")
    }
