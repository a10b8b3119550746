"""Users' own modules, named by settings and options."""

from __future__ import annotations

import importlib
import sys
import traceback
from types import ModuleType

from plug_jax.errors import PlugError


def import_named(name: str) -> ModuleType:
    """The module with this name, on Python's path or in the current directory.

    Raises:
        PlugError: it is missing, or its import fails; the message has file and line.
    """
    if "" not in sys.path:  # `python -m` adds this directory, `plug-jax` only the scripts'
        sys.path.append("")
    try:
        return importlib.import_module(name)
    except Exception as error:  # it may run any code
        raise PlugError(_told(error)) from error


def _told(error: Exception) -> str:
    """The error with the last line reached in a module, or the name that is not found."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if frame.name == "<module>"]
    if not lines:
        return str(error)
    return f"{lines[-1].filename}:{lines[-1].lineno}: {type(error).__name__}: {error}"
