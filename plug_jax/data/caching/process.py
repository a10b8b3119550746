"""The start of a worker process; light to import, so that it runs before tensorflow loads."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading

_STDERR = 2


def start_worker() -> None:
    """Ends this process with its parent, leaves Ctrl-C to the parent, and imports tensorflow.

    Standard error is closed meanwhile: messages of its libraries, once per process, would disrupt
    the progress bars.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    saved = os.dup(_STDERR)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        importlib.import_module("tensorflow_text")
    finally:
        os.dup2(saved, _STDERR)
        os.close(saved)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
