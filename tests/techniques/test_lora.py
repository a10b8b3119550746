"""LoRA: its parameters, what stays frozen, and reading its checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.checkpoints.saved_model import open_checkpoint
from plug_jax.convert.to_torch import export_hf
from plug_jax.data.vocabularies.vocabulary import WordPieceVocabulary
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.stages import STRUCTBERT
from plug_jax.parameter_paths import by_path
from plug_jax.techniques.lora import Lora
from plug_jax.techniques.techniques import Techniques
from plug_jax.training.checkpointing import CheckpointConfig, Checkpoints
from plug_jax.training.initial_checkpoint import initialize_from
from plug_jax.training.optimizer import OptimizerConfig
from plug_jax.training.state import TrainState
from tests import synthetic
from tests.objectives.toy_classification import ToyClassification
from tests.training.program_runs import (
    MESH,
    ONE_DEVICE,
    assert_close,
    program_of,
    run,
    run_config,
    start,
)

ALL = Lora(rank=2, alpha=6.0, targets=("query", "key", "value", "out", "wi", "wo"))


def random_params(lora: Lora, **changes: Any) -> tuple[PlugModel, dict]:
    """Parameters of a tiny model with LoRA, including B."""
    model = PlugModel(synthetic.tiny_config(**changes))
    rng = np.random.default_rng(0)
    shapes = nn.unbox(abstract_params(model, lora=lora))
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    return model, jax.tree.map(draw, shapes)


def test_what_is_added_to_each_kernel() -> None:
    """W + (alpha / rank) A B, layer by layer, for every kind of kernel."""
    _, params = random_params(ALL)
    before, added = by_path(params), by_path(params["lora"])
    merged = by_path(ALL.merge(params))
    assert merged.keys() == {path for path in before if not path.startswith("lora")}
    cases = {  # kernel: the part of it that has an update, [inputs, outputs] of a layer
        "encoder/layers/attention/qkv/kernel": {0: "query", 1: "key", 2: "value"},
        "decoder/layers/cross_attention/key_value/kernel": {0: "key", 1: "value"},
        "decoder/layers/cross_attention/query/kernel": {None: "query"},
        "decoder/layers/self_attention/out/kernel": {None: "out"},
        "encoder/layers/mlp/wi/kernel": {None: "wi"},
        "decoder/layers/mlp/wo/kernel": {None: "wo"},
    }
    for path, parts in cases.items():
        difference = np.asarray(merged[path] - before[path])
        for part, target in parts.items():
            where = f"{path.rsplit('/', 2)[0]}/{target}"
            a, b = (np.asarray(added[f"{where}/{name}"]) for name in ("a", "b"))
            found = difference if part is None else difference[:, :, part]
            for layer in range(2):
                product = 3 * a[layer].reshape(-1, 2) @ b[layer].reshape(2, -1)
                np.testing.assert_allclose(found[layer].ravel(), product.ravel(), atol=1e-4)
    changed = {path for path in merged if merged[path] is not before[path]}
    assert changed == {path for path in merged if "/layers/" in path and path.endswith("kernel")}


def test_only_what_is_named_has_parameters() -> None:
    _, params = random_params(Lora(rank=3), num_decoder_layers=0)
    assert {path: leaf.shape for path, leaf in by_path(params["lora"]).items()} == {
        "encoder/layers/attention/query/a": (2, 16, 3),
        "encoder/layers/attention/query/b": (2, 3, 4, 4),
        "encoder/layers/attention/value/a": (2, 16, 3),
        "encoder/layers/attention/value/b": (2, 3, 4, 4),
    }
    merged = Lora(rank=3).merge(params)["encoder"]["layers"]["attention"]["qkv"]["kernel"]
    kernel = params["encoder"]["layers"]["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(merged[:, :, 1], kernel[:, :, 1])  # the keys'
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"targets": ()}, {"targets": ("qkv",)}):
        with pytest.raises(PlugError, match="Lora: "):
            Lora(**wrong)  # type: ignore[arg-type]


def test_the_base_stands_still_on_a_mesh_as_on_one_device() -> None:
    """It starts as the base model, trains LoRA and the heads only, and has no other slots."""
    optimizer = OptimizerConfig(
        learning_rate=1e-2, warmup_fraction=0.0, epsilon=1e-3, weight_decay=0.5, layer_decay=0.9
    )
    config = run_config(
        objectives=(*STRUCTBERT, ToyClassification()),
        techniques=Techniques(lora=Lora(rank=2)),
        model=synthetic.tiny_config(num_encoder_layers=1, num_decoder_layers=0),
        optimizer=optimizer,
    )
    batch = synthetic.batch()
    before, after, values = run(config, [batch] * 2)
    old, new = by_path(before.params), by_path(after.params)
    for path in old:
        if path.startswith(("embeddings", "encoder")):
            np.testing.assert_array_equal(old[path], new[path])
        else:
            assert not np.array_equal(old[path], new[path]), path
    plain = {name: part for name, part in before.params.items() if name != "lora"}
    assert_close(Lora(rank=2).merge(before.params), plain, 0)
    moments = next(
        s for s in jax.tree.leaves(after.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(s, "mu")
    ).mu  # fmt: skip
    heads = {"lora", "heads", "mlm_head", "sentence_head"}
    assert set(moments) == heads & set(before.params) == heads
    _, sharded, of_mesh = run(dataclasses.replace(config, partitioner=MESH), [batch] * 2)
    assert_close(sharded.params, after.params, 1e-5)
    assert of_mesh[1]["loss"] == pytest.approx(values[1]["loss"], rel=1e-5)


class _NoData:
    def save(self, directory: object) -> None:
        pass

    def restore(self, directory: object, *, restart_changed: bool = False) -> None:
        pass


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> WordPieceVocabulary:
    path = tmp_path_factory.mktemp("lora") / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(0x4E00, 0x4E00 + 85))]
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return WordPieceVocabulary(path)


@pytest.fixture(scope="module")
def stored(
    vocabulary: WordPieceVocabulary, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    """MODEL_DIR of a LoRA run, and its merged parameters."""
    model, params = random_params(ALL)
    directory = tmp_path_factory.mktemp("run")
    checkpoints = checkpoints_of(directory, model, vocabulary, ALL)
    checkpoints.save(TrainState(jnp.int32(1), params, ()), _NoData())
    checkpoints.close()
    return directory, ALL.merge(params)


def checkpoints_of(
    directory: Path, model: PlugModel, vocabulary: WordPieceVocabulary, lora: Lora | None
) -> Checkpoints:
    return Checkpoints(
        directory, CheckpointConfig(every=1), model=model.config, vocabulary=vocabulary, lora=lora
    )


@pytest.mark.parametrize("decoder", [True, False])
def test_what_is_read_is_merged(stored: tuple[Path, dict], decoder: bool) -> None:
    """On one device and sharded, in float32 and rounded once; without the decoder if requested."""
    directory, merged = stored
    saved = open_checkpoint(directory)
    assert jax.tree.map(lambda x: x.shape, saved.param_shapes()) == jax.tree.map(
        lambda x: x.shape, merged
    )
    boxed = abstract_params(PlugModel(saved.config))
    if not decoder:
        boxed.pop("decoder")
        merged = {name: part for name, part in merged.items() if name != "decoder"}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for shardings in (
        jax.tree.map(lambda _: device, nn.unbox(boxed)),
        MESH.param_shardings(boxed),
    ):
        assert_close(saved.params(shardings), merged, 1e-5)
    low = saved.params(MESH.param_shardings(boxed), "bfloat16")
    assert {x.dtype for x in jax.tree.leaves(low)} == {jnp.dtype("bfloat16")}
    rounded = jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16), np.float32), merged)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float32), low)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2), wide, rounded)


def test_what_is_exported_is_merged(stored: tuple[Path, dict], tmp_path: Path) -> None:
    directory, merged = stored
    export_hf(directory, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    kernel = np.asarray(merged["encoder"]["layers"]["mlp"]["wi"]["kernel"])
    found = [t for t in tensors.values() if t.shape == (32, 16)]
    for layer in range(2):
        assert any(np.allclose(tensor, kernel[layer].T, atol=1e-5) for tensor in found)


def test_a_run_with_other_settings_is_refused(
    stored: tuple[Path, dict], vocabulary: WordPieceVocabulary
) -> None:
    directory, _ = stored
    model = PlugModel(synthetic.tiny_config())
    for lora in (None, dataclasses.replace(ALL, alpha=1.0)):
        checkpoints = checkpoints_of(directory, model, vocabulary, lora)
        config = run_config(model=model.config, techniques=Techniques(lora=lora))
        with program_of(config) as program, pytest.raises(PlugError, match="trained with Lora"):
            checkpoints.restore(program.layout, _NoData())
        checkpoints.close()


def test_another_run_starts_from_the_sum(
    stored: tuple[Path, dict], vocabulary: WordPieceVocabulary
) -> None:
    """With new LoRA parameters of its own."""
    directory, merged = stored
    techniques = Techniques(lora=Lora(rank=2))
    config = run_config(model=synthetic.tiny_config(), techniques=techniques)
    config = dataclasses.replace(config, partitioner=ONE_DEVICE)
    with program_of(config) as program:
        state, note = initialize_from(
            directory, start(config, program), program.layout, vocabulary=vocabulary
        )
    assert note is not None and "lora of this run is newly initialised" in note
    params = dict(state.params)
    assert not np.any(params.pop("lora")["encoder"]["layers"]["attention"]["query"]["b"])
    assert_close(params, merged, 1e-5)
