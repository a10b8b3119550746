"""This process's current activity, for the watchdog and the run's other processes."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, eq=False)
class Activity:
    """One activity of a process; each is a new object, even with the same name."""

    name: str  # as in "it was in: step 12"
    watched: bool  # whether taking longer than STALL_TIMEOUT counts as a hang


_current = Activity("starting", watched=False)


def doing(name: str, *, watched: bool = True) -> None:
    """Set the current activity, which counts as progress.

    Activities without a time limit, such as compiling, are not `watched`.
    """
    global _current
    _current = Activity(name, watched)


def current() -> Activity:
    """This process's current activity."""
    return _current
