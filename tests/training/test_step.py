"""One step: micro-batches, meshes, objectives and the phase switch."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax import metrics as metrics_lib
from plug_jax.config import PlugConfig
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import (
    Objectives,
    summarize_metrics,
)
from plug_jax.objectives.continuation import Continuation
from plug_jax.objectives.forward import Forward
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.stages import PALM, STRUCTBERT
from plug_jax.partitioning import Partitioner, put_batch
from plug_jax.training.optimizer import (
    OptimizerConfig,
    OptimizerName,
    make_optimizer,
    make_schedule,
)
from plug_jax.training.state import TrainState, init_state, state_layout
from plug_jax.training.step import StepConfig, make_eval_step, make_train_step
from tests import synthetic

STAGE_1 = {"num_decoder_layers": 0}
STAGE_2 = (MaskedLM(), Continuation())  # masked LM until the end


def stage_of(config: PlugConfig) -> Objectives:
    return STAGE_2 if config.num_decoder_layers else STRUCTBERT


def run_steps(
    config: PlugConfig,
    batches: list[dict[str, np.ndarray]],
    *,
    partitioner: Partitioner | None = None,
    step: StepConfig | None = None,
    objectives: Objectives | None = None,
    train_steps: int = 100,
    optimizer_config: OptimizerConfig | None = None,
) -> tuple[TrainState, list[dict[str, float]]]:
    """Train on the batches in order; default: on one device, without a mesh to shard over."""
    partitioner = partitioner or Partitioner(data=8)
    model, objectives = PlugModel(config), objectives or stage_of(config)
    optimizer_config = optimizer_config or OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.0)
    schedule = make_schedule(optimizer_config, train_steps)
    optimizer = make_optimizer(optimizer_config, schedule)
    with partitioner.context():
        layout = state_layout(model, objectives, optimizer, partitioner)
        train_step = make_train_step(
            model,
            objectives,
            optimizer,
            schedule,
            step or StepConfig(),
            train_steps=train_steps,
            seed=3,
            grad_shardings=layout.gradients,
        )
        state = init_state(model, objectives, optimizer, layout, seed=0)
        jitted = jax.jit(
            train_step,
            in_shardings=(layout.shardings, partitioner.batch_sharding),
            out_shardings=(layout.shardings, partitioner.replicated),
        )
        values = []
        for one in batches:
            state, metrics = jitted(state, put_batch(one, partitioner.batch_sharding))
            values.append(summarize_metrics(objectives, metrics_lib.add([metrics])))
    return state, values


def assert_close(a: TrainState, b: TrainState, atol: float) -> None:
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=0, atol=atol),
        a.params,
        b.params,
    )


@pytest.mark.parametrize("decoder", [None, 24], ids=["stage1", "stage2"])
def test_mesh_equals_single_device(decoder: int | None) -> None:
    """A 2x2x2 mesh gives the single device's parameters and metrics to 1e-5, dropout included."""
    config = synthetic.tiny_config(
        num_decoder_layers=2 if decoder else 0, dropout_rate=0.1, attention_dropout_rate=0.1
    )
    batches = [synthetic.batch(decoder=decoder, seed=s) for s in range(2)]
    sgd_like = OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.0, epsilon=1e-3)
    sharded, sharded_values = run_steps(
        config,
        batches,
        partitioner=Partitioner(data=2, fsdp=2, tensor=2),
        optimizer_config=sgd_like,
    )
    single, single_values = single_device_steps(config, batches, sgd_like)
    assert_close(sharded, single, 1e-5)
    for a, b in zip(sharded_values, single_values, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert value == pytest.approx(b[name], abs=1e-5, rel=1e-5), name
    kernel = sharded.params["encoder"]["layers"]["mlp"]["wi"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 8, 16)  # embed / fsdp, mlp / tensor


def single_device_steps(
    config: PlugConfig, batches: list[dict[str, np.ndarray]], optimizer_config: OptimizerConfig
) -> tuple[TrainState, list[dict[str, float]]]:
    """The plain functions on one device: no mesh, no shardings."""
    model, objectives = PlugModel(config), stage_of(config)
    schedule = make_schedule(optimizer_config, 100)
    optimizer = make_optimizer(optimizer_config, schedule)
    params = nn.unbox(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    step = jax.jit(
        make_train_step(
            model, objectives, optimizer, schedule, StepConfig(), train_steps=100, seed=3
        )
    )
    values = []
    for one in batches:
        state, metrics = step(state, one)
        values.append(summarize_metrics(objectives, metrics_lib.add([metrics])))
    return state, values


@pytest.mark.parametrize("decoder", [None, 24], ids=["stage1", "stage2"])
def test_micro_batches_give_the_same_update(decoder: int | None) -> None:
    config = synthetic.tiny_config(num_decoder_layers=2 if decoder else 0)
    batches = [synthetic.batch(rows=16, decoder=decoder)]
    adam = OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.0, epsilon=1e-3)
    whole, whole_values = run_steps(config, batches, optimizer_config=adam)
    split, split_values = run_steps(
        config, batches, step=StepConfig(micro_batches=2, loss_chunk=4), optimizer_config=adam
    )
    assert_close(whole, split, 1e-6)
    assert whole_values[0] == pytest.approx(split_values[0], rel=1e-5, abs=1e-6)


def test_switch_drops_masked_lm_exactly_at_its_step() -> None:
    """At 90% of 10 steps: step 9 still has masked LM; step 10 reads original text and has none."""
    config = synthetic.tiny_config()
    batches = [synthetic.batch(decoder=24, seed=s) for s in range(10)]
    _, values = run_steps(config, batches, objectives=PALM, train_steps=10)
    assert ["mlm_loss" in v for v in values] == [True] * 9 + [False]
    assert values[-1]["loss"] == pytest.approx(values[-1]["decoder_loss"], rel=1e-6)
    assert values[0]["loss"] == pytest.approx(
        values[0]["decoder_loss"] + values[0]["mlm_loss"], rel=1e-6
    )


def test_last_phase_encodes_the_original_text() -> None:
    """After the switch the update does not depend on how the input was corrupted."""
    config = synthetic.tiny_config()
    one = synthetic.batch(decoder=24)
    other = dict(one, encoder_input_tokens=np.full_like(one["encoder_input_tokens"], 7))
    for until in (0.0, 1.0):
        objectives = (MaskedLM(until=until), Continuation())
        states = [run_steps(config, [b], objectives=objectives)[0] for b in (one, other)]
        if until:
            with pytest.raises(AssertionError):
                assert_close(*states, 0)
        else:
            assert_close(*states, 0)


@pytest.mark.slow
def test_overfits_one_batch_in_every_objective() -> None:
    for stage in (STAGE_1, {}):
        config = synthetic.tiny_config(**stage)
        one = synthetic.batch(decoder=None if stage else 24)
        _, values = run_steps(config, [one] * 150, train_steps=150)
        last = values[-1]
        names = ["mlm_accuracy"]
        names += ["word_order_accuracy", "sentence_accuracy"] if stage else ["decoder_accuracy"]
        for name in names:
            assert last[name] > 0.9, (name, last)
        assert last["loss"] < 0.3 * values[0]["loss"]


def test_metrics_of_a_step_have_their_names() -> None:
    common = {
        "loss", "tokens_loss", "mlm_loss", "mlm_accuracy", "prediction_overflow",
        "pad_fraction", "encoder_pad_fraction", "tokens", "grad_norm", "learning_rate",
    }  # fmt: skip
    _, (stage_1,) = run_steps(synthetic.tiny_config(**STAGE_1), [synthetic.batch()])
    assert set(stage_1) == common | {
        "word_order_loss", "word_order_accuracy", "sentence_loss", "sentence_accuracy",
    }  # fmt: skip
    one = synthetic.batch(decoder=24)
    _, (stage_2,) = run_steps(synthetic.tiny_config(), [one])
    assert set(stage_2) == common | {
        "decoder_loss", "decoder_accuracy", "decoder_perplexity", "decoder_pad_fraction",
    }  # fmt: skip
    assert stage_2["decoder_perplexity"] == pytest.approx(np.exp(stage_2["decoder_loss"]))
    real = (one["encoder_segment_ids"] > 0).sum() + (one["decoder_segment_ids"] > 0).sum()
    assert stage_2["tokens"] == real
    assert stage_2["pad_fraction"] == pytest.approx(1 - real / (8 * 48))
    for side in ("encoder", "decoder"):
        padding = (one[f"{side}_segment_ids"] == 0).mean()
        assert stage_2[f"{side}_pad_fraction"] == pytest.approx(padding)


def test_select_predictions_example() -> None:
    """The docstring's example, and predictions beyond the capacity are counted."""
    batch = {
        "encoder_loss_weights": jnp.array([[0, 1, 0, 1], [1, 1, 1, 0]]),
        "encoder_shuffled": jnp.array([[0, 0, 0, 1], [0, 0, 0, 0]]),
        "encoder_original_tokens": jnp.array([[7, 8, 9, 5], [1, 2, 3, 4]]),
    }
    out = MaskedLM(capacity=0.5).select_predictions(batch)
    assert out["prediction_positions"].tolist() == [[1, 3], [0, 1]]
    assert out["prediction_labels"].tolist() == [[8, 5], [1, 2]]
    assert out["prediction_weights"].tolist() == [[1, 1], [1, 1]]
    assert out["prediction_shuffled"].tolist() == [[0, 1], [0, 0]]
    assert out["prediction_overflow"].tolist() == [0, 1]


def test_predicting_at_selected_positions_equals_predicting_everywhere() -> None:
    """The gathered head gives the loss that the head over all positions gives."""
    config = synthetic.tiny_config(**STAGE_1)
    model = PlugModel(config)
    one = {k: jnp.asarray(v) for k, v in synthetic.batch().items()}
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    everything = (MaskedLM(word_structural=True, capacity=1.0),)
    metrics = make_eval_step(model, everything, StepConfig())(params, one)[0]
    encoded = Forward(model, params, one, uncorrupted=everything[0].uncorrupted).encoded
    logits = model.apply({"params": params}, encoded, method="mlm_logits")
    log_probs = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probs, one["encoder_original_tokens"][..., None], -1)[..., 0]
    expected = -jnp.sum(picked * one["encoder_loss_weights"]) / jnp.sum(one["encoder_loss_weights"])
    assert float(metrics["tokens_loss"].value()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("name", "slot"), [("adafactor", "v_row"), ("muon", "mu")])
def test_other_optimizers_train_and_are_sharded(name: OptimizerName, slot: str) -> None:
    config = synthetic.tiny_config(
        hidden_size=128, mlp_dim=128, num_encoder_layers=1, num_decoder_layers=1
    )
    optimizer = OptimizerConfig(name=name, learning_rate=1e-2, warmup_fraction=0.0)
    one = synthetic.batch(decoder=24)
    state, values = run_steps(
        config,
        [one] * 3,
        partitioner=Partitioner(data=2, fsdp=2, tensor=2),
        optimizer_config=optimizer,
    )
    assert values[-1]["loss"] < values[0]["loss"]
    slots = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
    }
    found = next(n for n in slots if n.endswith(f"{slot}/encoder/layers/mlp/wi/kernel"))
    kept = slots[found]
    assert kept.addressable_shards[0].data.size < kept.size  # Adafactor's factored slots too


def test_a_batch_that_does_not_divide() -> None:
    message = r"BATCH_SIZE 12 .* the nearest that does: 16 .* fewer devices, or more .* `tensor`"
    with pytest.raises(PlugError, match=message):
        Partitioner(data=4, fsdp=2).check_batch(12, micro_batches=2)


def test_step_config_says_what_is_wrong() -> None:
    with pytest.raises(PlugError, match="MaskedLM.until"):
        MaskedLM(until=1.5)
    with pytest.raises(PlugError, match="micro_batches"):
        dataclasses.replace(StepConfig(), micro_batches=0)
