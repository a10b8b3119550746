"""What this process is doing, for the watchdog and for the other processes of the run."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, eq=False)
class Activity:
    """One thing that a process does; the next one is an object of its own, of the same name too."""

    name: str  # as in "it was in: step 12"
    watched: bool  # whether it hangs when it takes longer than STALL_TIMEOUT


_current = Activity("starting", watched=False)


def doing(name: str, *, watched: bool = True) -> None:
    """From now on this process does `name`, which is progress over what it did before.

    What may take as long as it likes, such as to compile, is not `watched`.
    """
    global _current
    _current = Activity(name, watched)


def current() -> Activity:
    """What this process does."""
    return _current
