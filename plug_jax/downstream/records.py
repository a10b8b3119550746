"""Records of tasks that CLUE does not have, and the union of all."""

from __future__ import annotations

import dataclasses

from plug_jax.clue.records import Record


@dataclasses.dataclass(frozen=True)
class NumberRecord:
    """One text or a pair, and its number; for users' files, as CLUE has no such task."""

    id: int | str
    texts: tuple[str, ...]
    number: float | None


AnyRecord = Record | NumberRecord
