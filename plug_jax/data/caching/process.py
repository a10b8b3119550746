"""The start of a worker process; light to import, so that it comes before tensorflow."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading

_STDERR = 2


def start_worker() -> None:
    """Ends this process with its parent, leaves the keyboard to that, and imports tensorflow.

    That with standard error shut: what its libraries print while they are loaded would come once a
    process, and tear the progress bars apart.
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
