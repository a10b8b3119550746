"""`plug-jax inspect`: what a seqio task feeds the model, decoded and counted."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from plug_jax.errors import PlugError

if TYPE_CHECKING:
    import seqio
    from rich.console import Console

    from plug_jax.data.vocabularies import PlugVocabulary

SUMMARY = "Show decoded examples of a seqio task or mixture, and what is masked in them."
EXAMPLE = """example:
  plug-jax inspect --task demo_structbert
  plug-jax inspect --task my_task --module my_package.my_tasks --split validation
  plug-jax inspect --list
"""

_DEFAULT_MODULES = ("tasks.demo", "tasks.pretrain")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax inspect`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", metavar="NAME", help="a registered task or mixture")
    what.add_argument("--list", action="store_true", help="list what is registered")
    add = parser.add_argument
    add(
        "--module",
        action="append",
        metavar="MODULE",
        help="Python module that registers the task, repeatable (default: "
        f"{' and '.join(_DEFAULT_MODULES)})",
    )
    add("--split", default="train", help="split to read (%(default)s)")
    add("--num_examples", type=int, default=3, metavar="N", help="examples to show (%(default)s)")
    add(
        "--rates_over",
        type=int,
        default=200,
        metavar="N",
        help="examples to count, those shown included (%(default)s)",
    )
    add("--seed", type=int, default=0, help="other masks and cuts (%(default)s)")
    add(
        "--feature_lengths",
        default="",
        metavar="LENGTHS",
        help="the most tokens: encoder=512,decoder=512, or by feature (default: the task decides)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the examples, then a table of rates."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from rich.console import Console

    from plug_jax.data.pipeline import import_tasks

    for module in args.module or _DEFAULT_MODULES:
        import_tasks(module)
    console = Console(highlight=False, markup=False, emoji=False)
    if args.list:
        for line in registered():
            console.print(line, soft_wrap=True)
    else:
        _inspect(args, console)
    return 0


def registered() -> list[str]:
    """A line for each registered task and mixture: its name, kind and stage."""
    import seqio

    kinds = {
        **dict.fromkeys(seqio.TaskRegistry.names(), "task"),
        **dict.fromkeys(seqio.MixtureRegistry.names(), "mixture"),
    }
    width = max(map(len, kinds), default=0)
    stages = {1: "stage 1 (StructBERT)", 2: "stage 2 (PALM)", None: "features of its own"}
    lines = []
    for name, kind in sorted(kinds.items()):
        stage = _stage(seqio.get_mixture_or_task(name).output_features)
        lines.append(f"{name:{width}}  {kind:7}  {stages[stage]}")
    return lines or ["no task is registered; name a module that registers one with --module"]


def sequence_lengths(text: str, features: Collection[str]) -> dict[str, int] | None:
    """The lengths of --feature_lengths by feature; None, which limits nothing, for none.

    >>> sequence_lengths("encoder=512", ["encoder_input_tokens", "decoder_target_tokens"])
    {'encoder_input_tokens': 512}
    """
    lengths: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        key, _, value = (word.strip() for word in part.partition("="))
        names = [name for name in features if key in (name, _side(name))]
        if not names:
            keys = sorted({_side(name) or name for name in features})
            raise PlugError(f"--feature_lengths has no {key!r} to limit, only {', '.join(keys)}")
        if not value.isdecimal() or int(value) < 1:
            raise PlugError(f"--feature_lengths: {part!r} should read {key}=512, or another length")
        lengths.update(dict.fromkeys(names, int(value)))
    return lengths or None


def _side(feature: str) -> str | None:
    """encoder or decoder for a feature of ours, None for others."""
    from plug_jax.data.features import PALM_FEATURES, STRUCTBERT_FEATURES, side_of

    return side_of(feature) if feature in {*PALM_FEATURES, *STRUCTBERT_FEATURES} else None


def _stage(features: Collection[str]) -> int | None:
    """The stage whose features these are: 1 (StructBERT), 2 (PALM) or None."""
    from plug_jax.data.features import PALM_FEATURES, STRUCTBERT_FEATURES

    if set(PALM_FEATURES) <= set(features):
        return 2
    return 1 if set(STRUCTBERT_FEATURES) <= set(features) else None


def _inspect(args: argparse.Namespace, console: Console) -> None:
    from plug_jax.cli.inspect_format import (
        Rates,
        legend,
        show_example,
        show_other_example,
        show_rows,
    )
    from plug_jax.data.drops import drop_counts, reset_counts

    for name, least in (("num_examples", 0), ("rates_over", 1)):
        if getattr(args, name) < least:
            raise PlugError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    provider = _find_task(args.task, args.split)
    features = provider.output_features
    vocabulary = _vocabulary_of(features)
    reset_counts()
    dataset = provider.get_dataset(
        sequence_length=sequence_lengths(args.feature_lengths, features),
        split=args.split,
        shuffle=False,
        seed=args.seed,
        num_epochs=1,
        trim_output_features=False,  # the lengths are the preprocessors' business: nothing is cut
    )
    if vocabulary is not None and args.num_examples:
        console.print(legend(shuffles="encoder_shuffled" in features))
    rates = Rates(vocabulary)
    number = 0
    examples = dataset.take(max(args.num_examples, args.rates_over)).as_numpy_iterator()
    for number, example in enumerate(examples, start=1):
        if number <= args.num_examples:
            title = f"example {number}"
            if vocabulary is None:
                console.print(show_other_example(example, features, title))
            else:
                console.print(show_example(example, vocabulary, title))
        rates.add(example)
    drops = [(f"dropped: {reason}", f"{n:,}") for reason, n in sorted(drop_counts().items())]
    if not number:
        raise PlugError(
            f"{args.task!r} gives no example in split {args.split!r}; "
            + (", ".join(map(" ".join, drops)) or "nothing was dropped: its source is empty")
        )
    title = f"{number:,} example{'s' * (number > 1)}"
    console.print(show_rows(title, [*rates.rows(), *drops]))


def _find_task(name: str, split: str) -> seqio.Task | seqio.Mixture:
    from plug_jax.data.pipeline import find_task

    try:
        provider = find_task(name)
    except PlugError as error:
        raise PlugError(
            f"{error} --list shows what there is; the demo's tasks are there once `plug-jax demo` "
            "has made its text."
        ) from error
    if split not in provider.splits:
        raise PlugError(f"{name!r} has no split {split!r}, only {', '.join(provider.splits)}")
    return provider


def _vocabulary_of(features: Mapping[str, seqio.Feature]) -> PlugVocabulary | None:
    """The vocabulary of a task of stage 1 or 2, None for any other task."""
    from plug_jax.data.vocabularies import PlugVocabulary

    if _stage(features) is None:
        return None
    vocabulary = features["encoder_input_tokens"].vocabulary
    return vocabulary if isinstance(vocabulary, PlugVocabulary) else None
