"""The fine-tuning demo: reviews, with the pre-trained encoder, from scratch and with n-grams."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plug_jax import strict_json
from plug_jax.atomic_files import write_whole
from plug_jax.compilation import use_compilation_cache
from plug_jax.data.sources import demo_reviews
from plug_jax.data.sources.demo_reviews import Review, Reviews
from plug_jax.demo.finetuning_report import Arm, Comparison, Together, write_report
from plug_jax.demo.ngram_baseline import NgramBaseline, ngram_baseline
from plug_jax.demo.pretraining import Configure
from plug_jax.errors import PlugError
from plug_jax.finetuning.ensembles import combine, ensemble
from plug_jax.finetuning.runs import FineTunedRun
from plug_jax.finetuning.sweeps import SEED, Grid, Sweep, table
from plug_jax.training.writers import read_metrics

PRETRAINED, SCRATCH = "pretrained", "scratch"
LEARNING_RATES = (3e-4, 6e-4)  # tried with the first seed
SEEDS = (0, 1, 2)  # for the learning rate that is best on dev
_METRIC = "accuracy"
_JOBS = min(2, os.cpu_count() or 1)  # runs at a time: one core each is more than two for one
_GIN_FILE = "demo/finetune.gin"


def compare(
    stage1: Path,
    directory: Path,
    overrides: Sequence[str],
    configure: Configure,
    load_run: Callable[[Path], FineTunedRun],
) -> None:
    """Fine-tune from the encoder in `stage1` and from scratch, and write the report.

    Existing results in `directory` are reused. `load_run` opens a run's MODEL_DIR.

    Raises:
        PlugError: `directory` has results with other settings, or a run failed.
    """
    reviews, compiled = demo_reviews.read_reviews(), directory / "compiled"
    common = [
        *(
            f"{macro} = {str(directory / 'reviews' / f'{split}.tsv')!r}"
            for macro, split in (
                ("TRAIN_FILE", "train"),
                ("VALIDATION_FILE", "dev"),
                ("TEST_FILE", "test"),
            )
        ),
        f"ARCHITECTURE_OF = {str(stage1)!r}",
        f"COMPILATION_CACHE_DIR = {str(compiled)!r}",
        *overrides,
    ]
    _check_settings(directory, stage1, reviews, common, configure)
    demo_reviews.write_reviews(reviews, directory / "reviews")
    use_compilation_cache(str(compiled))
    clock = _Clock(directory / "seconds.json")
    with clock.part("baseline"):
        baseline = _baseline(directory / "baseline.json", reviews)
    arms = {}
    for name, start in ((PRETRAINED, str(stage1)), (SCRATCH, None)):
        with clock.part(name):
            bindings = [f"INITIAL_CHECKPOINT = {start!r}", *common]
            arms[name] = _train(directory / name, bindings, load_run)
    with clock.part("scores"):
        scored = {name: _score(arm) for name, arm in arms.items()}
        together = _ensemble(arms[PRETRAINED])
    write_report(
        directory,
        Comparison(
            stage1=json.loads((stage1 / "summary.json").read_text(encoding="utf-8")),
            reviews=reviews,
            baseline=baseline,
            pretrained=scored[PRETRAINED],
            scratch=scored[SCRATCH],
            together=together,
            seconds=clock.read(),
        ),
    )
    print(f"\nThe report is {directory / 'report.md'}", file=sys.stderr)


def _check_settings(
    directory: Path, stage1: Path, reviews: Reviews, bindings: Sequence[str], configure: Configure
) -> None:
    """Record the settings. PlugError for results with other settings, or invalid settings."""
    config = configure(
        [_GIN_FILE], [f"MODEL_DIR = {str(directory)!r}", "INITIAL_CHECKPOINT = None", *bindings]
    )
    told: dict[str, Any] = {
        "encoder": json.loads((stage1 / "summary.json").read_text(encoding="utf-8")),
        "reviews": hashlib.sha256(repr(reviews).encode()).hexdigest(),
        "settings": config.config_gin,
        "learning_rates": list(LEARNING_RATES),
        "seeds": list(SEEDS),
    }
    path = directory / "settings.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if different := [name for name in told if kept.get(name) != told[name]]:
            raise PlugError(
                f"{directory} holds results of another {' and '.join(different)}; choose another "
                "--output, or start over with --fresh"
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(path, told)


def _baseline(path: Path, reviews: Reviews) -> NgramBaseline:
    """The n-gram baseline, computed once."""
    if path.exists():
        return NgramBaseline(**json.loads(path.read_text(encoding="utf-8")))

    def texts(split: Sequence[Review]) -> list[tuple[str, str]]:
        return [(review.text, review.label) for review in split]

    splits = (texts(reviews.splits[name]) for name in ("train", "dev", "test"))
    found = ngram_baseline(*splits, say=_say)
    _write_json(path, dataclasses.asdict(found))
    return found


@dataclasses.dataclass(frozen=True)
class _TrainedArm:
    """The runs with one initialisation."""

    by_learning_rate: Mapping[float, float]  # dev accuracy of the first seed
    learning_rate: float  # the best
    seeds: Sequence[FineTunedRun]  # of that learning rate
    every: Sequence[FineTunedRun]


def _train(
    directory: Path, bindings: Sequence[str], load_run: Callable[[Path], FineTunedRun]
) -> _TrainedArm:
    """A sweep of learning rates with the first seed, then the other seeds at the best one."""

    def swept(learning_rates: Sequence[float], seeds: Sequence[int]) -> Sweep:
        grid = Grid({"LEARNING_RATE": tuple(learning_rates), SEED: tuple(seeds)})
        sweep = Sweep(directory, files=[_GIN_FILE], bindings=bindings, grid=grid)
        sweep.run(jobs=_JOBS, say=lambda line: _say(f"{directory.name}: {line}"))
        if failed := [run.name for run in sweep.runs if run.status != "done"]:
            raise PlugError(f"{failed[0]} failed; {directory / failed[0] / 'train.log'} says why")
        return sweep

    tried = swept(LEARNING_RATES, SEEDS[:1]).runs
    rows = table(tried, _METRIC)
    best = rows[0].settings["LEARNING_RATE"]
    seeds = swept([best], SEEDS).runs
    _say(f"{directory.name}: {table(seeds, _METRIC)[0].mean:.2f} on dev over the seeds")
    names = dict.fromkeys(run.name for run in [*seeds, *tried])
    loaded = {name: load_run(directory / name) for name in names}
    return _TrainedArm(
        {row.settings["LEARNING_RATE"]: row.mean for row in rows},
        best,
        [loaded[run.name] for run in seeds],
        list(loaded.values()),
    )


def _score(arm: _TrainedArm) -> Arm:
    return Arm(
        by_learning_rate=dict(arm.by_learning_rate),
        learning_rate=arm.learning_rate,
        dev=[one.metrics("validation")[_METRIC] for one in arm.seeds],
        test=[one.metrics("test")[_METRIC] for one in arm.seeds],
        records=[read_metrics(one.path) for one in arm.seeds],
    )


def _ensemble(arm: _TrainedArm) -> Together:
    """The runs of an arm that help on dev, scored once on test."""
    report = ensemble(arm.every, split="validation", metric=_METRIC, method="mean")
    members = [one for path in report.members for one in arm.every if one.path == path]
    made = combine([one.outputs("test") for one in members])
    records = members[0].records
    return Together(
        members=[Path(one.path).name for one in members],
        dev=report.picked,
        cross_validated=report.cross_validated,
        test=records.metrics("test", made)[_METRIC],
        answers=records.answers("test", made),
    )


class _Clock:
    """Seconds of each part, over all starts of the command; kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, dict[str, float]]:
        """{part: {"wall": ..., "cpu": ...}}, CPU time including child processes."""
        known: dict[str, dict[str, float]] = {}
        if self._path.exists():
            known = json.loads(self._path.read_text(encoding="utf-8"))
        return known

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within, even if interrupted."""
        _say(f"== {name}")
        wall, cpu = time.monotonic(), _cpu_seconds()
        try:
            yield
        finally:
            known = self.read()
            before = known.get(name, {"wall": 0.0, "cpu": 0.0})
            known[name] = {
                "wall": round(before["wall"] + time.monotonic() - wall, 1),
                "cpu": round(before["cpu"] + _cpu_seconds() - cpu, 1),
            }
            _write_json(self._path, known)


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, strict_json.dumps(value, indent=2, ensure_ascii=False) + "\n")
