"""JAX's coordination service in a separate process on the first process's machine.

Inside the first process it would die with it, and JAX's client aborts a process whose service is
gone, with a page of C++. The separate service survives long enough for all to learn that the first
process is lost, like any other.
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import subprocess
import sys
import time

from plug_jax.hosts.errors import HostError

_SECONDS_TO_BE_FREE = 300.0  # as long as the run's other processes wait for the service


class Coordinator:
    """The service, and its behaviour when this process ends."""

    def __init__(self, address: str, processes: int, *, heartbeat_timeout: int) -> None:
        """Serve `processes` processes at the port of `address` (host:port on this host).

        Raises:
            HostError: the port stays in use.
        """
        bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
        port = address.rpartition(":")[2]
        _wait_until_free(int(port))
        command = [sys.executable, "-m", "plug_jax.hosts.coordinator", bind or f"[::]:{port}"]
        self._process = subprocess.Popen(
            [*command, str(processes), str(heartbeat_timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # readers of ours must not wait for its end
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # no Ctrl-C
        )

    def outlive(self, seconds: float) -> None:
        """Keep running for `seconds` after this process has ended, however it ends."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n".encode())
        self._process.stdin.flush()


def _wait_until_free(port: int) -> None:
    """Wait until an earlier run's coordinator has ended: two would share the port's connections."""
    end = time.monotonic() + _SECONDS_TO_BE_FREE
    while True:
        try:
            socket.create_server(("", port)).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise HostError(
                    f"port {port} of this machine, where the processes of the run are to meet, is "
                    f"in use: {error.strerror}. Stop the process that uses it, or choose another "
                    "port"
                ) from error
        time.sleep(0.2)


def _serve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("processes", type=int)
    parser.add_argument("heartbeat_timeout", type=int)
    args = parser.parse_args()
    # Without jax, to save time and memory; jaxlib has no types for it.
    jaxlib = importlib.import_module("jaxlib._jax")
    service = jaxlib.get_distributed_runtime_service(
        args.address, args.processes, heartbeat_timeout=args.heartbeat_timeout
    )
    seconds = 0.0
    for line in sys.stdin:  # until the first process has ended
        seconds = float(line)
    time.sleep(seconds)
    service.shutdown()


if __name__ == "__main__":
    _serve()
