"""Records of tasks that CLUE has not, and all of them."""

from __future__ import annotations

import dataclasses

from plug_jax.clue.records import Record


@dataclasses.dataclass(frozen=True)
class NumberRecord:
    """One text or a pair, and its number; CLUE has no such task, files of one's own may."""

    id: int | str
    texts: tuple[str, ...]
    number: float | None


AnyRecord = Record | NumberRecord
