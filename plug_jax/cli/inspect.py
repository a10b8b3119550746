"""`plug-jax inspect`: what a seqio task feeds the model, decoded, counted and compared."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plug_jax.cli import objective_names, task_modules
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    import seqio
    from rich.console import Console

    from plug_jax.data.vocabularies import PlugVocabulary
    from plug_jax.evaluation.decoded_examples import DecodedExample, Example
    from plug_jax.evaluation.task_statistics import Subject, TaskStatistics
    from plug_jax.objectives.composition import Objectives

SUMMARY = "Show what a seqio task or mixture feeds the model, decoded and counted."
EXAMPLE = """examples:
  plug-jax inspect --task demo_structbert
  plug-jax inspect --task my_task --module my_package.my_tasks --split validation
  plug-jax inspect --task my_task --module my_package.my_tasks --report my_task.html
  plug-jax inspect --input 'corpus/*.txt' --stage 2 --format paragraphs
  plug-jax inspect --list
"""

_SHOWN_IN_TERMINAL, _SHOWN_IN_REPORT = 3, 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax inspect`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", metavar="NAME", help="a registered task or mixture")
    what.add_argument("--input", nargs="+", metavar="FILE", help="files of your own; needs --stage")
    what.add_argument("--list", action="store_true", help="list what is registered")
    own = parser.add_argument_group("with --input")
    own.add_argument("--stage", type=int, choices=(1, 2), help="1, StructBERT, or 2, PALM")
    own.add_argument(
        "--vocabulary",
        metavar="PATH",
        help="sentencepiece.model, vocab.txt or a directory (default: the one that comes along)",
    )
    own.add_argument(
        "--format",
        choices=("lines", "paragraphs", "jsonl", "tokens"),
        help="a document a line, between blank lines, or a JSON object a line (default: lines); or "
        "TFRecords of tokens, such as those of a cache",
    )
    task_modules.add_arguments(parser)
    add = parser.add_argument
    objective_names.add_arguments(
        parser,
        "an objective of your own that the task is for (default: those of plug-jax whose features "
        "the task has)",
    )
    add("--split", default="train", help="split to read (%(default)s)")
    add(
        "--num_examples",
        type=int,
        metavar="N",
        help=f"examples to show ({_SHOWN_IN_TERMINAL}, and {_SHOWN_IN_REPORT} in a report)",
    )
    add(
        "--rates_over",
        type=int,
        default=1000,
        metavar="N",
        help="examples to count, those shown included (%(default)s)",
    )
    add("--seed", type=int, default=0, help="other masks and cuts (%(default)s)")
    add(
        "--feature_lengths",
        default="",
        metavar="LENGTHS",
        help="tokens of a row, which bound an example too: encoder=512,decoder=512, or by feature "
        "(default: the task decides, and rows have room for two of its longest examples)",
    )
    add("--report", metavar="FILE", help="write a page (HTML) with figures and more examples")
    add("--json", action="store_true", help="print the statistics as JSON and nothing else")


def run(args: argparse.Namespace) -> int:
    """Print the examples and the statistics, or list the tasks."""
    _check(args)
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from rich.console import Console

    from plug_jax.data.pipeline import import_tasks

    console = Console(highlight=False, markup=False, emoji=False, quiet=args.json)
    if args.input:
        _inspect(_own_task(args), args, console)
        return 0
    for module in args.module or task_modules.DEFAULT_MODULES:
        import_tasks(module)
    if args.list:
        for line in registered():
            console.print(line, soft_wrap=True)
    else:
        _inspect(_find_task(args.task), args, console)
    return 0


def registered() -> list[str]:
    """A line for each registered task and mixture: its name, its kind, and what it is for."""
    import seqio

    from plug_jax.objectives.composition import objectives_for, stage_of
    from plug_jax.objectives.stages import KNOWN

    kinds = {
        **dict.fromkeys(seqio.TaskRegistry.names(), "task"),
        **dict.fromkeys(seqio.MixtureRegistry.names(), "mixture"),
    }
    width = max(map(len, kinds), default=0)
    stages = {1: "stage 1 (StructBERT)", 2: "stage 2 (PALM)"}
    lines = []
    for name, kind in sorted(kinds.items()):
        found = objectives_for(seqio.get_mixture_or_task(name).output_features, KNOWN)
        names = ", ".join(type(one).__name__ for one in found) or "features of its own"
        lines.append(f"{name:{width}}  {kind:7}  {stages.get(stage_of(found) or 0, names)}")
    return lines or ["no task is registered; name a module that registers one with --module"]


def sequence_lengths(
    text: str, features: Collection[str], objectives: Objectives = ()
) -> dict[str, int] | None:
    """The lengths of --feature_lengths by feature; None, which limits nothing, for none.

    Those of the objectives can be named by their side too.

    >>> sequence_lengths("inputs=512", ["inputs", "targets"])
    {'inputs': 512}
    """
    sides = {feature.name: feature.side for one in objectives for feature in one.features}
    lengths: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        key, _, value = (word.strip() for word in part.partition("="))
        names = [name for name in features if key in (name, sides.get(name))]
        if not names:
            keys = sorted({sides.get(name, name) for name in features})
            raise PlugError(f"--feature_lengths has no {key!r} to limit, only {', '.join(keys)}")
        if not value.isdecimal() or int(value) < 1:
            raise PlugError(f"--feature_lengths: {part!r} should read {key}=512, or another length")
        lengths.update(dict.fromkeys(names, int(value)))
    return lengths or None


def _objectives(names: Sequence[str], provider: seqio.Task | seqio.Mixture) -> Objectives:
    """Those named, all of which the task must serve; and the known ones that it serves.

    A task over records knows its own.
    """
    from plug_jax.downstream.record_task import record_tasks
    from plug_jax.objectives.composition import objectives_for
    from plug_jax.objectives.stages import KNOWN

    features = provider.output_features
    named = objective_names.objectives_named(names)
    for one in named:
        if missing := sorted({feature.name for feature in one.features} - set(features)):
            raise PlugError(
                f"the task lacks {', '.join(missing)}, which the objective "
                f"{type(one).__name__} needs; it has {', '.join(sorted(features))}"
            )
    own = [task.format.make_objective() for task in record_tasks(provider)[:1]]
    return objectives_for(features, [*named, *own, *KNOWN])


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
    for name in ("stage", "vocabulary", "format"):
        if getattr(args, name) is not None and not args.input:
            raise PlugError(f"--{name} goes with --input; a registered task has its own")
    for name in ("report", "json"):
        if args.list and getattr(args, name):
            raise PlugError(f"--{name} needs --task or --input, not --list")
    if args.report and not Path(args.report).absolute().parent.is_dir():
        raise PlugError(f"--report: there is no directory {Path(args.report).absolute().parent}")


def _inspect(
    provider: seqio.Task | seqio.Mixture, args: argparse.Namespace, console: Console
) -> None:
    import seqio

    from plug_jax.cli.inspect_format import legend, show_example, show_statistics
    from plug_jax.data.caching.files import check_token_files
    from plug_jax.data.drops import reset_counts
    from plug_jax.evaluation.decoded_examples import (
        decode_example,
        describe_example,
        without_padding,
    )
    from plug_jax.evaluation.task_counting import count_examples
    from plug_jax.evaluation.task_report import write_report
    from plug_jax.evaluation.task_settings import TaskSettings

    if args.split not in provider.splits:
        splits = ", ".join(provider.splits)
        raise PlugError(f"{provider.name!r} has no split {args.split!r}, only {splits}")
    for task in seqio.get_subtasks(provider):
        check_token_files(task, args.split)
    features = provider.output_features
    objectives = _objectives(args.objective, provider)
    vocabulary = _vocabulary_of(features) if objectives else None
    lengths = sequence_lengths(args.feature_lengths, features, objectives if vocabulary else ())
    in_terminal = _SHOWN_IN_TERMINAL if args.num_examples is None else args.num_examples
    in_report = _SHOWN_IN_REPORT if args.num_examples is None else args.num_examples
    decoded: list[DecodedExample] = []

    def shown(examples: Iterable[Example]) -> Iterator[Example]:
        for number, example in enumerate(examples, start=1):
            if number <= max(in_terminal, in_report if args.report else 0):
                decoded.append(
                    describe_example(example, features)
                    if vocabulary is None
                    else decode_example(example, objectives, vocabulary)
                )
            if number <= in_terminal:
                console.print(show_example(decoded[-1], f"example {number}"))
            yield example

    reset_counts()
    dataset = provider.get_dataset(
        sequence_length=lengths,
        split=args.split,
        shuffle=False,
        seed=args.seed,
        num_epochs=1,
        trim_output_features=False,  # the lengths are the preprocessors' business: nothing is cut
    )
    fates = {fate for one in objectives for fate in one.fates}
    if vocabulary is not None and in_terminal and fates:
        console.print(legend(fates))
    number = max(in_terminal, args.rates_over)
    statistics = count_examples(
        shown(map(without_padding, dataset.take(number).as_numpy_iterator())),
        objectives,
        vocabulary,
        TaskSettings.of(provider, args.split),
        row_lengths=_row_lengths(lengths or {}, objectives),
        bounds=lengths,
    )
    if not statistics.examples:
        raise _no_examples(provider.name, args.split, statistics)
    console.print(show_statistics(statistics))
    subject = _subject(provider.name, args, vocabulary)
    if args.report:
        write_report(Path(args.report), subject, statistics, decoded[:in_report])
        console.print(f"Wrote {args.report}", soft_wrap=True)
    if args.json:
        print(json.dumps({**dataclasses.asdict(subject), **statistics.to_json()}, indent=2))


def _row_lengths(lengths: Mapping[str, int], objectives: Objectives) -> dict[str, int]:
    """The length of each side whose features have one."""
    features = {feature.name: feature for one in objectives for feature in one.features}
    return {features[name].side: length for name, length in lengths.items() if name in features}


def _subject(name: str, args: argparse.Namespace, vocabulary: PlugVocabulary | None) -> Subject:
    from plug_jax.evaluation.task_statistics import Subject

    return Subject(
        task=name,
        split=args.split,
        seed=args.seed,
        vocabulary="" if vocabulary is None else repr(vocabulary),
        feature_lengths=args.feature_lengths,
        made=datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
    )


def _no_examples(name: str, split: str, statistics: TaskStatistics) -> PlugError:
    drops = ", ".join(f"dropped: {reason} {n:,}" for reason, n in sorted(statistics.drops.items()))
    return PlugError(
        f"{name!r} gives no example in split {split!r}; "
        + (drops or "nothing was dropped: its source is empty")
    )


def _find_task(name: str) -> seqio.Task | seqio.Mixture:
    from plug_jax.data.pipeline import find_task

    try:
        return find_task(name)
    except PlugError as error:
        raise PlugError(
            f"{error} --list shows what there is; the demo's tasks are there once `plug-jax demo` "
            "has made its text."
        ) from error


def _own_task(args: argparse.Namespace) -> seqio.Task:
    """An unregistered task over the files of --input."""
    from plug_jax.data.sources import TextSource
    from plug_jax.data.token_source import TokenSource
    from plug_jax.data.vocabularies import default_vocabulary, load_vocabulary

    pretrain = importlib.import_module("plug_jax.tasks.pretrain")
    vocabulary = load_vocabulary(args.vocabulary) if args.vocabulary else default_vocabulary()
    source = (
        TokenSource(train=args.input)
        if args.format == "tokens"
        else TextSource(train=args.input, file_format=args.format or "lines")
    )
    make = pretrain.structbert_task if args.stage == 1 else pretrain.palm_task
    return make(f"stage{args.stage}_of_input", source, vocabulary)


def _vocabulary_of(features: Mapping[str, seqio.Feature]) -> PlugVocabulary | None:
    """The vocabulary of a task's encoder, None for one that is not ours."""
    from plug_jax.data.vocabularies import PlugVocabulary

    vocabulary = features["encoder_input_tokens"].vocabulary
    return vocabulary if isinstance(vocabulary, PlugVocabulary) else None
