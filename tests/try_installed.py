"""Tries the plug-jax beside this Python, as somebody who installed it: `make wheel` runs it.

Not a test for pytest: it is run by an environment that has nothing of the repository.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLUG_JAX = Path(sys.executable).parent / "plug-jax"
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_NUM_PROCESSES": "1", "PYTHONPATH": ""}

# The demo, with so few steps that it takes a minute.
DEMO = ("TRAIN_STEPS=10", "EVAL_EVERY=9", "LOG_EVERY=5", "CHECKPOINT_EVERY=10")

MY_TASKS = """
from plug_jax.data.sources.text_source import TextSource
from plug_jax.data.vocabularies.vocabulary import default_vocabulary
from plug_jax.tasks.pretrain import add_palm
source = TextSource(train="text.txt", validation="text.txt")
add_palm("mine", source, default_vocabulary(), max_length=64)
"""


def plug_jax(*arguments: str, status: int = 0) -> str:
    """Run a command here; returns its standard output."""
    print("$ plug-jax", *arguments, flush=True)
    run = subprocess.run([PLUG_JAX, *arguments], stdout=subprocess.PIPE, text=True)
    if run.returncode != status:
        sys.exit(f"status {run.returncode}, not {status}\n{run.stdout}")
    return run.stdout


def main() -> None:
    """The first day's commands, in an empty directory."""
    names = {path.name for path in Path(site.getsitepackages()[0]).iterdir()}
    assert not {"tasks", "gin_configs", "tests"} & names, "other names than plug_jax are installed"
    os.environ.update(ENVIRONMENT)
    print(plug_jax("doctor"))
    document = "今天天气很好。我们去公园散步。晚上回家吃饭。" * 5
    Path("text.txt").write_text(f"{document}\n" * 50, encoding="utf-8")
    plug_jax("inspect", "--input", "text.txt", "--stage", "1", "--report", "report.html")

    # The user's own module `tasks` is found, and does not shadow ours.
    Path("tasks.py").write_text(MY_TASKS, encoding="utf-8")
    assert "mine " in plug_jax("inspect", "--list", "--module", "tasks")
    assert "decoder" in plug_jax("inspect", "--task", "mine", "--module", "tasks")

    plug_jax("demo", *(f"--gin.{setting}" for setting in DEMO))
    plug_jax(
        "generate",
        "--checkpoint",
        "demo_output/stage2",
        "--prompt",
        "今天",
        "--max_new_tokens",
        "8",
    )
    plug_jax("convert", "export-hf", "--checkpoint", "demo_output/stage1", "--output", "bert")
    plug_jax("convert", "import-hf", "--input", "bert", "--output", "again")
    plug_jax("checkpoint", "verify", "again")
    with serving("demo_output/stage2") as address:
        request = urllib.request.Request(
            f"{address}v1/completions",
            data=json.dumps({"prompt": "今天", "max_tokens": 4, "seed": 1}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            print(json.load(answer)["choices"])


@contextmanager
def serving(checkpoint: str) -> Iterator[str]:
    """A running server; yields its address, and checks that it stops cleanly."""
    command = [PLUG_JAX, "serve", "--checkpoint", checkpoint, "--port", "0"]
    command += ["--max_prompt_tokens", "32", "--gin.WARM_UP=False"]
    with open("serve.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while " at http://" not in (told := Path("serve.log").read_text()):
            if server.poll() is not None:
                sys.exit(told)
            time.sleep(0.2)
        yield told.partition(" at ")[2].split()[0]
    finally:
        server.terminate()
    assert server.wait(60) == 0, Path("serve.log").read_text()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        main()
    print("all of it works")
