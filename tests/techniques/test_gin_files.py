"""Each file of gin_configs/techniques adds the technique in its name to a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from plug_jax.checkpoints.best import Best
from plug_jax.cli.train import configure
from plug_jax.techniques.child_tuning import ChildTuningD, ChildTuningF
from plug_jax.techniques.fgm import Fgm
from plug_jax.techniques.lora import Lora
from plug_jax.techniques.r_drop import RDrop
from plug_jax.techniques.smart import Smart
from plug_jax.techniques.techniques import NO_TECHNIQUES, Techniques
from plug_jax.training.program import TrainConfig

RUN = ["runs/structbert_pretrain.gin", "models/tiny.gin", "mesh/cpu1.gin"]


def configured(*names: str, bindings: tuple[str, ...] = ()) -> TrainConfig:
    files = [*RUN, *(name if name.endswith(".gin") else f"techniques/{name}.gin" for name in names)]
    common = ["MODEL_DIR = 'x'", "MIXTURE_OR_TASK_NAME = 'any'"]
    steps = [] if any("TRAIN_STEPS" in one for one in bindings) else ["TRAIN_STEPS = 3"]
    return configure(files, [*common, *steps, *bindings])


@pytest.mark.parametrize(
    ("name", "techniques"),
    [
        ("r_drop", Techniques(r_drop=RDrop())),
        ("smart", Techniques(smart=Smart())),
        ("fgm", Techniques(fgm=Fgm())),
        ("child_tuning_f", Techniques(child_tuning=ChildTuningF())),
        ("child_tuning_d", Techniques(child_tuning=ChildTuningD())),
        ("lora", Techniques(lora=Lora())),
    ],
)
def test_each_file_has_the_defaults(name: str, techniques: Techniques) -> None:
    assert configured(name).techniques == techniques


def test_files_add_up_and_are_overridden() -> None:
    assert configured().techniques == NO_TECHNIQUES
    assert configured().optimizer.layer_decay == 1.0
    bindings = ("r_drop.RDrop.alpha = 5", "fgm.Fgm.epsilon = 0.5", "LAYER_DECAY = 0.9")
    config = configured("r_drop", "layer_decay", "fgm", bindings=bindings)
    assert config.techniques == Techniques(r_drop=RDrop(alpha=5.0), fgm=Fgm(0.5))
    assert config.optimizer.layer_decay == 0.9
    freeze = ("optimizer.OptimizerConfig.freeze = 'embeddings'",)
    assert configured(bindings=freeze).optimizer.freeze == ("embeddings",)


def test_epochs_and_the_best_checkpoint(tmp_path: Path) -> None:
    mine = tmp_path / "best.gin"
    mine.write_text(
        "from __gin__ import dynamic_registration\n"
        "from plug_jax.checkpoints import best\n"
        "from plug_jax.training import program\n"
        "program.TrainConfig.best = @best.Best()\n"
        "best.Best.metric = 'accuracy'\n"
        "best.Best.patience = 5\n"
    )
    config = configured(str(mine), bindings=("TRAIN_STEPS = None", "EPOCHS = 3"))
    assert config.best == Best("accuracy", patience=5)
    assert (config.train_steps, config.epochs) == (None, 3.0)
