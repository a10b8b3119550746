"""What a training process tells the supervisor that started it, in a file that the latter names."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

VARIABLE = "PLUG_JAX_SUPERVISOR_FILE"


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins to train."""

    step: int  # that of the checkpoint it goes on from
    processes: int
    lost_after: float  # seconds until the others miss this process


def tell(start: Start) -> None:
    """Write it for the supervisor, if there is one."""
    if VARIABLE not in os.environ:
        return
    whole = Path(os.environ[VARIABLE])
    part = whole.with_suffix(".tmp")
    part.write_text(json.dumps(dataclasses.asdict(start)), encoding="utf-8")
    part.replace(whole)


def told(path: Path) -> Start | None:
    """What the process wrote; None if it did not come so far."""
    if not path.exists():
        return None
    return Start(**json.loads(path.read_text(encoding="utf-8")))
