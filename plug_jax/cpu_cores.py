"""The processor's cores."""

from __future__ import annotations

import os


def cores() -> int:
    """How many cores this process may use; on systems that do not say, as macOS, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
