"""Sixty steps of both stages beside the same training in PyTorch: losses, and where they lead.

Both train on the same batches from the same parameters; only the batches come from our code.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from plug_jax.benchmarks.torch_training import TorchTraining
from plug_jax.cli.train import configure
from plug_jax.data.pipeline.pipeline import make_iterator
from plug_jax.training.program import TrainConfig
from tests.training import program_runs
from tests.training.test_golden_losses import BINDINGS, RUNS, write_corpus

pytestmark = pytest.mark.parity

STEPS, WARMUP, LAST_MASKED = 60, 6, 54
PEAK, WEIGHT_DECAY = 2e-3, 0.01


def configured(stage: str, root: Path, *, pack: bool) -> TrainConfig:
    write_corpus(root)
    lengths = {"encoder": 64} if stage == "stage1" else {"encoder": 64, "decoder": 64}
    task = "structbert_text" if stage == "stage1" else "palm_text"
    changed = {
        "MICRO_BATCHES": 1,
        "DROPOUT_RATE": 0.0,
        "TRAIN_STEPS": STEPS,
        "LEARNING_RATE": PEAK,
        "EVAL_DATA": None,
        "MODEL_DIR": str(root / "run"),
        "TRAIN_FILES": str(root / "text.txt"),
        "VOCABULARY": str(root / "vocab.txt"),
        "TASK_FEATURE_LENGTHS": lengths,
        f"pretrain.{task}.max_length": 40,
        "train/pipeline.DatasetConfig.pack": pack,
        "optimizer.OptimizerConfig.warmup_fraction": WARMUP / STEPS,
        "optimizer.OptimizerConfig.weight_decay": WEIGHT_DECAY,
        "optimizer.OptimizerConfig.clip_norm": 1.0,
    }
    if stage == "stage2":
        changed["pretrain.palm_text.min_length"] = 6
    kept = [b for b in BINDINGS if b.split(" = ")[0] not in changed]
    if stage == "stage1":
        kept = [b for b in kept if not b.startswith("DECODER_LAYERS")]
    bindings = [*kept, *(f"{name} = {value!r}" for name, value in changed.items())]
    files = [f"runs/{RUNS[stage]}_pretrain.gin", "models/tiny.gin", "mesh/cpu1.gin"]
    return dataclasses.replace(configure(files, bindings), partitioner=program_runs.ONE_DEVICE)


def without_key_biases(name: str, leaf: np.ndarray) -> np.ndarray:
    """All parameters that outputs depend on: a softmax ignores a constant added to all keys."""
    if name.endswith(("qkv/bias", "key_value/bias")):
        keys = 1 if "qkv" in name else 0
        return np.delete(leaf, keys, axis=1)
    return leaf


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("stage", RUNS)
def test_sixty_steps_are_those_of_pytorch(stage: str, pack: bool, tmp_path: Path) -> None:
    config = configured(stage, tmp_path, pack=pack)
    batches = list(itertools.islice(make_iterator(config.train_data), STEPS))
    assert (batches[0]["encoder_segment_ids"].max() > 1) == pack
    before, after, values = program_runs.run(config, batches)
    assert sum(one.get("prediction_overflow", 0.0) for one in values) == 0
    reference = TorchTraining(config, before.params)
    losses = np.array([reference.step(batch) for batch in batches])
    ours = np.array([one["loss"] for one in values])
    masked = [("tokens_loss" in one) for one in values]
    assert masked == [stage == "stage1" or n < LAST_MASKED for n in range(STEPS)]
    assert losses[-5:].mean() < losses[:5].mean() - 0.3  # something was learned
    np.testing.assert_allclose(ours, losses, rtol=0, atol=1e-4)
    found = {"/".join(path): leaf for path, leaf in flatten_dict(after.params).items()}
    started = {"/".join(path): leaf for path, leaf in flatten_dict(before.params).items()}
    reference_found = reference.parameters()
    assert found.keys() == reference_found.keys()
    for name, leaf in found.items():
        mine = without_key_biases(name, np.asarray(leaf))
        theirs = without_key_biases(name, reference_found[name])
        moved = np.linalg.norm(theirs - without_key_biases(name, np.asarray(started[name])))
        assert np.linalg.norm(mine - theirs) <= 1e-4 * max(np.linalg.norm(theirs), moved), name
