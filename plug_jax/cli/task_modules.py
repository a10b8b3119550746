"""Modules that register tasks: the option that names them, and the short name of our own."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType

DEFAULT_MODULES = ("plug_jax.tasks.demo", "plug_jax.tasks.pretrain")
_SHORT = "tasks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --module; `args.module` is a list or None."""
    parser.add_argument(
        "--module",
        action="append",
        metavar="MODULE",
        help="Python module that registers the task, repeatable (default: "
        f"{' and '.join(DEFAULT_MODULES)})",
    )


def allow_short_name() -> None:
    """Let settings and gin files say `tasks` for `plug_jax.tasks`, unless that is taken."""
    if not any(isinstance(finder, _ShortName) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ShortName())


class _ShortName(MetaPathFinder, Loader):
    """Finds `tasks.x` as `plug_jax.tasks.x`: the same module, not a second copy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == _SHORT:
            found = PathFinder.find_spec(_SHORT)
            is_ours = found is None or _is_ours(found)
        else:
            is_ours = fullname.startswith(f"{_SHORT}.") and sys.modules.get(_SHORT) is _package()
        return spec_from_loader(fullname, self, is_package=True) if is_ours else None

    def exec_module(self, module: ModuleType) -> None:
        # What is in sys.modules afterwards is what is imported.
        sys.modules[module.__name__] = importlib.import_module(f"plug_jax.{module.__name__}")


def _package() -> ModuleType:
    return importlib.import_module(f"plug_jax.{_SHORT}")


def _is_ours(found: ModuleSpec) -> bool:
    """Whether it is the folder in our own checkout."""
    ours = {Path(directory).resolve() for directory in _package().__path__}
    return bool(ours & {Path(d).resolve() for d in found.submodule_search_locations or ()})
