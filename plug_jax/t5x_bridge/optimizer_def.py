"""Needs t5x. Our optimizer as t5x's OptimizerDef."""

from __future__ import annotations

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from t5x import optimizers

from plug_jax.errors import PlugError
from plug_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule


class PlugOptimizer(optimizers.OptaxWrapper):
    """For OPTIMIZER: AdamW, Muon or Adafactor by our schedule.

    t5x's wrapper has a rule for the state of each transformation that it knows, and none for
    Adafactor's and Muon's. Here a slot that is shaped like its parameter is sharded like it; what
    is not (counts, Adafactor's rows and columns, which are small) is whole on every device.
    """

    def __init__(self, config: OptimizerConfig, train_steps: int) -> None:
        """PlugError for options that need the parameters: only our own trainer has them."""
        default = OptimizerConfig()
        for name in ("layer_decay", "learning_rate_multipliers", "freeze"):
            if getattr(config, name) != getattr(default, name):
                raise PlugError(f"OptimizerConfig.{name} is for `plug-jax train`, not for t5x")
        super().__init__(make_optimizer(config, make_schedule(config, train_steps)))

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
        """An optimizer like the given one, with logical axes, or None, in place of arrays."""
        params = flatten_dict(optimizer.state_dict()["target"], sep="/")
        axes = flatten_dict(param_logical_axes, sep="/")

        def slot(path: str, leaf: Any) -> Any:
            parts = path.split("/")
            names = ("/".join(parts[start:]) for start in range(len(parts)))
            param = next((name for name in names if name in params), None)
            return axes[param] if param and leaf.shape == params[param].shape else None

        state = flatten_dict(optimizer.state_dict()["state"], sep="/")
        slots = unflatten_dict({path: slot(path, leaf) for path, leaf in state.items()}, sep="/")
        return optimizer.restore_state({"target": param_logical_axes, "state": slots})
