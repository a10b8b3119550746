"""Errors that a restart of all processes fixes."""

from typing import ClassVar

from plug_jax.errors import PlugError


class HostError(PlugError):
    """A process of the run is lost, hangs or cannot be reached."""

    status: ClassVar[int] = 75  # EX_TEMPFAIL of sysexits.h: try again
