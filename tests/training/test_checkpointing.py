"""What a checkpoint says of its model."""

from pathlib import Path

import orbax.checkpoint as ocp

from plug_jax.training import checkpointing
from plug_jax.training.checkpoint_format import CHECKPOINTS, open_manager
from tests import synthetic


def test_a_model_trained_with_splash_infers_with_dot(tmp_path: Path) -> None:
    """On machines without a TPU and for rows of any length."""
    config = synthetic.tiny_config(attention="splash", remat_saved_names=("wi",))
    metadata = {"plug_config": config.to_dict(), "vocabulary_fingerprint": ""}
    manager = open_manager(tmp_path / CHECKPOINTS, create=True)
    manager.save(3, args=ocp.args.Composite(metadata=ocp.args.JsonSave(metadata)))
    manager.close()
    saved = checkpointing.open_checkpoint(tmp_path)
    assert saved.config == synthetic.tiny_config(attention="dot", remat_saved_names=("wi",))
