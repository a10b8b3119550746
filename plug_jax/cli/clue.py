"""`plug-jax clue`: the files of CLUE, scores of predictions, and submissions."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from plug_jax.cli import finetuned_runs
from plug_jax.errors import PlugError
from plug_jax.file_names import ZIP, check_output_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from plug_jax.clue.inspection import CountTokens, SplitSummary
    from plug_jax.clue.scoring import Score

SUMMARY = "Inspect the CLUE files, score predictions, write and check a submission."
EXAMPLE = """examples:
  plug-jax clue inspect --data_dir CLUE
  plug-jax clue inspect --data_dir CLUE --task ocnli --json
  plug-jax clue score --task cmrc2018 --data CLUE --predictions dev_predictions.json
  plug-jax clue score --data CLUE --predictions afqmc_predict.json tnews11_predict.json --json
  plug-jax clue submit --runs runs/* --data_dir CLUE --output submit_team_20260101.zip
  plug-jax clue validate submit_team_20260101.zip --data_dir CLUE
"""

_MISTAKEN = 1  # exit status if a submission has mistakes
_LABELS_SHOWN = 20
_AT_ONCE = 4096  # texts tokenised at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what can be done with the files, and the flags of each."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    inspect = commands.add_parser("inspect", help="count records, drops, labels and tokens")
    inspect.set_defaults(run=_inspect)
    _add_data_dir(inspect)
    inspect.add_argument("--task", metavar="NAME", help="one task (default: all that are found)")
    inspect.add_argument(
        "--vocabulary",
        metavar="PATH",
        help="for counting tokens: sentencepiece.model, vocab.txt or a directory (default: the "
        "one that ships with plug-jax)",
    )
    _add_json(inspect)

    score = commands.add_parser("score", help="score files of predictions against labelled data")
    score.set_defaults(run=_score)
    score.add_argument(
        "--task",
        metavar="NAME",
        help="task of the file (default: from its name, such as tnews11_predict.json)",
    )
    score.add_argument(
        "--data",
        required=True,
        metavar="FILE_OR_DIR",
        help="a file with labels, or CLUE's directory, for its dev files",
    )
    score.add_argument(
        "--predictions",
        required=True,
        nargs="+",
        metavar="FILE",
        help="in the format of a submission; several, or a zip, also get the leaderboard averages",
    )
    _add_json(score)

    submit = commands.add_parser("submit", help="predict the test files, and write a submission")
    submit.set_defaults(run=_submit)
    finetuned_runs.add_arguments(submit, needs_data_dir=True)
    submit.add_argument(
        "--version", choices=("1.0", "1.1"), default="1.1", help="version of the leaderboard (1.1)"
    )
    submit.add_argument("--output", required=True, metavar="ZIP", help="submit_<team>_<date>.zip")
    submit.add_argument(
        "--method",
        default="mean",
        choices=("mean", "vote"),
        help="how to combine several runs of a task (mean)",
    )
    submit.add_argument(
        "--diagnostics",
        action="store_true",
        help="predict the diagnostics too, with the runs of OCNLI",
    )

    validate = commands.add_parser("validate", help="find every mistake of a submission")
    validate.set_defaults(run=_validate)
    validate.add_argument("zip", metavar="ZIP", help="submit_<team>_<date>.zip")
    _add_data_dir(validate)
    _add_json(validate)


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data_dir",
        required=True,
        metavar="DIR",
        help="CLUE's directory, with folders <task> or <task>_public or zips <task>_public.zip, "
        "or one of these",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Does what was asked for."""
    status: int = args.run(args)
    return status


def _inspect(args: argparse.Namespace) -> int:
    from rich.console import Console

    from plug_jax.clue.inspection import inspect_splits
    from plug_jax.clue.tasks import find_task, tasks_in

    tasks = [find_task(args.task)] if args.task else tasks_in(args.data_dir)
    count_tokens = _token_counter(args.vocabulary)
    console = Console(highlight=False, markup=False, emoji=False, quiet=args.json)
    seen: set[tuple[str, ...]] = set()
    found = {}
    for task in tasks:
        # A file that several tasks share is read once: those of test sets 1.0, smaller OCNLI.
        keys = {split: (task.folders[0], *task.files[split]) for split in task.splits}
        splits = [split for split in task.splits_in(args.data_dir) if keys[split] not in seen]
        seen.update(keys.values())
        if splits:
            summaries = inspect_splits(task, args.data_dir, count_tokens, splits)
            console.print(_table(task.name, summaries))
            found[task.name] = {
                "labels": list(task.labels),
                "splits": {split: one.to_json() for split, one in summaries.items()},
            }
    if args.json:
        print(json.dumps({"tasks": found}, ensure_ascii=False, indent=2))
    return 0


def _score(args: argparse.Namespace) -> int:
    from rich.console import Console

    from plug_jax.clue.archives import is_zip
    from plug_jax.clue.metrics import BOARDS, board_mean
    from plug_jax.clue.scoring import score_files

    scores = score_files(args.predictions, args.data, args.task)
    means = {version: board_mean(version, scores) for version in BOARDS}
    alone = len(args.predictions) == 1 and (args.task or not is_zip(args.predictions[0]))
    if args.json:
        tasks = {name: one.to_json() for name, one in scores.items()}
        boards = {version: one.to_json() for version, one in means.items()}
        ((name, only), *_) = tasks.items()
        found = {"task": name, **only} if alone else {"tasks": tasks, "boards": boards}
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return 0
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(_scores_table(scores))
    for one in means.values() if not alone else ():
        if one.mean is not None:
            missing = f", without {', '.join(one.missing)}" if one.missing else ""
            note = f" ({one.board.note})" if one.board.note else ""
            console.print(f"{one.board.name}: {one.mean:.3f}{missing}{note}")
    return 0


def _scores_table(scores: Mapping[str, Score]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("task")
    names = list(dict.fromkeys(name for one in scores.values() for name in one))
    for name in (*names, "without a prediction"):
        table.add_column(name, justify="right")
    for task, one in scores.items():
        figures = [f"{one[name]:.3f}" if name in one else "" for name in names]
        table.add_row(task, *figures, f"{len(one.missing):,}" if one.missing else "")
    return table


def _submit(args: argparse.Namespace) -> int:
    from plug_jax.cli.main import import_tensorflow

    check_output_file("--output", args.output, ZIP)
    import_tensorflow()
    from plug_jax.clue.submission import check_new, task_of_version, write_submission
    from plug_jax.finetuning.submissions import test_predictions

    check_new(args.output)  # before the predictions, which take long
    groups: dict[str, list[str]] = {}
    for run in finetuned_runs.load_runs(args):
        task = task_of_version(run.task.removeprefix("clue_"), args.version)
        groups.setdefault(task, []).append(run.path)
    if args.diagnostics:
        if "ocnli" not in groups:
            raise PlugError("--diagnostics needs an OCNLI run")
        groups["diagnostics"] = groups["ocnli"]
    predictions = {}
    for task, paths in groups.items():
        runs = [finetuned_runs.load_run(args, path, clue_task=task) for path in paths]
        predictions[task] = test_predictions(runs, args.method)
        print(f"{task}: {len(predictions[task]):,} predictions of {', '.join(paths)}")
    write_submission(predictions, args.data_dir, args.version, args.output)
    print(f"{args.output} has {len(predictions)} files; `plug-jax clue validate` finds no mistakes")
    return 0


def _validate(args: argparse.Namespace) -> int:
    from rich.console import Console

    from plug_jax.clue.submission import validate_submission

    found = validate_submission(args.zip, args.data_dir)
    if args.json:
        print(json.dumps(found.to_json(), ensure_ascii=False, indent=2))
        return 0 if found.is_valid else _MISTAKEN
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for mistake in found.mistakes:
        console.print(f"{'doubt' if mistake.is_doubt else 'mistake'}: {mistake}")
    for name, count in found.predictions.items():
        console.print(f"{name}: {count:,} predictions")
    console.print("no mistakes were found" if found.is_valid else "do not upload it as it is")
    return 0 if found.is_valid else _MISTAKEN


def _token_counter(path: str | None) -> CountTokens:
    """A function that counts tokens with a vocabulary, for many texts at a time."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    from plug_jax.data.vocabularies.vocabulary import default_vocabulary, load_vocabulary

    vocabulary = load_vocabulary(path) if path else default_vocabulary()

    def count(texts: Sequence[str]) -> list[int]:
        counts: list[int] = []
        for start in range(0, len(texts), _AT_ONCE):
            ids = vocabulary.encode_tf(tf.constant(texts[start : start + _AT_ONCE]))
            counts += ids.row_lengths().numpy().tolist()
        return counts

    return count


def _table(name: str, summaries: Mapping[str, SplitSummary]) -> Table:
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    table.add_column("split")
    for column in ("records", "usable", "tokens: min/median/p95/max", "cut"):
        table.add_column(column, justify="right")
    for split, one in summaries.items():
        lengths = "/".join(f"{value:g}" for value in one.token_lengths.values())
        figures = (f"{one.records:,}", f"{one.usable:,}", lengths)
        table.add_row(split, *figures, f"{one.cut:,} of > {one.max_length}")
    lines = []
    for split, one in summaries.items():
        for what, counts in (("dropped", one.dropped), ("labels", one.label_counts)):
            if counts:
                lines.append(f"{split}, {what}: {_counts(counts)}")
    table.caption, table.caption_justify = "\n".join(lines), "left"
    return table


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} ({count:,})" for name, count in counts.items()]
    more = len(shown) - _LABELS_SHOWN
    return ", ".join(shown[:_LABELS_SHOWN]) + (f" and {more} more" if more > 0 else "")
