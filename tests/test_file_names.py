"""A file's ending matches its content."""

from __future__ import annotations

from pathlib import Path

import pytest

from plug_jax.cli.main import main
from plug_jax.errors import PlugError
from plug_jax.file_names import HTML, JSON, JSON_LINES, ZIP, check_output_file


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", JSON_LINES),
        ("rows.json", JSON_LINES),
        ("rows", JSON_LINES),
        ("run.1", JSON_LINES),
        ("gs://bucket/v1.5/rows.JSONL", JSON_LINES),
        ("report.json", JSON),
        ("page.html", HTML),
        ("team.zip", ZIP),
    ],
)
def test_a_name_that_is_right(name: str, content: str) -> None:
    check_output_file("--output", name, content)


@pytest.mark.parametrize(
    ("name", "content", "better"),
    [
        ("rows.npy", JSON_LINES, ".jsonl"),
        ("rows.CSV", JSON_LINES, ".jsonl"),
        ("texts.txt", JSON_LINES, ".jsonl"),
        ("report.jsonl", JSON, ".json"),
        ("page.json", HTML, ".html"),
        ("page.pdf", HTML, ".html"),
        ("team.json", ZIP, ".zip"),
    ],
)
def test_a_name_that_promises_something_else(name: str, content: str, better: str) -> None:
    with pytest.raises(PlugError, match=f"promises; let its name end in {better}$") as caught:
        check_output_file("--output", name, content)
    assert f"--output '{name}' would be {content}" in str(caught.value)


def test_nothing_is_written_compressed() -> None:
    match = r"--output 'rows.jsonl.gz' is not written .* leave .gz out$"
    with pytest.raises(PlugError, match=match):
        check_output_file("--output", "rows.jsonl.gz", JSON_LINES)


WRITING = [
    ["score-generation", "--predictions", "x.jsonl", "--output", "f.npy"],
    ["inspect", "--task", "demo_palm", "--report", "f.npy"],
    ["ensemble", "--runs", "x", "--output", "f.npy"],
    ["clue", "submit", "--runs", "x", "--data_dir", "y", "--output", "f.npy"],
]


@pytest.mark.parametrize("command", WRITING)
def test_commands_say_so_before_they_work(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert "'f.npy' would be" in capsys.readouterr().err


@pytest.mark.parametrize("command", WRITING)
def test_a_directory_is_not_a_file(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command[:-1], str(tmp_path)]) == 2
    assert f"'{tmp_path}' is a directory; name a file" in capsys.readouterr().err
