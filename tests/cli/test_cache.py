"""`plug-jax cache`: output and errors."""

import builtins
import sys

import pytest
import seqio

from plug_jax.cli import main
from tests.cached_corpus import task_of, vocabulary_of, write_corpus


@pytest.fixture
def registered(tmp_path):
    """A registered task over two files: 5 documents are long enough, and 2 of them are distinct."""
    long, other = "一丁" * 10 + "。", "七万" * 10 + "。"
    source = write_corpus(tmp_path / "corpus", [[long, long, "一"], [other, long, other]])
    task = task_of(source, vocabulary_of(tmp_path), name="cli_small")
    seqio.TaskRegistry.add_provider(task.name, task)
    yield task
    seqio.TaskRegistry.remove(task.name)


def plug_jax_cache(*arguments, directory, task="cli_small"):
    arguments = ["--task", task, "--output_cache_dir", directory, *arguments]
    return main.main(["cache", *map(str, arguments)])


def test_it_says_what_is_in_the_cache_and_next_time_that_it_is_there(registered, tmp_path, capsys):
    def run():
        assert plug_jax_cache("--splits=train", "--deduplicate=exact", directory=tmp_path) == 0
        return capsys.readouterr().out

    first, second = run(), run()
    assert f"train: 2 of 2 files written to {tmp_path}/cli_small" in first
    for line in (
        "documents: 6, used: 2",
        "tokens: 42 in 2 sentences",
        "dropped: 3 (exact_duplicate)",
        "dropped: 1 (too_short_text)",
    ):
        assert line in first
        assert line in second
    assert f"train: already complete in {tmp_path}/cli_small" in second
    assert "written" not in second


def test_flags_of_beam_pass_through(registered, tmp_path, monkeypatch, capsys):
    from plug_jax.data.caching import run as caching

    seen = {}
    monkeypatch.setattr(caching, "cache_task", lambda *args, **options: seen.update(options) or [])
    flags = ["--runner=DataflowRunner", "--project", "mine"]
    assert plug_jax_cache(*flags, directory=tmp_path) == 0
    assert seen["beam_options"] == flags
    assert seen["deduplicate"] is None
    assert plug_jax_cache("--deduplicate=near", directory=tmp_path) == 0
    assert seen["deduplicate"].near_threshold == 0.8
    assert plug_jax_cache("--deduplicate=near", "--near_threshold=0.6", directory=tmp_path) == 0
    assert seen["deduplicate"].near_threshold == 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--near_threshold=0.5"], "--near_threshold needs --deduplicate near"),
        (["--deduplicate=near", "--near_threshold=0"], "must lie between 0 and 1"),
        (["--deduplicate=near", "--near_threshold=2"], "must lie between 0 and 1"),
        (["--workers=0"], "--workers must be at least 1, not 0"),
        (["stray"], "'stray' does not belong to an option"),
        (["--split=train"], "has an option --split"),
        (["--splits=train,test"], "has no split 'test', only train, validation"),
        (["--module=no_such_module"], "'no_such_module' cannot be imported"),
    ],
)
def test_mistakes(registered, tmp_path, capsys, arguments, message):
    assert plug_jax_cache(*arguments, directory=tmp_path) == 2
    assert message in capsys.readouterr().err


def test_tasks_that_are_none(registered, tmp_path, capsys):
    assert plug_jax_cache(directory=tmp_path, task="cli_smal") == 2
    assert "Did you mean cli_small" in capsys.readouterr().err
    seqio.MixtureRegistry.add("cli_mixture", ["cli_small"], default_rate=1.0)
    try:
        assert plug_jax_cache(directory=tmp_path, task="cli_mixture") == 2
    finally:
        seqio.MixtureRegistry.remove("cli_mixture")
    assert "cache each of its tasks: cli_small" in capsys.readouterr().err


def test_an_error_of_a_source_is_one_line(tmp_path, capsys):
    source = write_corpus(tmp_path / "other", [["一" * 20]])
    (tmp_path / "other" / "0.txt").write_text("\n")
    seqio.TaskRegistry.add_provider(
        "cli_empty", task_of(source, vocabulary_of(tmp_path), name="cli_empty")
    )
    try:
        assert plug_jax_cache(directory=tmp_path, task="cli_empty") == 2
    finally:
        seqio.TaskRegistry.remove("cli_empty")
    error = capsys.readouterr().err
    assert error.startswith("plug-jax: error: No text for the train split, every file is empty")
    assert len(error.splitlines()) == 1


def test_without_apache_beam(registered, tmp_path, capsys, monkeypatch):
    real = builtins.__import__

    def without_beam(name, *args, **kwargs):
        if name.startswith("apache_beam"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "plug_jax.data.caching.run", raising=False)
    monkeypatch.delattr("plug_jax.data.caching.run", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_beam)
    assert plug_jax_cache(directory=tmp_path) == 2
    assert "pip install 'plug-jax[cache]'" in capsys.readouterr().err
