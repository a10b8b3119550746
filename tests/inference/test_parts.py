"""An output written part by part: killed anywhere, and resumed."""

import json
import os
from pathlib import Path

import pytest

from plug_jax.errors import PlugError
from plug_jax.inference import parts
from plug_jax.inference.parts import PartedOutput

SETTINGS = {"options": {"of": {"seed": 1}, "top_k": (3,)}, "checkpoint": "a"}


def opened(path: Path, *, settings=SETTINGS, rows=5, rows_per_part=2) -> PartedOutput:
    return PartedOutput(str(path), settings, rows=rows, rows_per_part=rows_per_part)


def part(number: int) -> list[dict]:
    """Part `number` of five rows, two in a part."""
    return [{"n": n, "text": "天\n地"} for n in range(2 * number, min(2 * number + 2, 5))]


def go_on(path: Path) -> PartedOutput:
    """Write the missing parts."""
    output = opened(path)
    if not output.complete:
        for number in range(output.parts_done, 3):
            output.write(number, part(number))
        output.finish()
    return output


def whole() -> list[dict]:
    return [row for number in range(3) for row in part(number)]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_the_output_appears_at_the_end(tmp_path):
    path = tmp_path / "out.jsonl"
    output = opened(path)
    assert not output.complete and output.parts_done == 0
    output.write(0, part(0))
    assert not path.exists()
    again = opened(path)
    assert again.parts_done == 1 and list(again.read(0)) == part(0)
    go_on(path)
    assert lines(path) == whole()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.manifest.json"]
    assert opened(path).complete and list(opened(path).read_all()) == whole()


def test_killed_at_any_step_nothing_is_lost_or_there_twice(tmp_path, monkeypatch):
    """Ends the run before each of its file system operations, in turn."""

    class Killed(BaseException):
        pass

    gfile = parts.tf.io.gfile
    changes = {n: getattr(gfile, n) for n in ("rename", "makedirs", "rmtree", "GFile")}
    changes |= {n: getattr(os, n) for n in ("fsync", "replace")}  # of files that are complete
    for steps in range(100):
        path = tmp_path / str(steps) / "out.jsonl"
        path.parent.mkdir()
        left = [steps]

        def change(name, *args, _left=left, **kwargs):
            _left[0] -= 1
            if _left[0] < 0:
                raise Killed
            return changes[name](*args, **kwargs)

        with monkeypatch.context() as patch:
            for name in changes:
                where = gfile if hasattr(gfile, name) else os
                patch.setattr(where, name, lambda *a, _n=name, **k: change(_n, *a, **k))
            try:
                go_on(path)
            except Killed:
                ended = False
            else:
                ended = True
        go_on(path)
        assert lines(path) == whole(), steps
        assert len(list(path.parent.iterdir())) == 2, steps
        if ended:
            assert steps > 12
            return
    raise AssertionError("it never ended")


def test_a_part_that_is_cut_anywhere_is_made_again(tmp_path):
    path = tmp_path / "out.jsonl"
    output = opened(path)
    output.write(0, part(0))
    output.write(1, part(1))
    second = tmp_path / "out.jsonl.parts" / "000001.jsonl"
    content = second.read_bytes()
    for size in range(len(content)):
        second.write_bytes(content[:size])
        assert opened(path).parts_done == 1
    second.write_bytes(content)
    assert opened(path).parts_done == 2
    (tmp_path / "out.jsonl.parts" / "000000.jsonl").write_bytes(b"")
    assert opened(path).parts_done == 0
    go_on(path)
    assert lines(path) == whole()


def test_other_settings_are_refused_once_there_are_rows(tmp_path):
    path = tmp_path / "out.jsonl"
    opened(path, settings={**SETTINGS, "checkpoint": "b"})
    opened(path).write(0, part(0))  # nothing was kept: it starts from the beginning
    changed = {"options": {"of": {"seed": 2}, "top_k": [3]}, "checkpoint": "a"}
    message = r"with other settings: options.of.seed was 1 and is 2. Resume with the same settings"
    with pytest.raises(PlugError, match=message):
        opened(path, settings=changed)
    go_on(path)
    with pytest.raises(PlugError, match=f"{message}.*or remove .*out.jsonl.* and .*out.jsonl"):
        opened(path, settings=changed)
    assert lines(path) == whole()


def test_parts_keep_their_size(tmp_path):
    opened(tmp_path / "out.jsonl").write(0, part(0))
    again = opened(tmp_path / "out.jsonl", rows_per_part=100)
    assert (again.rows_per_part, again.parts_done) == (2, 1)


def test_what_is_not_ours_is_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("precious")
    with pytest.raises(PlugError, match="out.jsonl exists without .*manifest.json"):
        opened(path)
    (tmp_path / "out.jsonl.manifest.json").write_text("[]")
    with pytest.raises(PlugError, match="is not a manifest of plug-jax"):
        opened(path)
    assert path.read_text() == "precious"


def test_an_output_that_cannot_be_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PlugError, match="cannot write OUTPUT"):
        opened(tmp_path / "file" / "out.jsonl")
    with pytest.raises(PlugError, match="leave .gz out"):
        opened(tmp_path / "out.jsonl.gz")


def test_the_output_is_on_the_disk_before_its_parts_are_removed(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    synced = []
    monkeypatch.setattr(
        parts, "sync", lambda name: synced.append((name, Path(f"{path}.parts").is_dir()))
    )
    go_on(path)
    assert synced == [(f"{path}.tmp", True)]
