"""Each technique against its formula, on a tiny classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from plug_jax.checkpoints.parameters import init_params
from plug_jax.errors import PlugError
from plug_jax.hosts.activity import Activity, current, doing
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.span import Span
from plug_jax.objectives.stages import STRUCTBERT
from plug_jax.parameter_paths import by_path
from plug_jax.techniques import fgm, r_drop, smart
from plug_jax.techniques.child_tuning import ChildTuningD, ChildTuningF, of_layers, with_mask
from plug_jax.techniques.fgm import Fgm
from plug_jax.techniques.passes import Passes, symmetric_kl
from plug_jax.techniques.r_drop import RDrop
from plug_jax.techniques.smart import Smart
from plug_jax.techniques.techniques import Techniques
from plug_jax.training import fisher, opening
from plug_jax.training.fisher import fisher_of, top_mask
from plug_jax.training.optimizer import OptimizerConfig, make_optimizer
from plug_jax.training.step import StepConfig
from tests import synthetic
from tests.objectives.sentence_length import SentenceLength
from tests.objectives.toy_classification import ToyClassification
from tests.training.program_runs import MESH, assert_close, program_of, run, run_config, start

TOY = (ToyClassification(),)
RNG = jax.random.key(7)


def passes_of(*, dropout: float = 0.0) -> Passes:
    config = synthetic.tiny_config(
        num_decoder_layers=0, num_encoder_layers=1, dropout_rate=dropout, init_std=0.5
    )
    model = PlugModel(config)
    params = init_params(model, jax.random.key(0), TOY)
    batch = {k: jnp.asarray(v) for k, v in synthetic.batch(rows=2).items()}
    weights = {"toy": TOY[0].predictions(batch)}
    return Passes(TOY, model, params, batch, weights, chunk=0)


def logits_of(passes: Passes, rng: jax.Array, perturbation: jax.Array | None = None) -> jax.Array:
    return TOY[0].distributions(passes.forward(rng, perturbation))[0]


def cross_entropy(passes: Passes, logits: jax.Array) -> float:
    logits, weights = np.asarray(logits, np.float64), np.asarray(passes.batch["sentence_weights"])
    labels = np.asarray(passes.batch["sentence_labels"])
    log_p = scipy.special.log_softmax(logits, axis=-1)
    picked = np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    return float(-(picked * weights).sum() / weights.sum())


def both_kl(passes: Passes, one: jax.Array, other: jax.Array) -> float:
    """The mean over predictions of KL(p, q) + KL(q, p)."""
    weights = np.asarray(passes.batch["sentence_weights"])
    p, q = (scipy.special.softmax(np.asarray(x, np.float64), -1) for x in (one, other))
    kl = (p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)
    return float((kl * weights).sum() / weights.sum())


def test_a_class_that_both_leave_out_counts_nothing() -> None:
    """p = (1/2, 1/2, 0), q = (1/4, 3/4, 0)."""
    p, q = jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.log(jnp.array([0.25, 0.75, 0.0]))
    expected = 0.25 * np.log(2) + (-0.25) * np.log(0.5 / 0.75)
    assert float(symmetric_kl(p, q)) == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(jax.grad(lambda x: symmetric_kl(x, q))(p)[:2]).all()


def test_r_drop_is_its_formula() -> None:
    passes = passes_of(dropout=0.3)
    configs = [
        RDrop(),  # CLUE
        RDrop(alpha=5.0, kl_scale=0.5),  # translation
        RDrop(alpha=1.0, cross_entropy="sum"),  # GLUE
    ]

    @jax.jit
    def computed() -> tuple:
        keys = (RNG, jax.random.fold_in(RNG, r_drop._SALT))
        found = [config.loss(passes, passes.forward(RNG), RNG) for config in configs]
        return [logits_of(passes, key) for key in keys], found

    (one, two), found = computed()
    assert not np.allclose(one, two)
    first, second = cross_entropy(passes, one), cross_entropy(passes, two)
    kl = both_kl(passes, one, two)
    expected = [
        (first + second) / 2 + 4 / 4 * kl,
        (first + second) / 2 + 5 * kl / 2,
        first + second + 0.25 * kl,
    ]
    for (total, metrics), loss in zip(found, expected, strict=True):
        assert float(total) == pytest.approx(loss, rel=1e-5)
        assert float(metrics["r_drop_kl"].value()) == pytest.approx(kl, rel=1e-4)
        assert float(metrics["toy_loss"].value()) == pytest.approx((first + second) / 2, rel=1e-5)


def test_a_span_is_one_prediction() -> None:
    """Loss and metric have the mean of its ends' divergences, as its cross-entropy does."""
    toy = passes_of(dropout=0.3)
    ends = jnp.zeros((2, 24), jnp.int32).at[0, 3].set(1)  # the second row's answer is unknown
    batch = dict(toy.batch) | {"span_starts": ends, "span_ends": ends}
    params = init_params(toy.model, jax.random.key(0), (Span(),))
    weights = {"span": Span().predictions(batch)}
    passes = Passes((Span(),), toy.model, params, batch, weights, chunk=0)
    config = RDrop(alpha=2.0, kl_scale=0.5)
    keys = (RNG, jax.random.fold_in(RNG, r_drop._SALT))

    @jax.jit
    def computed() -> tuple:
        logits = [Span().distributions(passes.forward(key))[0] for key in keys]
        return *logits, *config.loss(passes, passes.forward(RNG), RNG)

    one, other, total, metrics = computed()
    divergence = float(symmetric_kl(one, other)[0].mean())
    assert divergence > 1e-3
    assert float(metrics["r_drop_kl"].value()) == pytest.approx(divergence, rel=1e-4)
    assert float(total - metrics["span_loss"].value()) == pytest.approx(divergence, rel=1e-3)


def test_smart_is_its_formula() -> None:
    """With large values, so that the gradient's step matters beside the noise."""
    passes = passes_of(dropout=0.1)
    config = Smart(weight=2.0, noise=0.1, step_size=3.0, steps=2)
    noise_rng, rng = jax.random.split(jax.random.fold_in(RNG, smart._SALT))
    weights = passes.batch["sentence_weights"]

    @jax.jit
    def near(perturbation: jax.Array, clean: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Predictions near x, and the gradient of their distance from the clean pass."""

        def divergence(perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = logits_of(passes, rng, perturbation)
            return jnp.sum(symmetric_kl(clean, logits) * weights), logits

        gradient, logits = jax.grad(divergence, has_aux=True)(perturbation)
        return logits, gradient

    @jax.jit
    def computed() -> tuple:
        clean = passes.forward(RNG)
        return logits_of(passes, RNG), *config.loss(passes, clean, RNG)

    clean, added, metric = computed()
    r = config.noise * jax.random.normal(noise_rng, (2, 24, 16))
    for _ in range(2):
        u = np.asarray(r + config.step_size * near(r, clean)[1])
        r = jnp.asarray(u / (np.abs(u).max(-1, keepdims=True) + 1e-6))
    expected = both_kl(passes, clean, near(r, clean)[0])
    assert float(added) == pytest.approx(2 * expected, rel=1e-4)
    assert float(metric.value()) == pytest.approx(expected, rel=1e-4)
    defaults = Smart()
    assert (defaults.weight, defaults.noise, defaults.step_size, defaults.steps) == (
        1.0, 1e-5, 1e-3, 1,
    )  # fmt: skip


def test_fgm_adds_the_gradient_of_the_moved_table() -> None:
    passes = passes_of()

    @jax.jit
    def gradient(params: Any, rng: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            moved = dataclasses.replace(passes, params=params)
            return moved.loss(moved.forward(rng))[0]

        return jax.grad(loss)(params)

    def plain(params: Any, rng: jax.Array) -> tuple[Any, str]:
        return gradient(params, rng), "metrics"

    found, others = Fgm(epsilon=0.5).gradient(plain, passes.params, RNG)
    assert others == "metrics"
    first = gradient(passes.params, RNG)
    table = np.asarray(first["embeddings"]["word_embeddings"])
    moved = jax.tree.map(lambda x: x, passes.params)
    moved["embeddings"]["word_embeddings"] += 0.5 * table / np.sqrt((table**2).sum())
    second = gradient(moved, jax.random.fold_in(RNG, fgm._SALT))
    assert_close(found, jax.tree.map(np.add, first, second), 1e-6)
    assert not np.allclose(first["heads"]["toy"]["kernel"], second["heads"]["toy"]["kernel"], 1e-2)


def test_child_tuning_f_keeps_a_part_and_scales_it() -> None:
    """After clipping, before the moments, with a new mask every step, the same for a given step."""
    params = {"w": {"kernel": jnp.zeros(20_000)}}
    config = OptimizerConfig(learning_rate=0.1, clip_norm=1.0, b1=0.9, weight_decay=0.0)
    masking = ChildTuningF(p=0.2).transformation(3)
    optimizer = make_optimizer(config, lambda _: 0.1, masking=masking)
    grads = {"w": {"kernel": jnp.full(20_000, 1.0)}}
    moments = []
    for step in (0, 1, 0):
        _, state = optimizer.update(grads, optimizer.init(params), params, step=jnp.int32(step))
        mu = next(s.mu for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s))
        moments.append(np.asarray(mu["w"]["kernel"]))
    kept = moments[0] > 0
    np.testing.assert_allclose(moments[0][kept], 0.1 / np.sqrt(20_000) / 0.2, rtol=1e-4)
    assert abs(kept.mean() - 0.2) < 5 * np.sqrt(0.16 / 20_000)
    np.testing.assert_array_equal(moments[0], moments[2])
    assert abs((kept & (moments[1] > 0)).mean() - 0.04) < 5 * np.sqrt(0.04 / 20_000)


def is_adam(state: object) -> bool:
    return hasattr(state, "mu")


def test_top_mask_is_numpys_percentile() -> None:
    rng = np.random.default_rng(0)
    values = {
        "a": rng.exponential(size=(3, 7)).astype(np.float32),
        "b": np.concatenate([np.zeros((1, 5)), rng.random((1, 5))]).astype(np.float32),
    }
    for p in (0.05, 0.2, 0.3, 0.5, 0.9):
        polar = np.percentile(np.concatenate([v.ravel() for v in values.values()]), (1 - p) * 100)
        mask = top_mask(jax.tree.map(jnp.asarray, values), p)
        for name, value in values.items():
            np.testing.assert_array_equal(mask[name], value >= polar)


def test_child_tuning_d_moves_the_top_of_the_fisher(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = OptimizerConfig(
        learning_rate=1e-2, warmup_fraction=0.0, weight_decay=0.0, clip_norm=0.05
    )
    config = run_config(
        objectives=TOY, techniques=Techniques(child_tuning=ChildTuningD(0.3)), optimizer=optimizer
    )
    batches = [synthetic.batch(seed=seed) for seed in range(2)]

    def feed(data: Any, *_: Any, **__: Any) -> Iterator[dict[str, jax.Array]]:
        assert data.num_epochs == 1
        yield from batches

    monkeypatch.setattr(fisher, "Feed", feed)
    with program_of(config) as program:
        state = start(config, program)
        values = fisher_of(config, program, state.params)
        expected: dict[str, Any] = dict.fromkeys(values, 0.0)
        for batch in batches:
            passes = Passes(TOY, program.model, state.params, batch, weights_of(batch), 0)

            def loss(params: Any, passes: Passes = passes) -> jax.Array:
                passes = dataclasses.replace(passes, params=params)
                return passes.loss(passes.forward(RNG))[0]

            for path, g in of_layers(jax.jit(jax.grad(loss))(state.params)).items():
                norms = np.sqrt((np.asarray(g) ** 2).sum(tuple(range(1, g.ndim)), keepdims=True))
                expected[path] += (np.asarray(g) * np.minimum(1, 0.05 / (norms + 1e-6))) ** 2
        assert_close(dict(values), expected, 1e-9)
        flat = np.concatenate([np.ravel(v) for v in values.values()])
        mask = top_mask(values, 0.3)
        chosen = np.concatenate([np.ravel(mask[path]) for path in values])
        np.testing.assert_array_equal(chosen, flat >= np.percentile(flat, 70))
        before = by_path(jax.device_get(state.params))
        state = dataclasses.replace(state, opt_state=with_mask(state.opt_state, mask))
        mask = jax.device_get(mask)
        state, _ = program.train_step(state, batches[0])
        for path, leaf in by_path(jax.device_get(state.params)).items():
            moved = leaf != before[path]
            if path in mask:
                assert not moved[~mask[path]].any(), path
            elif path.startswith(("heads", "embeddings/word")):
                assert moved.any(), path
        some = mask["encoder/layers/mlp/wi/kernel"]
        assert (by_path(state.params)["encoder/layers/mlp/wi/kernel"] != before[
            "encoder/layers/mlp/wi/kernel"])[some].mean() > 0.9  # fmt: skip
        stored = by_path(next(s.child_mask for s in state.opt_state if hasattr(s, "child_mask")))
        assert_close(dict(stored), dict(mask), 0)


def test_child_tuning_ds_pass_shows_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is progress, and compiling is not watched; neither is choosing from the pass."""
    seen: list[tuple[str, Activity]] = []

    def feed(*_: Any, **__: Any) -> Iterator[int]:
        for number in range(20):
            seen.append((f"read {number}", current()))
            yield number

    def step_of(*_: Any) -> Any:
        def step(found: Any, params: Any, batch: Any, number: Any) -> Any:
            seen.append(("compile", current()))
            return jax.tree.map(lambda x: x + batch, found)

        return step

    def chosen(values: Any, part: float) -> Any:
        seen.append(("choose", current()))
        assert all((value == 190).all() for value in values.values())
        return top_mask(values, part)

    monkeypatch.setattr(fisher, "Feed", feed)
    monkeypatch.setattr(fisher, "_fisher_step", step_of)
    monkeypatch.setattr(opening, "top_mask", chosen)
    config = run_config(objectives=TOY, techniques=Techniques(child_tuning=ChildTuningD(0.3)))
    doing("reading the first batches")
    with program_of(config) as program:
        state = start(config, program)
        opened = SimpleNamespace(
            config=config,
            program=program,
            state=state,
            is_new=True,
            progress=SimpleNamespace(say=lambda line: None),
        )
        opening.with_chosen_parameters(opened)  # type: ignore[arg-type]
    activities = dict(seen)
    assert [activities[f"read {n}"].name for n in range(20)] == [
        f"Child-Tuning D, batch {n + 1}" for n in range(20)
    ]
    assert all(activities[f"read {n}"].watched for n in range(20))
    assert not activities["compile"].watched and not activities["choose"].watched


def weights_of(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {"toy": TOY[0].predictions(batch)}


ALL = Techniques(r_drop=RDrop(), smart=Smart(), fgm=Fgm(), child_tuning=ChildTuningF(0.5))


@pytest.mark.slow
def test_all_together_on_a_mesh_as_on_one_device() -> None:
    model = synthetic.tiny_config(num_encoder_layers=1, num_decoder_layers=0, dropout_rate=0.1)
    optimizer = OptimizerConfig(
        learning_rate=1e-2, warmup_fraction=0.0, epsilon=1e-3, layer_decay=0.8
    )
    config = run_config(objectives=TOY, techniques=ALL, model=model, optimizer=optimizer)
    batch = synthetic.batch()
    _, single, values = run(config, [batch] * 2)
    _, sharded, of_mesh = run(dataclasses.replace(config, partitioner=MESH), [batch] * 2)
    assert_close(sharded.params, single.params, 1e-5)
    assert {"r_drop_kl", "smart_kl"} <= values[0].keys()
    for ours, theirs in zip(values, of_mesh, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_micro_batches_give_the_same_update() -> None:
    """SMART draws other noise for each micro-batch; the others do not depend on them."""
    techniques = dataclasses.replace(ALL, smart=None)
    model = synthetic.tiny_config(num_encoder_layers=1, num_decoder_layers=0)
    config = run_config(objectives=TOY, techniques=techniques, model=model)
    batch = synthetic.batch()
    _, whole, values = run(config, [batch])
    _, split, of_slices = run(dataclasses.replace(config, step=StepConfig(2)), [batch])
    assert_close(whole.params, split.params, 1e-6)
    assert values[0] == pytest.approx(of_slices[0], rel=1e-5, abs=1e-6)


def test_objectives_without_a_distribution() -> None:
    passes = dataclasses.replace(
        passes_of(), objectives=(ToyClassification(), SentenceLength(), MaskedLM())
    )
    forward = passes.forward(RNG)
    for technique in ("RDrop", "Smart"):
        with pytest.raises(PlugError, match=f"{technique} compares .* SentenceLength predicts no"):
            passes.distributions(technique, forward)
    assert all(one.distributions(forward) is None for one in STRUCTBERT)


def test_fgm_needs_the_table() -> None:
    frozen = OptimizerConfig(freeze=("embeddings",))
    config = run_config(objectives=TOY, optimizer=frozen, techniques=Techniques(fgm=Fgm()))
    with program_of(config) as program, pytest.raises(PlugError, match="here they are frozen"):
        program.trace()


@pytest.mark.parametrize(
    ("technique", "wrong"),
    [
        (RDrop, {"alpha": 0.0}),
        (RDrop, {"kl_scale": -1.0}),
        (RDrop, {"cross_entropy": "both"}),
        (Smart, {"weight": 0.0}),
        (Smart, {"noise": float("nan")}),
        (Smart, {"step_size": -1.0}),
        (Smart, {"steps": 0}),
        (Fgm, {"epsilon": 0.0}),
        (ChildTuningF, {"p": 0.0}),
        (ChildTuningF, {"p": 1.0}),
        (ChildTuningD, {"p": 1.5}),
    ],
)
def test_settings_that_make_no_sense(technique: Any, wrong: dict[str, Any]) -> None:
    [name] = wrong
    with pytest.raises(PlugError, match=f"{technique.__name__}.*{name}"):
        technique(**wrong)
