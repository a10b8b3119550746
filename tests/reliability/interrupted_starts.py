"""Presses Ctrl-C at random moments of the start of a run, and looks at how it ends.

    python -m tests.reliability.interrupted_starts --starts 40 --latest 5

Each has to end with status 130 and one line. Moments are drawn evenly from 0.2 s on, from when on
Python itself has begun.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.reliability.kills import environment, hear_interrupts, write_run

_EARLIEST = 0.2  # seconds
_PATIENCE = 300.0  # seconds allowed for a start to end


def interrupted(directory: Path, seconds: float) -> tuple[int, str]:
    """Status and standard error of a run interrupted after this many seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "plug_jax", "train", "--gin_file=../run.gin"],
        cwd=directory,
        env=environment(directory.parent),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=_PATIENCE)
        return process.returncode, said
    finally:
        process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--latest", type=float, default=5.0, help="moment, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    hear_interrupts()
    drawn, wrong = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as name:
        write_run(Path(name))
        for number in range(args.starts):
            directory = Path(name, str(number))
            directory.mkdir()
            seconds = drawn.uniform(_EARLIEST, args.latest)
            status, said = interrupted(directory, seconds)
            if status != 130 or not said.endswith("plug-jax: interrupted\n") or "Trace" in said:
                wrong += 1
                print(f"interrupted after {seconds:.2f} s: status {status}\n{said}", flush=True)
    print(f"{args.starts} starts, {wrong} of them ended otherwise than with status 130 and a line")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
