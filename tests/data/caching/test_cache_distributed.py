"""Caches made by several workers of a cluster: the same bytes as made locally."""

import contextlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from plug_jax.data.caching.deduplication import Deduplication
from tests.cached_corpus import (
    cache,
    digests,
    random_text,
    statistics_of,
    task_of,
    vocabulary_of,
    write_corpus,
)

pytestmark = pytest.mark.slow

_FILES = 6
_SECONDS_TO_START = 60


@pytest.fixture
def task(tmp_path):
    """Documents of which one has an exact and one a near duplicate in another file."""
    rng = np.random.default_rng(0)
    documents = [[random_text(rng, 60) for _ in range(20)] for _ in range(_FILES)]
    documents[3][5] = documents[0][1]
    documents[4][7] = documents[1][2][:-2] + "一。"
    return task_of(write_corpus(tmp_path / "corpus", documents), vocabulary_of(tmp_path))


@pytest.fixture
def here(task, tmp_path):
    """The cache made locally."""
    cache(task, tmp_path / "here", deduplicate=Deduplication(near_threshold=0.7))
    statistics = statistics_of(tmp_path / "here")
    assert statistics["drops"] == {"exact_duplicate": 1, "near_duplicate": 1}
    return digests(tmp_path / "here"), statistics


@contextlib.contextmanager
def dask_cluster(directory, workers):
    """The address of a scheduler with this many single-threaded worker processes."""
    known = directory / "scheduler.json"
    flags = ["--scheduler-file", str(known), "--no-dashboard"]
    scheduler = ["dask_scheduler", *flags, "--host", "127.0.0.1", "--port", "0"]
    worker = ["dask_worker", *flags, "--nthreads", "1", "--no-nanny"]
    worker += ["--local-directory", str(directory)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with contextlib.ExitStack() as stack:
        for name, *arguments in [scheduler, *[worker] * workers]:
            main = f"from distributed.cli.{name} import main; main()"
            process = subprocess.Popen(
                [sys.executable, "-c", main, *arguments],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        end = time.monotonic() + _SECONDS_TO_START
        while not known.exists():
            assert time.monotonic() < end, "no scheduler"
            time.sleep(0.2)
        yield json.loads(known.read_text())["address"]


def test_a_dask_cluster_gives_the_same_bytes(task, here, tmp_path):
    distributed = pytest.importorskip("distributed", reason="pip install 'apache-beam[dask]'")
    with dask_cluster(tmp_path, workers=2) as address, distributed.Client(address) as client:
        client.wait_for_workers(2, timeout=_SECONDS_TO_START)
        cache(
            task,
            tmp_path / "there",
            workers=None,
            deduplicate=Deduplication(near_threshold=0.7),
            beam_options=[
                "--runner=apache_beam.runners.dask.dask_runner.DaskRunner",
                f"--dask_client_address={address}",
                f"--dask_npartitions={_FILES}",
            ],
        )
        worked = client.run(lambda: "tensorflow" in sys.modules)
        for left_open in set(distributed.Client._instances) - {client}:  # by Beam
            left_open.close()
    assert list(worked.values()) == [True, True]
    assert (digests(tmp_path / "there"), statistics_of(tmp_path / "there")) == here


def test_beams_own_worker_processes_give_the_same_bytes(task, here, tmp_path):
    """Under its full name the runner is Beam's own, and processes shards in its workers."""
    cache(
        task,
        tmp_path / "there",
        workers=None,
        deduplicate=Deduplication(near_threshold=0.7),
        beam_options=[
            "--runner=apache_beam.runners.portability.fn_api_runner.fn_runner.FnApiRunner",
            "--direct_num_workers=2",
            "--direct_running_mode=multi_processing",
        ],
    )
    assert (digests(tmp_path / "there"), statistics_of(tmp_path / "there")) == here
