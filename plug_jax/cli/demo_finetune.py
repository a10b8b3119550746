"""`plug-jax demo-finetune`: whether pre-training helps on real reviews, in minutes on a CPU."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plug_jax import strict_json
from plug_jax.atomic_files import write_whole
from plug_jax.cli.sweep import interrupt_on_termination
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.demo_reviews import Review, Reviews
    from plug_jax.evaluation.ngram_baseline import NgramBaseline
    from plug_jax.finetuning.report import Arm, Together
    from plug_jax.finetuning.runs import FineTunedRun

SUMMARY = "Fine-tune the demo's encoder on reviews; compare with scratch and with n-grams."
EXAMPLE = """example:
  plug-jax demo-finetune --output demo_output

It takes the encoder of `plug-jax demo` in OUTPUT/stage1, and trains it first where there is none.
All else goes to OUTPUT/finetune. Interrupted, the same command goes on where it was; --fresh
starts again, but keeps the encoder. Any gin macro of demo/finetune.gin can be set: --gin.EPOCHS=2.
"""
UNKNOWN_ARGUMENTS = True

PRETRAINED, SCRATCH = "pretrained", "scratch"
LEARNING_RATES = (3e-4, 6e-4)  # tried with the first seed
SEEDS = (0, 1, 2)  # of the learning rate that is best on dev
_METRIC = "accuracy"
_JOBS = min(2, os.cpu_count() or 1)  # runs at a time: one core each is more than two for one
_GIN_FILE = "demo/finetune.gin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax demo-finetune`."""
    parser.add_argument(
        "--output", default="demo_output", help="that of `plug-jax demo` (%(default)s)"
    )
    parser.add_argument("--fresh", action="store_true", help="remove OUTPUT/finetune first")


def run(args: argparse.Namespace) -> int:
    """Do what is left to do, and write the report."""
    from plug_jax.cli import gin_config
    from plug_jax.cli.main import import_tensorflow

    overrides = gin_config.overrides(args.unknown)
    import_tensorflow()
    from plug_jax.cli.demo import trained_stage1

    output = Path(args.output)
    directory = output / "finetune"
    if args.fresh:
        shutil.rmtree(directory, ignore_errors=True)
    stage1 = trained_stage1(output)
    interrupt_on_termination()
    _compare(stage1, directory, overrides)
    return 0


def _compare(stage1: Path, directory: Path, overrides: Sequence[str]) -> None:
    from plug_jax.data.demo_reviews import read_reviews, write_reviews
    from plug_jax.finetuning.report import Comparison, write_report
    from plug_jax.training.compilation import use_compilation_cache

    reviews, compiled = read_reviews(), directory / "compiled"
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
    _check_settings(directory, stage1, reviews, common)
    write_reviews(reviews, directory / "reviews")
    use_compilation_cache(str(compiled))
    clock = _Clock(directory / "seconds.json")
    with clock.part("baseline"):
        baseline = _baseline(directory / "baseline.json", reviews)
    arms = {}
    for name, start in ((PRETRAINED, str(stage1)), (SCRATCH, None)):
        with clock.part(name):
            bindings = [f"INITIAL_CHECKPOINT = {start!r}", *common]
            arms[name] = _train(directory / name, bindings)
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
    directory: Path, stage1: Path, reviews: Reviews, bindings: Sequence[str]
) -> None:
    """Keep what the results are of. PlugError for results of something else, or wrong settings."""
    from plug_jax.cli.train import configure

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
                "--output, or start again with --fresh"
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(path, told)


def _baseline(path: Path, reviews: Reviews) -> NgramBaseline:
    """Of n-grams; computed once."""
    from plug_jax.evaluation.ngram_baseline import NgramBaseline, ngram_baseline

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
    """The runs of one beginning."""

    by_learning_rate: Mapping[float, float]  # accuracy on dev, of the first seed
    learning_rate: float  # the best
    seeds: Sequence[FineTunedRun]  # of that learning rate
    every: Sequence[FineTunedRun]


def _train(directory: Path, bindings: Sequence[str]) -> _TrainedArm:
    """A sweep of learning rates with the first seed, then the other seeds at the best one."""
    from plug_jax.cli.finetuned_runs import load_run
    from plug_jax.finetuning.sweeps import SEED, Grid, Sweep, table

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
    args = argparse.Namespace(data_dir=None, gin_file=None)
    loaded = {name: load_run(args, str(directory / name)) for name in names}
    return _TrainedArm(
        {row.settings["LEARNING_RATE"]: row.mean for row in rows},
        best,
        [loaded[run.name] for run in seeds],
        list(loaded.values()),
    )


def _score(arm: _TrainedArm) -> Arm:
    from plug_jax.finetuning.report import Arm
    from plug_jax.training.writers import read_metrics

    return Arm(
        by_learning_rate=dict(arm.by_learning_rate),
        learning_rate=arm.learning_rate,
        dev=[one.metrics("validation")[_METRIC] for one in arm.seeds],
        test=[one.metrics("test")[_METRIC] for one in arm.seeds],
        records=[read_metrics(one.path) for one in arm.seeds],
    )


def _ensemble(arm: _TrainedArm) -> Together:
    """Of all runs of an arm, those that help on dev; scored once on test."""
    from plug_jax.finetuning.ensembles import combine, ensemble
    from plug_jax.finetuning.report import Together

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
    """Seconds of each part, over all times that the command was started; kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, dict[str, float]]:
        """{part: {"wall": ..., "cpu": ...}}, the latter of this process and its children."""
        known: dict[str, dict[str, float]] = {}
        if self._path.exists():
            known = json.loads(self._path.read_text(encoding="utf-8"))
        return known

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done meanwhile, also what is broken off."""
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
