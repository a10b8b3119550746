"""A run with stateful techniques: killed and restarted, and used afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.checkpoints.saved_model import open_checkpoint
from plug_jax.models.plug import PlugModel
from plug_jax.techniques.child_tuning import ChildTuningD
from plug_jax.techniques.lora import Lora
from plug_jax.techniques.r_drop import RDrop
from plug_jax.techniques.techniques import Techniques
from plug_jax.training.checkpointing import CheckpointConfig
from plug_jax.training.evaluate import EvaluateConfig, evaluate_checkpoint
from plug_jax.training.loop import train
from plug_jax.training.program import TrainConfig
from plug_jax.training.step import StepConfig
from plug_jax.training.writers import read_metrics
from tests import synthetic
from tests.objectives.toy_classification import ToyClassification
from tests.training.program_runs import ONE_DEVICE, interrupt_at, run_config, write_task

TOY = (ToyClassification(),)


def losses(model_dir: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in r.items() if "second" not in k} for r in read_metrics(model_dir)]


def params_of(model_dir: Path) -> Any:
    saved = open_checkpoint(model_dir)
    boxed = abstract_params(PlugModel(saved.config), TOY)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return saved.params(jax.tree.map(lambda _: device, nn.unbox(boxed)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "lora",
    [pytest.param(None, id="whole"), pytest.param(Lora(rank=2), id="lora", marks=pytest.mark.long)],
)
def test_a_killed_run_goes_on_as_if_nothing_happened(
    lora: Lora | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Child-Tuning D keeps its first mask; the checkpoint can be used like any other."""
    data = write_task(tmp_path, f"techniques_{'lora' if lora else 'whole'}")

    def config(name: str) -> TrainConfig:
        return run_config(
            model_dir=str(tmp_path / name),
            model=synthetic.tiny_config(
                vocab_size=38, num_encoder_layers=1, num_decoder_layers=0, dropout_rate=0.1
            ),
            objectives=TOY,
            techniques=Techniques(child_tuning=ChildTuningD(0.3), r_drop=RDrop(), lora=lora),
            train_data=data,
            eval_data=dataclasses.replace(data, split="validation", shuffle=False, num_epochs=1),
            checkpoint=CheckpointConfig(every=10),
            train_steps=5,
            eval_every=5,
            log_every=1,
        )

    final = train(config("whole"))
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config("killed"))
    assert open_checkpoint(tmp_path / "killed").step == 3
    assert train(config("killed")) == final
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    jax.tree.map(
        np.testing.assert_array_equal,
        params_of(tmp_path / "killed"),
        params_of(tmp_path / "whole"),
    )
    scored = evaluate_checkpoint(
        EvaluateConfig(
            checkpoint=str(tmp_path / "whole"),
            objectives=TOY,
            data=config("whole").eval_data,  # type: ignore[arg-type]
            partitioner=ONE_DEVICE,
            step=StepConfig(),
        )
    )
    assert scored == pytest.approx(final, rel=1e-5)
