"""Leaks over a long run: memory, open files and threads, sampled during training."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plug_jax.training.writers import METRICS_FILE

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SECONDS_BETWEEN_SAMPLES = 0.25
_MOST_OF_A_RECORD = 1 << 14  # bytes
_PROC = Path("/proc/self")


class Watch:
    """Samples this process from a background thread during training."""

    def __init__(self, model_dir: Path) -> None:
        self._metrics = model_dir / METRICS_FILE
        self.samples: list[dict[str, float]] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within, samples are taken."""
        done = threading.Event()

        def sample() -> None:
            while not done.wait(_SECONDS_BETWEEN_SAMPLES):
                if step := _last_step(self._metrics):
                    self.samples.append({"step": step, **_now()})

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def slopes(self) -> dict[str, Any]:
        """By what is sampled: `first` and `last` of the second half, `most`, and `a_step`.

        `a_step` is the slope of a straight line through the second half; the first warms up.
        """
        half = [one for one in self.samples if one["step"] * 2 >= self.samples[-1]["step"]]
        steps = [one["step"] for one in half]
        return {
            name: {
                "first": half[0][name],
                "last": half[-1][name],
                "most": max(one[name] for one in half),
                "a_step": float(np.polyfit(steps, [one[name] for one in half], 1)[0]),
            }
            for name in half[0]
            if name != "step"
        }


def _last_step(metrics: Path) -> int:
    """The newest step that was logged; 0 for none."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - _MOST_OF_A_RECORD))
        *_, record, _ = (b"\n" + file.read()).split(b"\n")
    return int(json.loads(record)["step"]) if record else 0


def _now() -> dict[str, float]:
    """The process as it is: bytes of memory of the host, of the first device; files; threads.

    Of the host's: all pages that it has, and what of them was allocated and not freed.
    """
    stats = jax.local_devices()[0].memory_stats()
    device = {"device_bytes": stats["bytes_in_use"]} if stats else {}
    return {
        "host_bytes": int((_PROC / "statm").read_text().split()[1]) * _PAGE,
        **_allocated(),
        "files": len(os.listdir(_PROC / "fd")),
        "threads": len(os.listdir(_PROC / "task")),
        **device,
    }


class _MallocInfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _allocated() -> dict[str, int]:
    """Nothing where malloc is another than glibc's."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return {}
    mallinfo.restype = _MallocInfo
    info = mallinfo()
    return {"allocated_bytes": info.uordblks + info.hblkhd}
