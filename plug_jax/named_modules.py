"""Modules of a user's own, which settings and options name."""

from __future__ import annotations

import importlib
import sys
import traceback
from types import ModuleType

from plug_jax.errors import PlugError


def import_named(name: str) -> ModuleType:
    """The module of that name, on Python's path or in the current directory.

    Raises:
        PlugError: there is none, or an error ends its import; it names the file and the line.
    """
    if "" not in sys.path:  # where `python -m` has this directory, `plug-jax` has that of scripts
        sys.path.append("")
    try:
        return importlib.import_module(name)
    except Exception as error:  # any code may be in it
        raise PlugError(_told(error)) from error


def _told(error: Exception) -> str:
    """The error behind the last line of a module that was reached; of none: what is not found."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if frame.name == "<module>"]
    if not lines:
        return str(error)
    return f"{lines[-1].filename}:{lines[-1].lineno}: {type(error).__name__}: {error}"
