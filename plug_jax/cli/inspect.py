"""`plug-jax inspect`: what a seqio task feeds the model, decoded and counted."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from plug_jax.errors import PlugError

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

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
        help="the most tokens, as encoder=512,decoder=512 or by feature (default: as the task says)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the examples, then a table of rates."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from rich.console import Console

    import_modules(args.module or _DEFAULT_MODULES)
    console = Console(highlight=False, markup=False, emoji=False)
    if args.list:
        for line in registered():
            console.print(line, soft_wrap=True)
    else:
        _inspect(args, console)
    return 0


def import_modules(names: Iterable[str]) -> None:
    """Import the modules that register tasks; PlugError for one that does not exist."""
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, but something that it imports is not
            raise PlugError(
                f"no module {name!r}: check --module, and that PYTHONPATH leads to it"
            ) from error


def registered() -> list[str]:
    """A line for each registered task and mixture: its name, kind and stage."""
    import seqio

    kinds = {
        **dict.fromkeys(seqio.TaskRegistry.names(), "task"),
        **dict.fromkeys(seqio.MixtureRegistry.names(), "mixture"),
    }
    width = max(map(len, kinds), default=0)
    lines = [
        f"{name:{width}}  {kind:7}  "
        + _stage(seqio.get_mixture_or_task(name).output_features, "features of its own")
        for name, kind in sorted(kinds.items())
    ]
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


def _stage(features: Collection[str], otherwise: str) -> str:
    from plug_jax.data.features import PALM_FEATURES, STRUCTBERT_FEATURES

    if set(PALM_FEATURES) <= set(features):
        return "stage 2 (PALM)"
    return "stage 1 (StructBERT)" if set(STRUCTBERT_FEATURES) <= set(features) else otherwise
