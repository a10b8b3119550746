"""Which programs re-exec themselves for huge pages, and that they remain the same programs."""

import json
import subprocess
import sys

import pytest

from plug_jax.huge_pages import is_plug_jax, with_huge_pages

GLIBC = ("glibc", "2.36")
WANTED = "glibc.malloc.hugetlb=1"


@pytest.fixture
def modes(tmp_path):
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    return path


def test_it_is_asked_for_beside_what_is_set(modes):
    assert with_huge_pages({"A": "b"}, modes=modes, libc=GLIBC) == {
        "A": "b",
        "GLIBC_TUNABLES": WANTED,
    }
    set_before = {"GLIBC_TUNABLES": "glibc.malloc.check=3"}
    assert with_huge_pages(set_before, modes=modes, libc=GLIBC) == {
        "GLIBC_TUNABLES": f"glibc.malloc.check=3:{WANTED}"
    }


@pytest.mark.parametrize("value", [0, 1, 2])
def test_it_is_done_once_and_never_against_the_users_word(modes, value):
    environment = {"GLIBC_TUNABLES": f"glibc.malloc.check=3:glibc.malloc.hugetlb={value}"}
    assert with_huge_pages(environment, modes=modes, libc=GLIBC) is None


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]", ""])
def test_it_is_not_done_where_the_system_chooses(modes, mode):
    modes.write_text(mode)
    assert with_huge_pages({}, modes=modes, libc=GLIBC) is None


def test_it_is_not_done_without_huge_pages(tmp_path):
    assert with_huge_pages({}, modes=tmp_path / "none", libc=GLIBC) is None


@pytest.mark.parametrize("libc", [("", ""), ("musl", "1.2"), ("glibc", "2.31"), ("glibc", "2.9")])
def test_it_is_not_done_with_another_malloc(modes, libc):
    assert with_huge_pages({}, modes=modes, libc=libc) is None


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


def test_the_program_is_the_same_process_with_the_same_arguments(modes, tmp_path):
    """Its own arguments, the interpreter's and the standard input reach the program."""
    program = tmp_path / "plug-jax"
    program.write_text(f"""
import json, os, sys
from pathlib import Path
from plug_jax import huge_pages

as_it_is = huge_pages.with_huge_pages
huge_pages.with_huge_pages = lambda environment: as_it_is(
    environment, modes=Path({str(modes)!r}), libc={GLIBC!r}
)
print(json.dumps({{"pid": os.getpid()}}), flush=True)
huge_pages.ask_for_huge_pages()
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
    assert last["tunables"] == WANTED
