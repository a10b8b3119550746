"""The techniques of a run; they can be combined."""

from __future__ import annotations

import dataclasses
from typing import Any

from plug_jax.field_types import check_fields
from plug_jax.techniques.child_tuning import ChildTuningD, ChildTuningF
from plug_jax.techniques.fgm import Fgm
from plug_jax.techniques.lora import Lora
from plug_jax.techniques.r_drop import RDrop
from plug_jax.techniques.smart import Smart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Techniques:
    """None: off. Optimizer techniques are in `OptimizerConfig`."""

    r_drop: RDrop | None = None
    smart: Smart | None = None
    fgm: Fgm | None = None
    child_tuning: ChildTuningF | ChildTuningD | None = None
    lora: Lora | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def model_params(self, params: Any) -> Any:
        """The model's effective parameters, from the run's."""
        return params if self.lora is None else self.lora.merge(params)


NO_TECHNIQUES = Techniques()
