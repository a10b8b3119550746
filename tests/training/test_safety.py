"""Skipped updates, step by step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.errors import PlugError
from plug_jax.metrics import Mean, add
from plug_jax.objectives.composition import summarize_metrics
from plug_jax.objectives.forward import Forward
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.partitioning import put_batch
from plug_jax.techniques.child_tuning import ChildTuningF
from plug_jax.techniques.r_drop import RDrop
from plug_jax.techniques.techniques import Techniques
from plug_jax.training.optimizer import OptimizerConfig
from plug_jax.training.safety import (
    WINDOW,
    SafetyConfig,
    SafetyState,
    clipping,
    judge,
)
from plug_jax.training.state import TrainState
from plug_jax.training.step import StepConfig
from tests import synthetic
from tests.objectives.toy_classification import ToyClassification
from tests.training.program_runs import MESH, program_of, run_config, start

POISON = 89  # a token: the loss of a batch with it is NaN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisoned(MaskedLM):
    """Masked LM whose loss is NaN for a batch with one token."""

    token: int = POISON

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        return poisoned(super().metrics(forward), "tokens_loss", forward, self.token)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoisonedToy(ToyClassification):
    """The same for an objective that predicts distributions, which techniques need."""

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        return poisoned(super().metrics(forward), "toy_loss", forward, POISON)


def poisoned(found: dict[str, Mean], name: str, forward: Forward, token: int) -> dict[str, Mean]:
    bad = jnp.any(forward.batch["encoder_original_tokens"] == token)
    loss = found[name]
    return found | {name: Mean(loss.total * jnp.where(bad, jnp.nan, 1), loss.weight)}


def batch(seed: int, *, poisoned: bool = False) -> dict[str, np.ndarray]:
    made = synthetic.batch(seed=seed)
    tokens = made["encoder_original_tokens"]
    tokens[tokens == POISON] = POISON - 1
    if poisoned:
        tokens[-1, 1] = POISON
    return made


STEPS = {
    "plain": {},
    "mesh": {"partitioner": MESH},
    "micro_batches": {
        "step": StepConfig(micro_batches=2),
        "optimizer": OptimizerConfig(name="adafactor", learning_rate=1e-2, warmup_fraction=0.5),
    },
    "techniques": {
        "techniques": Techniques(r_drop=RDrop(), child_tuning=ChildTuningF()),
        "optimizer": OptimizerConfig(moment_dtype="bfloat16", learning_rate=1e-2),
        "objectives": (PoisonedToy(),),
        "model": synthetic.tiny_config(num_decoder_layers=0, num_encoder_layers=1),
    },
}


@pytest.mark.parametrize("changes", STEPS.values(), ids=STEPS)
def test_a_batch_that_is_not_finite_changes_nothing(changes: dict[str, Any]) -> None:
    """Parameters and slots are unchanged to the bit; the next step is as if it had not occurred."""
    config = run_config(**({"objectives": (Poisoned(),)} | changes))
    with program_of(config) as program:

        def step(state: TrainState, one: dict[str, np.ndarray]) -> tuple[TrainState, dict]:
            state, metrics = program.train_step(
                state, put_batch(one, config.partitioner.batch_sharding)
            )
            return state, summarize_metrics(config.objectives, add([metrics]))

        state, values = step(start(config, program), batch(0))
        assert "skipped" not in values
        before = jax.device_get(state)
        state, values = step(state, batch(1, poisoned=True))
        skipped = jax.device_get(state)
        assert np.isnan(values["loss"]) and values["skipped"] == values["skipped_in_a_row"] == 1
        jax.tree.map(np.testing.assert_array_equal, skipped.params, before.params)
        jax.tree.map(np.testing.assert_array_equal, skipped.opt_state, before.opt_state)
        assert (before.step, skipped.step) == (1, 2)
        state, values = step(state, batch(2))
        assert values["skipped"] == 1 and "skipped_in_a_row" not in values
        never = jax.device_put(
            dataclasses.replace(before, step=np.int32(2)), program.layout.shardings
        )
        never, expected = step(never, batch(2))
        assert values["loss"] == expected["loss"]
        assert values["learning_rate"] == expected["learning_rate"]
        jax.tree.map(np.testing.assert_array_equal, state.params, never.params)
        jax.tree.map(np.testing.assert_array_equal, state.opt_state, never.opt_state)
        assert not np.array_equal(
            *(s.params["embeddings"]["word_embeddings"] for s in (skipped, jax.device_get(state)))
        )


def judged(config: SafetyConfig, *steps: tuple[float, float]) -> tuple[list[bool], SafetyState]:
    """Which of the updates with these (loss, norm) are applied."""
    one = jax.jit(lambda *args: judge(config, *args))
    state, made = SafetyState.start(), []
    for number, (loss, norm) in enumerate(steps):
        good, state = one(state, number, jnp.float32(loss), jnp.float32(norm))
        made.append(bool(good))
    return made, state


def test_what_is_not_finite_is_counted() -> None:
    nan, inf = float("nan"), float("inf")
    made, state = judged(SafetyConfig(), (1, 1), (nan, 1), (1, inf), (inf, nan), (1, 1), (1, nan))
    assert made == [True, False, False, False, True, False]
    assert (state.skipped, state.in_a_row) == (4, 1)
    assert np.flatnonzero(np.isfinite(state.losses)).tolist() == [0, 4]


def test_a_loss_far_above_the_median_is_skipped_if_asked_for() -> None:
    """The median of 0, 1, ... 39 is 19.5 and the median distance from it 10: 14.826 a deviation."""
    usual = [(float(i), 1.0) for i in range(40)]
    spikes = SafetyConfig(loss_spike=4.0)
    limit = 19.5 + 4 * 14.826
    for loss, expected in ((limit - 0.1, True), (limit + 0.1, False), (-1e6, True)):
        made, _ = judged(spikes, *usual, (loss, 1.0))
        assert made == [True] * 40 + [expected]
        assert all(judged(SafetyConfig(), *usual, (loss, 1.0))[0])
    made, _ = judged(spikes, *usual[:31], (1e6, 1.0))
    assert all(made)  # too few for a comparison
    # A loss that stays high soon becomes the norm; the window drops older ones.
    made, state = judged(spikes, *[(1.0 + i % 2, 1.0) for i in range(WINDOW)], *[(9.0, 1.0)] * 100)
    assert made == [True] * WINDOW + [False] * 64 + [True] * 36
    assert np.sum(state.losses == 9) == 100


def test_a_gradient_is_clipped_to_a_multiple_of_its_usual_norm() -> None:
    config = SafetyConfig(norm_spike=2.0)
    _, state = judged(config, (1, 3.0))
    assert state.norm == 3
    assert clipping(config, SafetyState.start(), jnp.float32(1e9)) == 1
    assert clipping(config, state, jnp.float32(6.0)) == 1
    assert clipping(config, state, jnp.float32(24.0)) == pytest.approx(0.25)
    _, state = judged(config, (1, 3.0), (1, 24.0), (1, float("nan")))
    assert state.norm == pytest.approx(0.97 * 3 + 0.03 * 6)


def test_clipped_spikes_train_as_smaller_gradients_do() -> None:
    config = run_config(safety=SafetyConfig(norm_spike=1.0))
    with program_of(config) as program:
        state = start(config, program)
        usual = dataclasses.replace(SafetyState.start(), norm=np.float32(1e-3))
        state = dataclasses.replace(
            state, safety=jax.device_put(usual, program.layout.shardings.safety)
        )
        state, metrics = program.train_step(
            state, put_batch(batch(0), config.partitioner.batch_sharding)
        )
        adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(s))
        norm = float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(adam.mu)))) / 0.1
        assert metrics["grad_norm"].total > 1e-2
        assert norm == pytest.approx(1e-3, rel=1e-4)
        assert state.safety.norm == pytest.approx(1e-3, rel=1e-6)


def _is_adam(node: Any) -> bool:
    return hasattr(node, "mu")


def test_bad_settings() -> None:
    for wrong in (
        {"skipped_in_a_row": 0},
        {"rollbacks": -1},
        {"loss_spike": -1.0},
        {"norm_spike": 0.5},
    ):
        with pytest.raises(PlugError, match=next(iter(wrong))):
            SafetyConfig(**wrong)
