"""`plug-jax bench scale`: vocabulary, cache and packed stream over more and more text."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plug_jax.atomic_files import write_whole
from plug_jax.errors import PlugError
from plug_jax.strict_json import dumps

RESULTS, CHART = "scale.json", "scale.png"
PARTS = ("vocab", "cache", "stream")
_GIN_FILES = ("runs/cache.gin", "cleaning/chinese.gin")
_ROOM = 3  # bytes on the disk for one of text: that, its sketches and its cache
# Of how many cores the hours for 1 TB are told; a vocabulary is made by one process.
_CORES = {"vocab": (1,), "cache": (1, 16, 64, 256), "stream": (1, 16, 64, 256)}
_ROW, _ROWS_A_BATCH = 512, 8

Results = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `bench scale`."""
    add = parser.add_argument
    add(
        "--directory",
        required=True,
        metavar="DIR",
        help=f"working directory; it keeps {RESULTS}, whose parts are not measured again, and "
        f"{CHART}",
    )
    add(
        "--sizes",
        type=float,
        nargs="+",
        default=[0.1, 0.4, 1.6, 6.4],
        metavar="GB",
        help="sizes of the text (%(default)s)",
    )
    add(
        "--start",
        type=float,
        default=0.005,
        metavar="GB",
        help="size of a text so small that it measures the start of each command, which is left "
        "out of the cost per GB (%(default)s)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the text (%(default)s)")
    add(
        "--file_megabytes",
        type=float,
        default=16.0,
        metavar="MB",
        help="size of a file (%(default)s)",
    )
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="workers of `plug-jax cache` (%(default)s)",
    )
    add(
        "--tokens",
        type=int,
        metavar="N",
        help="tokens to read from the packed stream (default: one epoch)",
    )
    add("--keep", action="store_true", help="keep texts and caches")
    add("--json", action="store_true", help="print the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures what is not measured yet; prints a table, or JSON."""
    for name in ("workers", "tokens", "file_megabytes", "start"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise PlugError(f"--{name} must be above 0, not {value}")
    if min(args.sizes) <= args.start:
        raise PlugError(f"--sizes must be above --start, {args.start:g} GB")
    directory = Path(args.directory)
    results = _measure(args, directory)
    _report_on(args, results, directory)
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("seed", "file_megabytes", "workers", "tokens")}


def _measure(args: argparse.Namespace, directory: Path) -> Results:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlugError(f"Cannot make {directory}: {error.strerror}.") from error
    path = directory / RESULTS
    settings = _settings(args)
    results: Results = {"settings": settings, "sizes": {}}
    if path.exists():
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            other = results["settings"] != settings
        except (ValueError, KeyError, TypeError) as error:
            raise PlugError(
                f"{path} does not hold results of bench scale: remove it, or choose another "
                "--directory."
            ) from error
        if other:
            raise PlugError(
                f"{path} was measured with {results['settings']}, not {settings}: give the same "
                "flags, or another --directory."
            )
    sizes = [args.start, *sorted(args.sizes)]
    missing = [size for size in sizes if not _is_complete(results, size)]
    if earlier := [f"{size:g}" for size in sizes if size not in missing]:
        # They may be of other code or of another machine.
        print(f"{path} has {', '.join(earlier)} GB, not measured again", file=sys.stderr)
    _check_room(directory, max(missing, default=0.0))
    for size in missing:
        of_size = results["sizes"].setdefault(str(size), {})
        _measure_size(
            args,
            size,
            directory / f"{size:g}GB",
            of_size,
            save=lambda: write_whole(path, dumps(results, indent=2) + "\n"),
        )
    return results


def _size(gigabytes: float) -> str:
    return f"{gigabytes:,.0f}" if gigabytes >= 100 else f"{gigabytes:.3g}"


def _is_complete(results: Results, size: float) -> bool:
    of_size = results["sizes"].get(str(size), {})
    return set(PARTS) <= set(of_size)


def _check_room(directory: Path, size: float) -> None:
    needed, free = _ROOM * size, shutil.disk_usage(directory).free / 1e9
    if needed > free:
        raise PlugError(
            f"{size:g} GB of text and its cache need {_size(needed)} GB on the disk of "
            f"{directory}, which has {_size(free)} GB free: choose another --directory, or smaller "
            "--sizes."
        )


def _measure_size(
    args: argparse.Namespace,
    size: float,
    directory: Path,
    of_size: dict[str, Any],
    *,
    save: Callable[[], None],
) -> None:
    from plug_jax.benchmarks.scale import GIGABYTE, measure_command
    from plug_jax.benchmarks.scale_text import PlantedText, packaged_clauses, write_planted

    def say(line: str) -> None:
        print(f"{size:g} GB: {line}", file=sys.stderr, flush=True)

    planted = PlantedText(args.seed, packaged_clauses(directory / "corpus"))
    written = write_planted(
        planted,
        directory / "text",
        size=int(size * GIGABYTE),
        file_size=int(args.file_megabytes * 1e6),
        report=lambda count, so_far: say(f"text, {count:,} documents, {so_far / 1e6:,.0f} MB"),
    )
    of_size["text"] = dataclasses.asdict(written)
    commands = {
        "vocab": _plug_jax(
            "vocab", "--model_type", "wordpiece", "--input", f"{directory}/text/*.txt",
            "--output", f"{directory}/vocabulary", "--overwrite",
        ),
        "cache": _plug_jax(
            "cache", *(f"--gin_file={name}" for name in _GIN_FILES),
            *(f"--gin.{binding}" for binding in _bindings(directory)),
            "--output_cache_dir", f"{directory}/cache", "--deduplicate", "near",
            "--workers", str(args.workers), "--overwrite",
        ),
        "stream": [
            sys.executable, "-m", "plug_jax.cli.bench_scale", str(directory), str(args.tokens or 0),
        ],
    }  # fmt: skip
    last = [part for part in PARTS if part not in of_size][-1]
    for part in PARTS[: PARTS.index(last) + 1]:
        # What a part makes is needed by those that follow; it may be gone.
        if part in of_size and _has_left(directory, part):
            continue
        say(part)
        cost = dataclasses.asdict(measure_command(commands[part], directory / f"{part}.log"))
        if part == "cache":
            say("what the cache holds")
            cost["found"] = _count(directory, planted, written.documents)
        if part == "stream":
            cost |= json.loads((directory / "stream.json").read_text(encoding="utf-8"))
        of_size[part] = cost
        save()
        say(f"{part}: {cost['cpu_seconds']:.1f} s of CPU, {cost['peak_bytes'] / 1e9:.2f} GB")
    if not args.keep:
        shutil.rmtree(directory)


def _has_left(directory: Path, part: str) -> bool:
    """Whether what the part makes is still there."""
    made = {"vocab": "vocabulary/vocab.txt", "cache": "cache/structbert_text/COMPLETED"}
    return (directory / made.get(part, "stream.json")).exists()


def _plug_jax(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "plug_jax", *arguments]


def _bindings(directory: Path) -> list[str]:
    return [
        f"TRAIN_FILES={f'{directory}/text/*.txt'!r}",
        f"VOCABULARY={f'{directory}/vocabulary'!r}",
    ]


def _count(directory: Path, planted: Any, documents: int) -> dict[str, int]:
    from plug_jax.benchmarks.scale import count_in_cache
    from plug_jax.data.vocabularies.vocabulary import load_vocabulary

    shards = sorted(map(str, (directory / "cache" / "structbert_text").glob("train.tfrecord-*")))
    return count_in_cache(
        shards, load_vocabulary(str(directory / "vocabulary")), planted, documents
    )


def stream(directory: Path, tokens: int | None) -> None:
    """Reads the cache in `directory` as training does, and writes how much to stream.json."""
    from plug_jax.benchmarks.scale import read_packed
    from plug_jax.cli import gin_config
    from plug_jax.cli.cache import CacheConfig
    from plug_jax.data.pipeline.pipeline import DatasetConfig

    task = gin_config.configured(
        CacheConfig, files=list(_GIN_FILES), bindings=_bindings(directory)
    ).task
    config = DatasetConfig(
        task,
        {"encoder": _ROW},
        "train",
        _ROWS_A_BATCH,
        shuffle=True,
        seed=0,
        num_epochs=1,
        use_cached=True,
        cache_dirs=(f"{directory}/cache",),
    )
    write_whole(directory / "stream.json", dumps(read_packed(config, most=tokens)) + "\n")


def _report_on(args: argparse.Namespace, results: Results, directory: Path) -> None:
    from plug_jax.benchmarks.scale import law_of, plot_laws

    measured = results["sizes"]
    laws = {
        part: law_of(
            (args.start, measured[str(args.start)][part]),
            {size: measured[str(size)][part] for size in args.sizes},
        )
        for part in PARTS
    }
    plot_laws(laws, directory / CHART)
    shown = {
        **results,
        "laws": {
            part: {
                "start_seconds": law.start_seconds,
                "seconds_a_gigabyte": {f"{size:g}": cost for size, cost in law.by_size.items()},
                "spread": law.spread,
                "peak_growth": law.peak_growth,
                "terabyte_hours": {str(cores): law.hours(cores) for cores in _CORES[part]},
            }
            for part, law in laws.items()
        },
    }
    print(dumps(shown, indent=2)) if args.json else _print_tables(shown, args.sizes)


def _print_tables(shown: Mapping[str, Any], sizes: list[float]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for part, law in shown["laws"].items():
        table = Table(
            "GB of text", "CPU s", "CPU s per GB", "wall s", "peak memory", title=f"plug-jax {part}"
        )
        for size in sorted(sizes):
            cost = shown["sizes"][str(size)][part]
            table.add_row(
                f"{size:g}",
                f"{cost['cpu_seconds']:,.1f}",
                f"{law['seconds_a_gigabyte'][f'{size:g}']:,.0f}",
                f"{cost['wall_seconds']:,.1f}",
                f"{cost['peak_bytes'] / 1e6:,.0f} MB",
            )
        console.print(table)
        hours = ", ".join(f"{h:,.1f} h on {n}" for n, h in law["terabyte_hours"].items())
        console.print(
            f"start {law['start_seconds']:.1f} s, left out of the cost per GB, which varies by "
            f"{law['spread']:.0%}; {law['peak_growth']:.2f} bytes of memory per byte of text; "
            f"1 TB takes {hours} cores, all busy"
        )
    table = Table("GB of text", "documents", "duplicates found", "falsely removed", "not cleaned")
    for size in sorted(sizes):
        of_size = shown["sizes"][str(size)]
        found = of_size["cache"]["found"]
        table.add_row(
            f"{size:g}",
            f"{of_size['text']['documents']:,}",
            *(_found(found, "exact") + ", " + _found(found, "near"),),
            f"{found['falsely_removed']:,} of {found['kept']:,}",
            f"{found['short_left'] + found['foreign_left']:,}",
        )
    console.print(table)


def _found(found: Mapping[str, int], kind: str) -> str:
    planted, left = found[f"{kind}_planted"], found[f"{kind}_left"]
    return f"{planted - left:,} of {planted:,} {kind}"


if __name__ == "__main__":
    stream(Path(sys.argv[1]), int(sys.argv[2]) or None)
