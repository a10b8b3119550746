"""Two processes of four CPU devices each, on this machine, as one run: real `plug-jax` commands."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass
class Ended:
    """The outcome of a process."""

    status: int
    stdout: str
    stderr: str


class Pair:
    """The two processes of a run."""

    def __init__(
        self,
        command: str,
        files: list[str],
        bindings: list[str],
        logs: Path,
        options: Sequence[str],
        preludes: Mapping[int, str],
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = [
            *(f"--gin_file={file}" for file in files),
            *(f"--gin.{binding.replace(' = ', '=', 1)}" for binding in bindings),
            *options,
        ]
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
        self._logs = logs
        self.processes = []
        for index in range(2):
            program = ["-m", "plug_jax"]
            if index in preludes:
                main = "import sys; from plug_jax.cli.main import main; sys.exit(main())"
                program = ["-c", f"{preludes[index]}\n{main}"]
            environment = {
                "XLA_FLAGS": flags,
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            }
            with (
                (logs / f"stdout{index}").open("w") as out,
                (logs / f"stderr{index}").open("w") as err,
            ):
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *program, command, *arguments],
                        cwd=ROOT,
                        env=os.environ | environment,
                        stdout=out,
                        stderr=err,
                    )
                )

    def stderr(self, index: int) -> str:
        return (self._logs / f"stderr{index}").read_text()

    def wait(self, seconds: float = 900.0) -> list[Ended]:
        end = time.monotonic() + seconds
        return [
            Ended(
                process.wait(max(0.1, end - time.monotonic())),
                (self._logs / f"stdout{index}").read_text(),
                self.stderr(index),
            )
            for index, process in enumerate(self.processes)
        ]


@contextlib.contextmanager
def started(
    command: str,
    files: list[str],
    bindings: list[str],
    logs: Path,
    *,
    options: Sequence[str] = (),
    preludes: Mapping[int, str] | None = None,
) -> Iterator[Pair]:
    """`preludes`: Python code that a process runs first, by process number."""
    logs.mkdir()
    pair = Pair(command, files, bindings, logs, options, preludes or {})
    try:
        yield pair
    finally:
        for process in pair.processes:
            process.kill()
            process.wait()
