"""R-Drop (Liang et al., 2021, arXiv 2106.14448): two passes with dropout should agree."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Literal

import jax

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.metrics import Mean
from plug_jax.objectives.forward import Forward
from plug_jax.techniques.passes import Passes

_SALT = zlib.crc32(b"r_drop")


@dataclasses.dataclass(frozen=True)
class RDrop:
    """loss = mean or sum of CE(1), CE(2) + alpha * kl_scale * (KL(p, q) + KL(q, p)).

    p and q are the predictions of two passes. Defaults are those published for CLUE's tasks
    (bojone/r-drop). As published:

    - translation: alpha 5, kl_scale 0.5; summaries: alpha 0.7, kl_scale 0.5 (dropreg/R-Drop)
    - GLUE: cross_entropy "sum", alpha 1, kl_scale 0.25 (dropreg/R-Drop)
    - CLUE: alpha 4, kl_scale 0.25 (bojone/r-drop)
    """

    alpha: float = 4.0
    kl_scale: float = 0.25
    cross_entropy: Literal["mean", "sum"] = "mean"  # over the passes

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.alpha > 0 and self.kl_scale > 0):
            raise PlugError(
                f"RDrop.alpha and kl_scale must be positive, got {self.alpha} and {self.kl_scale}"
            )

    def loss(
        self, passes: Passes, first: Forward, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, Mean]]:
        """The loss instead of the `first` pass's, and metrics over both, with `r_drop_kl`.

        `rng` is the first pass's; the second has its own.
        """
        second = passes.forward(jax.random.fold_in(rng, _SALT))
        (loss, metrics), (again, more) = passes.loss(first), passes.loss(second)
        kl, metric = passes.divergence(
            *(passes.distributions("RDrop", forward) for forward in (first, second))
        )
        total = loss + again if self.cross_entropy == "sum" else (loss + again) / 2
        both = jax.tree.map(jax.numpy.add, metrics, more)
        return total + self.alpha * self.kl_scale * kl, both | {"r_drop_kl": metric}
