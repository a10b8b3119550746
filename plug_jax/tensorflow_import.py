"""Imports tensorflow quietly and quickly, with GPUs hidden."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterator

from plug_jax.standard_error import flush_output

_STDERR = 2  # the file descriptor, which C++ writes to
# Optional imports of Keras, a part of tensorflow that is not used here.
_NOT_FOR_KERAS = ("matplotlib", "sklearn")


def import_tensorflow(*, lean: bool = True) -> None:
    """Import tensorflow with standard error closed; call it before tensorflow is needed.

    Its libraries print messages while loading, before they read TF_CPP_MIN_LOG_LEVEL; set that to 0
    to see them. A failing import raises as usual. It only reads data, so GPUs are hidden from it,
    whose memory it would take. `lean` skips parts not needed here, in a process of our own.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        _import_tensorflow(lean=lean)
        return
    flush_output()
    saved = os.dup(_STDERR)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        _import_tensorflow(lean=lean)
    finally:
        os.dup2(saved, _STDERR)
        os.close(saved)


def _import_tensorflow(*, lean: bool) -> None:
    if "tensorflow" not in sys.modules:
        with _no_more_than_needed() if lean else contextlib.nullcontext():
            importlib.import_module("tensorflow")
    sys.modules["tensorflow"].config.set_visible_devices([], "GPU")


@contextlib.contextmanager
def _no_more_than_needed() -> Iterator[None]:
    """Within the context, an import of tensorflow skips unneeded parts."""
    hidden = [name for name in _NOT_FOR_KERAS if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment] # to import it is an ImportError
    gc.disable()  # the import makes a million objects, and no garbage
    try:
        yield
    finally:
        gc.freeze()  # so that later collections do not scan them again
        gc.enable()
        for name in hidden:
            del sys.modules[name]


def quiet_tensorflow() -> None:
    """Keep tensorflow's C++ log off the terminal; call it before the import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
