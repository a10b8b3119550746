"""Needs t5x. Our optimizer as t5x's OptimizerDef."""

from __future__ import annotations

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from t5x import optimizers

from plug_jax.errors import PlugError
from plug_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule


class PlugOptimizer(optimizers.OptaxWrapper):
    """For OPTIMIZER: AdamW, Muon or Adafactor with our schedule.

    t5x's wrapper has rules for the states of known transformations, but not for Adafactor's and
    Muon's. Here a slot with its parameter's shape is sharded like it; others (counts, Adafactor's
    rows and columns, which are small) are replicated.
    """

    def __init__(self, config: OptimizerConfig, train_steps: int) -> None:
        """PlugError for options that need the parameters, which only our own trainer supports."""
        default = OptimizerConfig()
        for name in ("layer_decay", "learning_rate_multipliers", "freeze"):
            if getattr(config, name) != getattr(default, name):
                raise PlugError(f"OptimizerConfig.{name} is for `plug-jax train`, not for t5x")
        super().__init__(make_optimizer(config, make_schedule(config, train_steps)))

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
        """An optimizer like the given one, with logical axes, or None, instead of arrays."""
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
