"""`plug-jax serve` as a command: output, refused options, and shutdown."""

import dataclasses
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from plug_jax.cli import serve
from plug_jax.cli.main import main
from plug_jax.downstream.entity_format import EntityFormat
from plug_jax.downstream.text_format import TextFormat
from plug_jax.errors import PlugError
from plug_jax.serving.reader import Reader
from tests.downstream.tiny_encoder import write_encoder, write_fine_tuned

ROOT = Path(__file__).resolve().parents[2]

# The command with a small model instead of a checkpoint's; it generates slowly.
PROGRAM = """
import sys, time
from plug_jax.cli import serve
from plug_jax.cli.main import main
from plug_jax.inference.model import InferenceModel
from plug_jax.inference.slots import Slots
from tests.inference_model import lively_model
serve.only_reads = lambda checkpoint: False
InferenceModel.load = lambda *args, **kwargs: lively_model()
advance = Slots.advance
Slots.advance = lambda slots, steps: (time.sleep(0.1), advance(slots, steps))[1]
sys.exit(main(["serve", "--checkpoint", "some/stage2", "--port", "0", "--gin.WARM_UP=False"]))
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "port is 99999; it must be between 0 (a free one) and 65535"),
        (["--host", "host.invalid"], "cannot listen on host.invalid port 8000"),
        (["--port", "-1"], "port is -1; it must be between 0 (a free one) and 65535"),
        (["--max-queue", "-1", "--port", "0"], "no checkpoint in nowhere"),
        (["--prot", "1"], "unknown argument '--prot'; did you mean --port?"),
        (["--gin.SLOT=1"], "did you mean SLOTS?"),
        (["--port", "0"], "no checkpoint in nowhere"),
        (["--api_keys", "no/file"], "cannot read the API keys in no/file: No such file"),
        (["--ssl_certfile", "no/file"], "cannot read no/file for TLS: No such file"),
        (["--ssl_keyfile", "no/file"], "ssl_keyfile needs ssl_certfile"),
        (["--max_client_texts", "0"], "max_client_texts is 0; it must be at least 1"),
    ],
)
def test_a_mistake_ends_it_with_a_message(capsys, arguments, message):
    assert main(["serve", "--checkpoint", "nowhere", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_said_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--checkpoint", "nowhere", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("host", "key", "without"),
    [
        ("127.0.0.1", None, []),
        ("localhost", None, []),
        ("0.0.0.0", None, ["password", "encrypts"]),
        ("0.0.0.0", "a-key-of-some-length", ["encrypts"]),
    ],
)
def test_it_warns_when_others_can_reach_it(capsys, monkeypatch, host, key, without):
    if key is not None:
        monkeypatch.setenv("PLUG_JAX_API_KEY", key)
    assert main(["serve", "--checkpoint", "nowhere", "--host", host, "--port", "0"]) == 2
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [("password" in line, "encrypts" in line) for line in warnings] == [
        (what == "password", what == "encrypts") for what in without
    ]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_ends_it_after_the_request_in_hand(number):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("Serving stage2 at http://127.0.0.1:")
            url = line.split()[3]
            body = {"prompt": "ABC", "max_tokens": 40, "min_tokens": 40, "stream": True}
            with httpx2.stream("POST", f"{url}v1/completions", json=body, timeout=60) as response:
                lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
                first = json.loads(next(lines))["choices"][0]["text"]
                process.send_signal(number)
                *parts, done = lines
            texts = [json.loads(part)["choices"][0]["text"] for part in parts]
            assert done == "[DONE]"
            assert len(first) < 40
            assert len(first + "".join(texts)) == 40
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_an_encoder_and_a_fine_tuned_model_read(tmp_path):
    """How each is served; all other tests serve a generating model."""
    labels = TextFormat(max_length=32, labels=("a", "b"))
    names = EntityFormat(max_length=32, types=("人",))
    for checkpoint, classifies in (
        (write_encoder(tmp_path / "encoder"), False),
        (write_fine_tuned(tmp_path / "labels", "own", labels), True),
        (write_fine_tuned(tmp_path / "names", "own", names), False),
    ):
        config = serve.ServeConfig(
            checkpoint=str(checkpoint),
            host="127.0.0.1",
            port=0,
            slots=2,
            max_queue=2,
            warm_up=False,
        )
        with serve._served(config) as (reader, make_app):
            assert isinstance(reader, Reader) and reader.capacity == 4
            [mount] = [route for route in make_app(model_name="x").routes if route.path == "/v1"]
            paths = {route.path for route in mount.routes}
            assert ("/classify" in paths) == classifies
            assert "/embeddings" in paths and "/completions" not in paths
    written = dataclasses.replace(config, max_new_tokens=8)
    with (
        pytest.raises(PlugError, match="max_new_tokens is for models that generate text"),
        serve._served(written),
    ):
        pass
