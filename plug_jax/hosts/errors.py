"""Endings that a new start of all processes mends."""

from typing import ClassVar

from plug_jax.errors import PlugError


class HostError(PlugError):
    """A process of the run is lost, hangs or is not reached."""

    status: ClassVar[int] = 75  # EX_TEMPFAIL of sysexits.h: try again
