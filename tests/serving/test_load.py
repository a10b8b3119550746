"""Two hundred concurrent clients, good and bad, against the command in its own process."""

import asyncio
import collections
import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.serving.running import alone, head

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from plug_jax.cli import serve
from plug_jax.cli.main import main
from plug_jax.inference.model import InferenceModel
from tests.inference_model import lively_model
serve.only_reads = lambda checkpoint: False
InferenceModel.load = lambda *args, **kwargs: lively_model()
sys.exit(main(["serve", "--checkpoint", "some/stage2", "--port", "0"]))
"""
CLIENTS = 200
OPTIONS = {"max_new_tokens": 24, "min_new_tokens": 24, "seed": 1}
BODY = {"prompt": "ABC", "max_tokens": 24, "min_tokens": 24, "seed": 1}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The process, its address, and its log file; the last test ends it."""
    said = tmp_path_factory.mktemp("served") / "stderr"
    with (
        said.open("w") as err,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, stderr=err, text=True
        ) as process,
    ):
        try:
            yield process, process.stdout.readline().split()[3].rstrip("/"), said
        finally:
            process.kill()


def resources(process):
    """Resident megabytes, threads and file descriptors."""
    found = psutil.Process(process.pid)
    return found.memory_info().rss / 1e6, found.num_threads(), found.num_fds()


async def whole(client):
    """Retries until there is room, as OpenAI's client does."""
    while True:
        response = await client.post("/v1/completions", json=BODY)
        if response.status_code != 429:
            return response.json()["choices"][0]["text"]
        assert response.headers["retry-after"] == "1"
        await asyncio.sleep(0.2)


async def streamed(client):
    while True:
        asked = {**BODY, "stream": True}
        async with client.stream("POST", "/v1/completions", json=asked) as response:
            if response.status_code == 200:
                lines = [line async for line in response.aiter_lines() if line]
                assert lines.pop() == "data: [DONE]"
                parts = [json.loads(line.removeprefix("data: ")) for line in lines]
                return "".join(part["choices"][0]["text"] for part in parts)
        assert response.status_code == 429
        await asyncio.sleep(0.2)


async def too_large(client):
    content = b'{"prompt": "' + b"A" * 10_000_000
    response = await client.post("/v1/completions", content=content, headers=JSON)
    assert response.status_code in (413, 429)


async def raw(client, content):
    """Sends something, reads nothing, and disconnects after a while."""
    url = client.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(content)
    await asyncio.sleep(0.5)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def body(content):
    return head(Content_Length=len(content)) + content


BAD = [
    head()[:-2],
    head(Content_Length=100) + b'{"prompt"',
    body(json.dumps(BODY).encode()),
    body(json.dumps({**BODY, "stream": True}).encode()),
]


async def wave(url):
    """All clients at once; the texts of the good ones."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        good = [kind(client) for kind in (whole, streamed) for _ in range(CLIENTS * 2 // 5)]
        bad = [raw(client, BAD[i % len(BAD)]) for i in range(CLIENTS // 5 - 4)]
        answers = await asyncio.gather(*good, *bad, *(too_large(client) for _ in range(4)))
    return answers[: len(good)]


@pytest.mark.long
def test_two_hundred_clients_get_their_answers_and_leave_nothing_behind(served):
    process, url, said = served
    (text,) = alone(BODY["prompt"], OPTIONS)
    found = []
    for _ in range(3):
        assert set(asyncio.run(wave(url))) == {text.text}
        for _ in range(100):
            health = httpx2.get(f"{url}/health").json()
            if (health["writing"], health["waiting"]) == (0, 0):
                break
        assert (health["writing"], health["waiting"]) == (0, 0)
        found.append(resources(process))
    print("MB, threads, descriptors after each wave:", found)
    (before, threads, files), (after, threads_after, files_after) = found[1], found[-1]
    assert after < before + 20
    assert (threads_after, files_after) <= (threads + 1, files + 2)
    assert threads_after < 120 and "Traceback" not in said.read_text()


def test_a_signal_under_load_leaves_no_request_without_an_answer(served):
    process, url, said = served
    statuses = collections.Counter()
    asked = {**BODY, "stream": True}

    async def client_of_many(client):
        while True:
            try:
                async with client.stream("POST", "/v1/completions", json=asked) as r:
                    statuses[r.status_code] += 1
                    lines = [line async for line in r.aiter_lines() if line]
            except httpx2.ConnectError:
                return  # it does not listen any more
            if r.status_code == 200:
                assert lines[-1] == "data: [DONE]" or "the server stopped" in lines[-1]

    async def run():
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            clients = asyncio.gather(*(client_of_many(client) for _ in range(CLIENTS)))
            while statuses[200] < CLIENTS:
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            await clients

    asyncio.run(run())
    print("answers:", dict(statuses))
    assert process.wait(20) == 0
    assert statuses.keys() <= {200, 429, 503}
    assert statuses[503]
    assert "Traceback" not in said.read_text()
