"""Sets up a mesh of 8 CPU devices before jax is imported, and finds the golden data."""

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# All of this must be in the environment before jax or tensorflow is first imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = (
    "-1"  # tensorflow takes a GPU's memory even if it computes nothing
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The tests' programs compute almost nothing, so XLA need not optimise them. By default it ends the
# process when a device waits 40 s for the others, which on two busy cores may happen to eight.
_XLA_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_force_host_platform_device_count=8"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
if _XLA_FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_XLA_FLAGS}".strip()
# The workers and subprocesses of a test run share compiled programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
# By default only programs that take a second to compile are cached.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# A shell ignores Ctrl-C in its background jobs, and so would the commands that tests
# start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_modules = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs() -> Iterator[None]:
    """Now and then: a worker would end up with 7 GB of them, through which each collection goes."""
    yield
    if next(_modules) % 40 == 0 and "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Outputs of the released PyTorch code: `$PLUG_JAX_GOLDEN`, else `../shared/golden`.

    Skips the test where there is none, except where there should be: when the variable is set, and
    under CI when `shared` exists.
    """
    shared = ROOT.parent / "shared"
    named = os.environ.get("PLUG_JAX_GOLDEN")
    directory = Path(named) if named else shared / "golden"
    if directory.is_dir():
        return directory
    message = f"no golden data in {directory}; name its directory in PLUG_JAX_GOLDEN"
    if named or (os.environ.get("CI") == "true" and shared.exists()):
        pytest.fail(message)
    pytest.skip(message)
