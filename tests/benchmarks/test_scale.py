"""Text with planted duplicates, the resulting cache, and the cost of each command."""

from __future__ import annotations

import collections
import json
import shutil
import sys
from pathlib import Path

import pytest

from plug_jax.benchmarks import scale
from plug_jax.benchmarks.scale import count_in_cache, law_of, measure_command
from plug_jax.benchmarks.scale_text import Kind, PlantedText, packaged_clauses, write_planted
from plug_jax.cli import bench_scale
from plug_jax.cli.main import main
from plug_jax.data.caching.deduplication import Deduplication
from plug_jax.data.caching.run import cache_task
from plug_jax.data.preprocessors.cleaning import ChineseRatio, MinLength
from plug_jax.data.sources.text_source import TextSource
from plug_jax.data.vocabularies.vocabulary import default_vocabulary
from plug_jax.errors import PlugError
from plug_jax.tasks.pretrain import structbert_task

DOCUMENTS = 500


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return PlantedText(3, packaged_clauses(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def written(planted, tmp_path_factory):
    """The directory of the files, and their contents."""
    directory = tmp_path_factory.mktemp("text")
    size = sum(len(planted.text(number).encode()) + 1 for number in range(DOCUMENTS))
    return directory, write_planted(
        planted, directory, size=size, file_size=size // 3, report=lambda *_: None
    )


def pieces(text):
    return {text[start : start + 5] for start in range(len(text) - 4)}


def similarity(one, other):
    return len(pieces(one) & pieces(other)) / len(pieces(one) | pieces(other))


def test_documents_are_what_their_kind_says(planted):
    kinds = collections.defaultdict(list)
    for number in range(DOCUMENTS):
        kinds[planted.kind(number)].append(number)
    assert set(kinds) == set(Kind)
    for number in kinds[Kind.EXACT]:
        assert planted.text(number) == planted.text(planted.repeats(number))
    for kind, low, high in ((Kind.NEAR, 0.85, 0.99), (Kind.DECOY, 0.2, 0.5)):
        for number in kinds[kind]:
            other = planted.repeats(number)
            assert other < number and planted.kind(other) == Kind.ORIGINAL
            assert low < similarity(planted.text(number), planted.text(other)) < high
    originals = [planted.text(number) for number in kinds[Kind.ORIGINAL][:40]]
    assert max(similarity(a, b) for i, a in enumerate(originals) for b in originals[:i]) < 0.1
    assert all(len(planted.text(number)) < 32 for number in kinds[Kind.SHORT])


def test_files_hold_the_documents_in_order(planted, written):
    directory, text = written
    files = sorted(directory.glob("*.txt"))
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    assert len(files) == text.files == 3
    assert lines == [planted.text(number) for number in range(DOCUMENTS)]
    assert text.documents == DOCUMENTS == sum(text.planted.values())
    assert text.bytes == sum(file.stat().st_size for file in files)


@pytest.fixture(scope="module")
def counted(planted, written, tmp_path_factory):
    """Counts from a cache of the text, by deduplication setting."""
    vocabulary = default_vocabulary()
    source = TextSource(train=f"{written[0]}/*.txt")
    steps = [MinLength(32), ChineseRatio(0.6)]

    def count(deduplicate, *, steps=steps):
        task = structbert_task("planted", source, vocabulary, cleaning=steps)
        directory = tmp_path_factory.mktemp("cache")
        cache_task(task, str(directory), deduplicate=deduplicate, workers=1)
        shards = sorted(map(str, directory.glob("planted/train.tfrecord-*")))
        return count_in_cache(shards, vocabulary, planted, DOCUMENTS)

    return count


def test_near_deduplication_and_cleaning_leave_just_what_they_should(counted, written):
    counts = counted(Deduplication(0.8))
    in_text = written[1].planted
    for kind in ("exact", "near", "short", "foreign"):
        assert counts[f"{kind}_planted"] == in_text[kind] > 0 == counts[f"{kind}_left"]
    assert counts["kept"] == in_text["original"] + in_text["decoy"]
    assert counts["falsely_removed"] == counts["unknown"] == 0


@pytest.mark.slow
def test_what_is_left_and_what_is_missing_is_counted(counted, written):
    in_text = written[1].planted
    kept = counted(None, steps=[])
    for kind in ("exact", "near", "short", "foreign"):
        assert kept[f"{kind}_left"] == in_text[kind]
    exact = counted(Deduplication())
    assert (exact["exact_left"], exact["near_left"]) == (0, in_text["near"])
    # Low enough that half of the clauses suffice.
    low = counted(Deduplication(0.15))
    assert low["falsely_removed"] >= in_text["decoy"] // 2 > 0


def test_a_command_is_measured_with_its_children(tmp_path):
    child = "data = bytearray(200 << 20); import time; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}] )"
    cost = measure_command([sys.executable, "-c", parent], tmp_path / "log")
    assert 200 << 20 < cost.peak_bytes < 400 << 20
    assert cost.cpu_seconds > 0 and cost.wall_seconds >= 1
    with pytest.raises(PlugError, match="failed: broken"):
        measure_command([sys.executable, "-c", "raise SystemExit('broken')"], tmp_path / "log")


def test_laws():
    def cost(seconds, peak):
        return {"cpu_seconds": seconds, "peak_bytes": peak}

    start = (0.5, cost(10, 1 << 30))
    law = law_of(start, {1.0: cost(60, 2 * 10**9), 2.5: cost(230, 5 * 10**9)})
    assert law.by_size == {1.0: 100, 2.5: 110}
    assert law.spread == pytest.approx(0.1)
    assert law.peak_growth == pytest.approx(2)
    assert law.hours(1) == pytest.approx((10 + 110 * 1000) / 3600)
    assert law.hours(100) == pytest.approx((10 + 1100) / 3600)


def command(directory, *more, start="0.0003"):
    sizes = ["--start", start, "--sizes", "0.0008", "--file_megabytes", "0.3"]
    return ["bench", "scale", "--directory", str(directory), *sizes, *more]


def test_no_room(tmp_path, monkeypatch, capsys):
    full = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(bench_scale.shutil, "disk_usage", lambda _: full)
    assert main(command(tmp_path)) == PlugError.status
    error = capsys.readouterr().err
    assert "need 0.0024 GB on the disk" in error and "has 0.002 GB free" in error


@pytest.mark.parametrize("content", ["[]", "{", "{}"])
def test_other_results_in_the_directory(tmp_path, capsys, content):
    (tmp_path / bench_scale.RESULTS).write_text(content)
    assert main(command(tmp_path)) == PlugError.status
    assert "scale.json does not hold results of bench scale" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        ("0.001", [], "--sizes must be above --start, 0.001 GB"),
        ("0.0003", ["--workers", "0"], "--workers must be above 0, not 0"),
        ("0.0003", ["--seed", "7"], "was measured with {'seed': 6}, not {'seed': 7, "),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, capsys, start, options, message):
    results = {"settings": {"seed": 6}, "sizes": {}}
    (tmp_path / bench_scale.RESULTS).write_text(json.dumps(results))
    assert main(command(tmp_path, *options, start=start)) == PlugError.status
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_measures_each_part_once(tmp_path: Path, monkeypatch, capsys):
    measured = []

    def measure(command, log):
        measured.append(f"{log.parent.name} {log.stem}")
        return measure_command(command, log)

    monkeypatch.setattr(scale, "measure_command", measure)
    assert main(command(tmp_path, "--json", "--keep")) == 0
    results = json.loads(capsys.readouterr().out)
    parts = ("vocab", "cache", "stream")
    assert measured == [f"{size}GB {part}" for size in ("0.0003", "0.0008") for part in parts]
    of_size = results["sizes"]["0.0008"]
    found = of_size["cache"]["found"]
    assert found["exact_planted"] > 0 < found["near_planted"]
    assert found["exact_left"] == found["near_left"] == found["falsely_removed"] == 0
    assert of_size["stream"]["tokens"] > 100_000
    assert set(results["laws"]) == set(parts)
    assert (tmp_path / bench_scale.CHART).read_bytes().startswith(b"\x89PNG")

    measured.clear()
    path = tmp_path / bench_scale.RESULTS
    stored = json.loads(path.read_text())
    del stored["sizes"]["0.0008"]["stream"]
    path.write_text(json.dumps(stored))
    assert main(command(tmp_path)) == 0
    assert measured == ["0.0008GB stream"]
    assert not (tmp_path / "0.0008GB").exists()
    said = capsys.readouterr()
    assert "0 of 281" in said.out
    assert f"{path} has 0.0003 GB, not measured again\n" in said.err
