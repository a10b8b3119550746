"""`plug-jax inspect`: what a seqio task feeds the model, decoded, counted and compared."""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from plug_jax.cli import objective_names, task_modules, text_files
from plug_jax.errors import PlugError
from plug_jax.file_names import HTML, check_output_file

if TYPE_CHECKING:
    import seqio

SUMMARY = "Show what a seqio task or mixture feeds the model: decoded examples and statistics."
EXAMPLE = """examples:
  plug-jax inspect --task demo_structbert
  plug-jax inspect --task my_task --module my_package.my_tasks --split validation
  plug-jax inspect --task my_task --module my_package.my_tasks --report my_task.html
  plug-jax inspect --input 'corpus/*.txt' --stage 2 --format paragraphs
  plug-jax inspect --list
"""

_SHOWN = 3, 20  # examples in the terminal and in a report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax inspect`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", metavar="NAME", help="a registered task or mixture")
    what.add_argument("--input", nargs="+", metavar="FILE", help="your own files; needs --stage")
    what.add_argument("--list", action="store_true", help="list the registered tasks and mixtures")
    own = parser.add_argument_group("with --input")
    own.add_argument("--stage", type=int, choices=(1, 2), help="1, StructBERT, or 2, PALM")
    own.add_argument(
        "--vocabulary",
        metavar="PATH",
        help="sentencepiece.model, vocab.txt or a directory (default: the one that ships with "
        "plug-jax)",
    )
    text_files.add_arguments(own, tokens=True)
    task_modules.add_arguments(parser)
    add, number = parser.add_argument, functools.partial(parser.add_argument, type=int, metavar="N")
    objective_names.add_arguments(
        parser,
        "a custom objective that the task is for (default: those of plug-jax whose features the "
        "task has)",
    )
    add("--split", default="train", help="split to read (%(default)s)")
    number("--num_examples", help="examples to show ({}, and {} in a report)".format(*_SHOWN))
    number(
        "--rates_over", default=1000, help="examples to count, those shown included (%(default)s)"
    )
    add("--seed", type=int, default=0, help="seed of the masks and cuts (%(default)s)")
    add(
        "--feature_lengths",
        default="",
        metavar="LENGTHS",
        help="tokens per row, which also limits examples: encoder=512,decoder=512, or by feature "
        "(default: the task decides, and a row holds two of its longest examples)",
    )
    add("--report", metavar="FILE", help="write a page (HTML) with figures and more examples")
    add("--json", action="store_true", help="print the statistics as JSON and nothing else")


def run(args: argparse.Namespace) -> int:
    """Print the examples and the statistics, or list the tasks."""
    _check(args)
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.data.pipeline.pipeline import import_tasks
    from plug_jax.task_reports.inspection import registered

    if args.input:
        _inspect(_own_task(args), args)
        return 0
    for module in args.module or task_modules.DEFAULT_MODULES:
        import_tasks(module)
    if args.list:
        print("\n".join(registered()))
    else:
        _inspect(_find_task(args.task), args)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises PlugError for options that do not go together, before anything slow."""
    for name, least in (("num_examples", 0), ("rates_over", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise PlugError(f"--{name} must be at least {least}, not {value}")
    if args.input and args.stage is None:
        raise PlugError("--input needs --stage 1 (StructBERT) or --stage 2 (PALM)")
    if args.input and args.module:
        raise PlugError("--module registers tasks, which --input does not use; leave one out")
    for name in ("stage", "vocabulary", "format", "text_key"):
        if getattr(args, name) is not None and not args.input:
            raise PlugError(f"--{name} goes with --input; a registered task has its own")
    for name in ("report", "json"):
        if args.list and getattr(args, name):
            raise PlugError(f"--{name} needs --task or --input, not --list")
    if args.report:
        directory = Path(args.report).absolute().parent
        if not directory.is_dir():
            raise PlugError(f"--report: there is no directory {directory}")
        check_output_file("--report", args.report, HTML)


def _inspect(provider: seqio.Task | seqio.Mixture, args: argparse.Namespace) -> None:
    from rich.console import Console

    from plug_jax.task_reports import page, terminal
    from plug_jax.task_reports.inspection import Inspected
    from plug_jax.task_reports.statistics import Subject

    named = objective_names.objectives_named(args.objective)
    inspected = Inspected(provider, args.split, args.seed, args.feature_lengths, named)
    in_terminal, in_report = _SHOWN if args.num_examples is None else [args.num_examples] * 2
    examples = inspected.examples(max(in_terminal, args.rates_over))
    first = list(itertools.islice(examples, in_report if args.report else in_terminal))
    decoded = [inspected.decode(example) for example in first]
    console = Console(highlight=False, markup=False, emoji=False, quiet=args.json)
    fates = {fate for one in inspected.objectives for fate in one.fates}
    if decoded and fates:
        console.print(terminal.legend(fates))
    for number, example in enumerate(decoded[:in_terminal], start=1):
        console.print(terminal.show_example(example, f"example {number}"))
    statistics = inspected.count(itertools.chain(first, examples))
    console.print(terminal.show_statistics(statistics))
    made = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    pieces = repr(inspected.vocabulary) if inspected.vocabulary else ""
    subject = Subject(provider.name, args.split, args.seed, pieces, args.feature_lengths, made)
    if args.report:
        page.write_report(Path(args.report), subject, statistics, decoded)
        console.print(f"Wrote {args.report}", soft_wrap=True)
    if args.json:
        print(json.dumps({**vars(subject), **statistics.to_json()}, indent=2))


def _find_task(name: str) -> seqio.Task | seqio.Mixture:
    from plug_jax.data.pipeline.pipeline import find_task

    try:
        return find_task(name)
    except PlugError as error:
        raise PlugError(
            f"{error} --list shows what there is; the demo's tasks are there once `plug-jax demo` "
            "has made its text."
        ) from error


def _own_task(args: argparse.Namespace) -> seqio.Task:
    """An unregistered task over the files of --input."""
    from plug_jax.data.vocabularies.vocabulary import default_vocabulary, load_vocabulary
    from plug_jax.tasks.pretrain import palm_task, structbert_task

    vocabulary = load_vocabulary(args.vocabulary) if args.vocabulary else default_vocabulary()
    source = text_files.source_of(args, args.input)
    make = structbert_task if args.stage == 1 else palm_task
    return make(f"stage{args.stage}_of_input", source, vocabulary)
