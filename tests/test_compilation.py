"""Compilation beside other work."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from plug_jax.compilation import Compilation

LEAVING = """
import contextlib, time
from plug_jax.compilation import Compilation, leave
{}
print("said")
leave(3)
raise SystemExit(4)
"""


def lowered() -> jax.stages.Lowered:
    return jax.jit(lambda x: x + 1).lower(jnp.zeros(3))


def test_a_program_compiles_once_in_a_thread_of_its_own() -> None:
    threads: list[str] = []

    def lower() -> jax.stages.Lowered:
        threads.append(threading.current_thread().name)
        return lowered()

    compilation = Compilation(lower, contextlib.nullcontext)
    assert not compilation.done
    compilation.start()
    compilation.start()
    program = compilation.result()
    assert compilation.done and compilation.result() is program
    assert threads == ["compile_0"]
    assert program.call(jnp.ones(3)).tolist() == [2, 2, 2]
    assert not Compilation.running


def test_an_error_comes_with_the_result() -> None:
    def lower() -> jax.stages.Lowered:
        raise ValueError("no such mesh")

    compilation = Compilation(lower, contextlib.nullcontext)
    compilation.start()
    with pytest.raises(ValueError, match="no such mesh"):
        compilation.result()
    assert not Compilation.running


@pytest.mark.parametrize(
    ("compiles", "status"),
    [("Compilation(lambda: time.sleep(300), contextlib.nullcontext).start()", 3), ("", 4)],
)
def test_who_leaves_does_not_wait_for_a_compilation(compiles: str, status: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEAVING.format(compiles)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (status, "said\n")
