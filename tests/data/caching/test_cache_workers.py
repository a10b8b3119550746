"""Shards in several processes: the same bytes, and an error when a process dies."""

import os

import numpy as np
import pytest

from plug_jax.data.caching import workers as cache_workers
from plug_jax.errors import PlugError
from tests.cached_corpus import (
    FILES,
    cache,
    digests,
    random_text,
    statistics_of,
    task_of,
    vocabulary_of,
    write_corpus,
)

pytestmark = pytest.mark.slow


def test_the_bytes_do_not_depend_on_the_workers(tmp_path):
    rng = np.random.default_rng(0)
    documents = [[random_text(rng) for _ in range(30)] for _ in range(FILES)]
    task = task_of(write_corpus(tmp_path / "corpus", documents), vocabulary_of(tmp_path))
    for name, workers in (("one", 1), ("two", 2)):
        cache(task, tmp_path / name, workers=workers)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert statistics_of(tmp_path / "two") == statistics_of(tmp_path / "one")
    assert list(digests(tmp_path / "one")) == [
        f"train.tfrecord-0000{i}-of-00003" for i in range(FILES)
    ]


def test_a_worker_that_dies_is_an_error_and_no_wait(monkeypatch):
    monkeypatch.setattr(cache_workers, "start_worker", os.getpid)
    with (
        cache_workers.worker_processes(2),
        pytest.raises(PlugError, match="A worker process was killed"),
    ):
        cache_workers.work_on([{}, {}], function=exec, work="import os; os._exit(9)", processes=2)


def test_shards_of_more_than_five_digits_are_themselves(tmp_path):
    for name in ("00007.json", "123456.json", "00008.json.tmp", "00009.progress"):
        (tmp_path / name).touch()
    assert cache_workers.shards_done(str(tmp_path)) == {7, 123456}
