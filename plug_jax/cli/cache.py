"""`plug-jax cache`: tokenise a seqio task's documents once, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plug_jax.cli import gin_config, task_modules
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields

if TYPE_CHECKING:
    import seqio
    from rich.console import Console

    from plug_jax.data.caching.deduplication import Deduplication
    from plug_jax.data.caching.run import CachedSplit
    from plug_jax.data.caching.workers import CacheProgress

SUMMARY = "Write the offline cache of a seqio task with Apache Beam, optionally without duplicates."
EXAMPLE = """examples:
  plug-jax cache --gin_file=runs/cache.gin --gin.TRAIN_FILES="'news/*.txt'" \\
      --gin.VALIDATION_FILES="'held_out.txt'" --gin.VOCABULARY="'vocabulary'" \\
      --output_cache_dir caches --deduplicate near
  plug-jax cache --task my_task --module my_package.my_tasks --output_cache_dir caches
  plug-jax cache --task my_task --module my_package.my_tasks --output_cache_dir caches \\
      --splits train --deduplicate near --near_threshold 0.8
  plug-jax cache --task my_task --module my_package.my_tasks --output_cache_dir gs://bucket/dir \\
      --runner=DataflowRunner --project=my-project --region=europe-west4

A task is registered by gin, or by a module and then named. Training reads the cache with
--gin.USE_CACHED=True --gin.CACHE_DIRS="('caches',)" and the same task.

Each file of the source becomes one file of the cache. Run the same command again after an
interruption: finished files are not written again. Options not listed here go to Beam.
"""
UNKNOWN_ARGUMENTS = PASSES_ON = True  # options of Beam

_DEFAULT_THRESHOLD = 0.8


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """A cache's settings from gin: the task's name, registered by a function in `tasks`."""

    task: str

    def __post_init__(self) -> None:
        check_fields(self)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax cache`."""
    add = parser.add_argument
    gin_config.add_arguments(parser, required=False)
    add("--task", metavar="NAME", help="a registered task, in place of --gin_file")
    task_modules.add_arguments(parser)
    add(
        "--output_cache_dir",
        required=True,
        metavar="DIR",
        help="cache directory, for seqio.add_global_cache_dirs; the task gets a subdirectory",
    )
    add("--splits", metavar="NAMES", help="splits to cache, as in train,validation (default: all)")
    add(
        "--deduplicate",
        choices=("exact", "near"),
        help="drop documents whose cleaned text equals, or nearly equals, that of another one in "
        "the split (default: keep them)",
    )
    add(
        "--near_threshold",
        type=float,
        metavar="SIMILARITY",
        help="minimum similarity of near duplicates: the Jaccard similarity of their sets of "
        f"character 5-grams, between 0 and 1 ({_DEFAULT_THRESHOLD})",
    )
    add("--overwrite", action="store_true", help="remove these splits from DIR first")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes on this machine (default: one per core, fewer for small inputs)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the cache and print what is in it."""
    from plug_jax.cli.main import import_tensorflow

    deduplicate = _deduplication(args.deduplicate, args.near_threshold)
    if args.workers is not None and args.workers < 1:
        raise PlugError(f"--workers must be at least 1, not {args.workers}")
    if (args.task is None) == (args.gin_file is None):
        raise PlugError("name a task with --task, or gin files that register one with --gin_file")
    bindings = [argument for argument in args.unknown if argument.startswith("--gin.")]
    beam_options = [argument for argument in args.unknown if argument not in bindings]
    if beam_options and not beam_options[0].startswith("--"):
        raise PlugError(f"{beam_options[0]!r} does not belong to an option")
    if bindings and args.gin_file is None:
        raise PlugError(f"{bindings[0]} needs a gin file: --gin_file=runs/cache.gin")
    import_tensorflow()
    from rich.console import Console

    from plug_jax.data.pipeline.pipeline import import_tasks

    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # errors are raised as well
    logging.disable(logging.WARNING)  # Beam warns about missing cloud extras when imported
    from plug_jax.data.caching.run import cache_task

    logging.disable(logging.NOTSET)
    name = args.task
    if args.gin_file is not None:
        name = gin_config.configured(
            CacheConfig, files=args.gin_file, bindings=gin_config.overrides(bindings)
        ).task
    for module in args.module or (() if args.gin_file else task_modules.DEFAULT_MODULES):
        import_tasks(module)
    task = _find_task(name)
    console = Console(highlight=False, markup=False, emoji=False)
    with _ProgressBars(console) as bars:
        splits = cache_task(
            task,
            args.output_cache_dir,
            splits=args.splits.split(",") if args.splits else None,
            deduplicate=deduplicate,
            overwrite=args.overwrite,
            workers=args.workers,
            beam_options=beam_options,
            report=bars.show,
        )
    for split in splits:
        for line in _lines(split):
            console.print(line, soft_wrap=True)
    return 0


def _deduplication(kind: str | None, threshold: float | None) -> Deduplication | None:
    from plug_jax.data.caching.deduplication import Deduplication

    if threshold is not None and kind != "near":
        raise PlugError("--near_threshold needs --deduplicate near")
    if kind is None:
        return None
    if kind == "exact":
        return Deduplication()
    return Deduplication(_DEFAULT_THRESHOLD if threshold is None else threshold)


def _find_task(name: str) -> seqio.Task:
    import seqio

    from plug_jax.data.pipeline.pipeline import find_task

    task = find_task(name)
    if isinstance(task, seqio.Mixture):
        names = ", ".join(sorted(part.name for part in task.tasks))
        raise PlugError(f"{name!r} is a mixture; cache each of its tasks: {names}")
    return task


class _ProgressBars:
    """A line for each pass over a split: files done, documents per second, time left."""

    def __init__(self, console: Console) -> None:
        from rich import progress

        self._bars = progress.Progress(
            "{task.description}",
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            "files",
            "{task.fields[documents]:,} documents",
            "{task.fields[rate]:,.0f}/s",
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        self._passes: dict[tuple[str, str], tuple[Any, float, int]] = {}

    def __enter__(self) -> _ProgressBars:
        return self

    def __exit__(self, *unused: object) -> None:
        self._bars.stop()

    def show(self, progress: CacheProgress) -> None:
        """Updates the pass's line; the speed excludes documents of earlier runs."""
        key = (progress.split, progress.step)
        if key not in self._passes:
            self._bars.start()
            bar = self._bars.add_task(
                f"{progress.step} {progress.split}", total=progress.shards, documents=0, rate=0.0
            )
            self._passes[key] = bar, time.monotonic(), progress.documents
        bar, start, before = self._passes[key]
        seconds = max(time.monotonic() - start, 1e-3)
        self._bars.update(
            bar,
            completed=progress.shards_done,
            documents=progress.documents,
            rate=(progress.documents - before) / seconds,
        )


def _lines(split: CachedSplit) -> list[str]:
    """The report of a complete split."""
    if not split.shards_written:
        head = f"{split.split}: already complete in {split.directory}"
    else:
        head = f"{split.split}: {split.shards_written} of {split.shards} files written"
        head += f" to {split.directory}"
    return [head, *(f"  {line}" for line in _statistics(split.statistics))]


def _statistics(statistics: Mapping[str, Any]) -> list[str]:
    if "documents" not in statistics:
        return [f"examples: {statistics['examples']:,}"]
    used = statistics["documents_used"]
    lines = [
        f"documents: {statistics['documents']:,}, used: {used:,}",
        f"tokens: {statistics['tokens']:,} in {statistics['sentences']:,} sentences",
    ]
    for what in ("drops", "changes"):
        verb = "dropped" if what == "drops" else "changed"
        lines += [f"{verb}: {count:,} ({name})" for name, count in statistics[what].items()]
    return lines
