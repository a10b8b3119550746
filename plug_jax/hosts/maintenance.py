"""Google Cloud's notices that this machine is about to be taken away.

GKE and a machine that shuts down send SIGTERM; where a process runs on a virtual machine without
either, the metadata server knows before.
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

_HOST = "GCE_METADATA_HOST"  # as Google's libraries name another server
_PRODUCT = Path("/sys/class/dmi/id/product_name")
_SECONDS_BETWEEN_LOOKS = 2.0
_NOTICES = {  # what is asked for, and the answer by which the machine will go
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
    "preempted": "TRUE",
}


@contextlib.contextmanager
def maintenance(notify: Callable[[str], None]) -> Iterator[None]:
    """Within, `notify` is called with a notice that comes, once; on Google's machines only.

    One that is there already does not count: a run that was restarted on its account goes on until
    the machine is gone.
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
    """The server's answer; None where it has none now."""
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/{name}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5.0) as answer:
            return str(answer.read().decode().strip())
    except OSError:
        return None
