"""The option that names a user's own objectives."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from plug_jax.errors import PlugError
from plug_jax.named_modules import import_named

if TYPE_CHECKING:
    from plug_jax.objectives.objective import Objective


def add_arguments(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Adds --objective; `args.objective` is a list."""
    parser.add_argument(
        "--objective",
        action="append",
        default=[],
        metavar="MODULE.NAME",
        help=f"{purpose}, repeatable: a subclass of Objective, or an instance",
    )


def objectives_named(names: Sequence[str]) -> tuple[Objective, ...]:
    """The objectives of --objective. PlugError for a name that is not one."""
    return tuple(map(_objective, names))


def _objective(name: str) -> Objective:
    from plug_jax.objectives.objective import Objective

    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_named(module), attribute)
        found = found() if isinstance(found, type) else found
    except (PlugError, AttributeError, TypeError) as error:
        raise PlugError(f"--objective {name}: {error}") from error
    if not isinstance(found, Objective):
        raise PlugError(f"--objective {name} is {found!r}, which is not an Objective")
    return found
