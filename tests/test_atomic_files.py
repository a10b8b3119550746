"""Files that exist completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plug_jax.atomic_files import write_whole
from tests.small_disk import largest_file


def test_the_old_content_stays_until_the_new_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lr=[1e-4] *?{天}"
    write_whole(path, "旧\n")
    seen: list[str] = []
    rename = os.replace

    def replace(part: str, name: str) -> None:
        seen.append(f"{path.read_text()} -> {Path(part).read_text()}")
        rename(part, name)

    synced: list[int] = []
    monkeypatch.setattr(os, "replace", replace)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(len(seen)), fsync(fd)))
    write_whole(path, b"new\n")
    assert seen == ["旧\n -> new\n"]
    assert synced == [0, 1]  # the file before the rename, the directory after it
    assert path.read_bytes() == b"new\n" and os.listdir(tmp_path) == [path.name]


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "a.tmp").write_text("half of a longer cont")
    write_whole(tmp_path / "a", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "new"}


def test_a_full_disk_leaves_what_was_there_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, "old")
    with largest_file(1000), pytest.raises(OSError, match=f"{path}'$"):
        write_whole(path, "x" * 2000)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old"}


def test_two_that_write_a_shared_file_at_once_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "a", os.replace

    def replace(part: str, name: str) -> None:
        monkeypatch.setattr(os, "replace", rename)
        write_whole(path, "the other's", shared=True)  # while this one is about to rename
        assert path.read_text() == "the other's"
        rename(part, name)

    monkeypatch.setattr(os, "replace", replace)
    write_whole(path, "mine", shared=True)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "mine"}


def test_what_is_no_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "天")
    assert os.read(reader, 100) == "天".encode()
    os.close(reader)
    assert pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]
    with pytest.raises(OSError, match="'/dev/full'"):
        write_whole("/dev/full", "x")
    assert Path("/dev/full").is_char_device()
