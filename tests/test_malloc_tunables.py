"""For which programs malloc is tuned, by re-executing them, and that they remain the same."""

import json
import platform
import subprocess
import sys

import pytest

from plug_jax.malloc_tunables import is_plug_jax, with_tunables

GLIBC = ("glibc", "2.36")
HUGE_PAGES = "glibc.malloc.hugetlb=1"
KEPT = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"


class Machine:
    """Linux's files: the mode of huge pages, and no device."""

    def __init__(self, directory):
        self.modes = directory / "enabled"
        self.modes.write_text("always [madvise] never\n")
        self.devices = directory / "dev"
        self.devices.mkdir()

    def add(self, device):
        path = self.devices / device
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def tunables(self, libc=GLIBC, **environment):
        """What GLIBC_TUNABLES becomes; None: as it is."""
        after = with_tunables(environment, modes=self.modes, devices=self.devices, libc=libc)
        if after is None:
            return None
        assert {**after, "GLIBC_TUNABLES": None} == {**environment, "GLIBC_TUNABLES": None}
        return after["GLIBC_TUNABLES"]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_they_are_set_beside_what_is_set(machine):
    assert machine.tunables(A="b") == f"{HUGE_PAGES}:{KEPT}"
    before = "glibc.malloc.check=3"
    assert machine.tunables(GLIBC_TUNABLES=before) == f"{before}:{HUGE_PAGES}:{KEPT}"


def test_it_is_done_once(machine):
    assert machine.tunables(GLIBC_TUNABLES=machine.tunables()) is None


@pytest.mark.parametrize("value", [0, 1, 2])
def test_the_users_word_stays(machine, value):
    before = f"glibc.malloc.check=3:glibc.malloc.hugetlb={value}"
    assert machine.tunables(GLIBC_TUNABLES=before) == f"{before}:{KEPT}"
    before = f"glibc.malloc.arena_max={value}"
    rest = KEPT.removeprefix("glibc.malloc.arena_max=1:")
    assert machine.tunables(GLIBC_TUNABLES=before) == f"{before}:{HUGE_PAGES}:{rest}"


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]", "", None])
def test_huge_pages_are_not_requested_where_the_system_chooses_or_has_none(machine, mode):
    machine.modes.unlink()
    if mode is not None:
        machine.modes.write_text(mode)
    assert machine.tunables() == KEPT


@pytest.mark.parametrize("device", ["accel0", "vfio/0", "nvidia0", "kfd"])
def test_beside_an_accelerator_no_memory_is_kept(machine, device):
    machine.add("vfio/vfio")  # there without any device
    assert machine.tunables() == f"{HUGE_PAGES}:{KEPT}"
    machine.add(device)
    assert machine.tunables() == HUGE_PAGES
    assert machine.tunables(JAX_PLATFORMS="cpu") == f"{HUGE_PAGES}:{KEPT}"
    machine.modes.write_text("[always] madvise never")
    assert machine.tunables() is None


@pytest.mark.parametrize("libc", [("", ""), ("musl", "1.2"), ("glibc", "2.31"), ("glibc", "2.9")])
def test_it_is_not_done_with_another_malloc(machine, libc):
    assert machine.tunables(libc=libc) is None


STEPS = """
import ctypes, resource, threading
size, libc = 256 << 20, ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def step():
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)

def steps():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=steps)  # where XLA runs a step
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_a_thread_frees_is_not_faulted_in_again(machine):
    """256 MiB are 65,536 pages of 4 KiB, or 128 of 2 MiB where the system always uses these."""
    machine.modes.write_text("never")

    def faults(tunables):
        run = subprocess.run(
            [sys.executable, "-c", STEPS],
            env={"GLIBC_TUNABLES": tunables},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(run.stdout)

    assert faults("") >= 128
    assert faults(machine.tunables()) < 32


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "plug_jax", "train"], True),
        (["-I", "-m", "plug_jax"], True),
        (["/somewhere/bin/plug-jax", "train"], True),
        (["-m", "ipykernel_launcher", "-f", "plug-jax"], False),
        (["notebook.py", "plug-jax"], False),
        (["-c", "program"], False),
        ([], False),
    ],
)
def test_only_plug_jax_itself_starts_anew(arguments, expected):
    assert is_plug_jax(arguments) is expected


def test_the_program_is_the_same_process_with_the_same_arguments(machine, tmp_path):
    """Its own arguments, the interpreter's and the standard input reach the program."""
    program = tmp_path / "plug-jax"
    program.write_text(f"""
import json, os, sys
from pathlib import Path
from plug_jax import malloc_tunables

as_it_is = malloc_tunables.with_tunables
malloc_tunables.with_tunables = lambda environment: as_it_is(
    environment, modes=Path({str(machine.modes)!r}), devices=Path({str(machine.devices)!r}),
    libc={GLIBC!r},
)
print(json.dumps({{"pid": os.getpid()}}), flush=True)
malloc_tunables.set_malloc_tunables()
print(json.dumps({{"pid": os.getpid(), "arguments": sys.argv[1:], "input": sys.stdin.read(),
                   "bytecode": sys.dont_write_bytecode, "tunables": os.environ["GLIBC_TUNABLES"]}}))
""")
    arguments = ["--name", "天 地", "", "*"]
    run = subprocess.run(
        [sys.executable, "-B", program, *arguments],
        input="read",
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "LC_ALL": "C.UTF-8"},
    )
    *starts, last = map(json.loads, run.stdout.splitlines())
    assert [start["pid"] for start in starts] == [last["pid"]] * 2
    assert last["arguments"] == arguments
    assert last["input"] == "read"
    assert last["bytecode"] is True
    assert last["tunables"] == f"{HUGE_PAGES}:{KEPT}"
