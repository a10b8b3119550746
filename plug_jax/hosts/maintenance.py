"""Google Cloud's maintenance and preemption notices.

GKE and a machine that shuts down send SIGTERM; for a process on a virtual machine without either,
the metadata server announces it earlier.
https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
"""

from __future__ import annotations

import contextlib
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

_HOST = "GCE_METADATA_HOST"  # overrides the server, as in Google's libraries
_PRODUCT = Path("/sys/class/dmi/id/product_name")
_SECONDS_BETWEEN_LOOKS = 2.0
_NOTICES = {  # metadata key, and its value before the machine goes away
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
    "preempted": "TRUE",
}


@contextlib.contextmanager
def maintenance(notify: Callable[[str], None]) -> Iterator[None]:
    """Within the context, call `notify` once when a notice arrives; on Google's machines only.

    A notice already present is ignored: a run restarted because of it continues until the machine
    is gone.
    """
    server = _server()
    left = threading.Event()
    if server is not None:
        threading.Thread(target=_look, args=(server, notify, left), daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _server() -> str | None:
    if _HOST in os.environ:
        return os.environ[_HOST]
    with contextlib.suppress(OSError):
        if "Google" in _PRODUCT.read_text():
            return "metadata.google.internal"
    return None


def _look(server: str, notify: Callable[[str], None], left: threading.Event) -> None:
    known = {name: _ask(server, name) for name in _NOTICES}
    while not left.wait(_SECONDS_BETWEEN_LOOKS):
        for name, awaited in _NOTICES.items():
            answer = _ask(server, name)
            if answer is None:
                continue
            before, known[name] = known[name], answer
            if answer == awaited and before not in (None, answer):
                notify(f"the notice {name} = {answer}")
                return


def _ask(server: str, name: str) -> str | None:
    """The server's answer; None if it has none."""
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/{name}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5.0) as answer:
            return str(answer.read().decode().strip())
    except OSError:
        return None
