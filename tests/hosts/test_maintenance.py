"""Google's metadata server, simulated."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from plug_jax.hosts import maintenance as module
from plug_jax.hosts.maintenance import maintenance

ROOT = "/computeMetadata/v1/instance/"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The server's answers, which a test may change."""
    said = {"maintenance-event": "NONE", "preempted": "FALSE"}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Metadata-Flavor"] == "Google"
            text = said.get(self.path.removeprefix(ROOT))
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LOOKS", 0.02)
    yield said
    server.shutdown()


def wait_for(heard: list[str]) -> list[str]:
    end = time.monotonic() + 5
    while not heard and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    return heard


@pytest.mark.parametrize(
    ("name", "answer"),
    [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")],
)
def test_a_notice_is_heard_once(name: str, answer: str, answers: dict[str, str]) -> None:
    heard: list[str] = []
    with maintenance(heard.append):
        time.sleep(0.1)
        assert heard == []
        answers[name] = answer
        assert wait_for(heard) == [f"the notice {name} = {answer}"]


def test_what_does_not_end_the_machine_or_was_known_is_no_notice(answers: dict[str, str]) -> None:
    answers["preempted"] = "TRUE"
    heard: list[str] = []
    with maintenance(heard.append):
        time.sleep(0.1)
        answers["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
        time.sleep(0.2)
        answers.clear()  # it does not answer for a while
        time.sleep(0.1)
        answers["preempted"] = "TRUE"
        time.sleep(0.2)
    assert heard == []


def test_elsewhere_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(module, "_PRODUCT", module.Path("/nowhere"))
    assert module._server() is None
