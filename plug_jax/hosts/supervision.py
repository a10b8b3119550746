"""Messages from a training process to its supervisor, in a file named by the latter."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

VARIABLE = "PLUG_JAX_SUPERVISOR_FILE"


@dataclasses.dataclass(frozen=True)
class Start:
    """The start of a run's training."""

    step: int  # the step from which it resumes
    processes: int
    lost_after: float  # seconds until the others notice that this process is lost


def tell(start: Start) -> None:
    """Write it for the supervisor, if there is one; a full disk there does not end the run."""
    if VARIABLE not in os.environ:
        return
    whole = Path(os.environ[VARIABLE])
    part = whole.with_suffix(".tmp")
    with contextlib.suppress(OSError):
        part.write_text(json.dumps(dataclasses.asdict(start)), encoding="utf-8")
        part.replace(whole)


def told(path: Path) -> Start | None:
    """What the process wrote; None if it did not get that far."""
    if not path.exists():
        return None
    return Start(**json.loads(path.read_text(encoding="utf-8")))
