"""gin for the commands: files and overrides in, a configured object out, with clear errors."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import plug_jax
from plug_jax.errors import PlugError, shown
from plug_jax.field_types import FieldTypeError

if TYPE_CHECKING:
    from gin.config_parser import ImportStatement

    from plug_jax.cli.gin_statements import Piece

T = TypeVar("T")

# Macros of runs/ files that a train step does not depend on, with the values set by commands that
# build the step without training.
STEP_ALONE = {
    "MODEL_DIR": "'none'",
    "TRAIN_STEPS": "1000000",
    "EPOCHS": "None",
    "INITIAL_CHECKPOINT": "None",
    "EVAL_DATA": "None",
    "PROFILE_STEPS": "None",
    "COMPILATION_CACHE_DIR": "None",
}

_OVERRIDE = "--gin."
# Settings that come from a kind of file rather than the command line.
_SET_BY = {
    "PlugConfig": "by a models/ file: --gin_file=models/tiny.gin",
    "OBJECTIVES": "by an objectives/ file: --gin_file=objectives/palm.gin",
    "PARTITIONER": "by a mesh/ file: --gin_file=mesh/cpu1.gin",
    "VOCAB_SIZE": "by a models/ file: --gin_file=models/tiny.gin",
    "DECODER_LAYERS": "by a models/ file: --gin_file=models/tiny.gin",
}


def add_arguments(
    parser: argparse.ArgumentParser, *, default: str | None = None, required: bool = True
) -> None:
    """Add --gin_file (repeatable; later files override earlier ones)."""
    parser.add_argument(
        "--gin_file",
        type=os.path.expanduser,  # a shell leaves ~ alone after =
        action="append",  # after the default, if there is one
        required=required and default is None,
        default=None if default is None else [default],
        metavar="FILE",
        help="a gin file, repeatable, later ones override; searched in the current directory, "
        "then among those that ship with plug-jax (runs/, objectives/, models/, mesh/, demo/). "
        "--gin.NAME=VALUE sets a macro (--gin.TRAIN_STEPS=100) or a parameter "
        "(--gin.step.StepConfig.micro_batches=2); strings need quotes inside: \"'...'\"",
    )


def overrides(unknown: Iterable[str]) -> list[str]:
    """`--gin.NAME=VALUE` arguments as gin bindings; anything else is an error that names it."""
    bindings = []
    for argument in unknown:
        if not argument.startswith(_OVERRIDE) or "=" not in argument:
            raise PlugError(
                f"unknown argument {shown(argument)}; gin overrides are --gin.NAME=VALUE"
            )
        name, value = argument.removeprefix(_OVERRIDE).split("=", 1)
        bindings.append(f"{name} = {value}")
    return bindings


def configured(
    build: Callable[..., T],
    *,
    files: Sequence[str],
    bindings: Sequence[str],
    replacing: Mapping[str, str] | None = None,
    run: str = "this run",
) -> T:
    """Parse files and bindings, then call `build` (a class or function that they configure).

    Args:
        build: makes the result.
        files: gin files, found by `search_paths`.
        bindings: `NAME = VALUE` from the command line, applied after the files.
        replacing: values of macros that the command itself overrides.
        run: name of the run in messages about settings that nothing reads.

    Raises:
        PlugError: a file that is not found or cannot be read, an unknown name, a user's setting
            that nothing reads, a required macro that is not set, a value that the object refuses.
    """
    import gin

    from plug_jax.cli.gin_reading import Settings
    from plug_jax.cli.gin_statements import read_bindings

    pieces, imports = _read(files, bindings)
    own = [f"{macro} = {value}" for macro, value in (replacing or {}).items()]
    pieces.append(read_bindings(own, imports, rank=2, ours=True))
    settings: Settings | None = None
    gin.clear_config()
    try:
        settings = Settings([s for piece in pieces for s in piece.statements], build)
        settings.check(_SET_BY, run)
        for piece in pieces:
            gin.parse_config(piece.stream())
        return gin.get_configurable(build)()
    except FieldTypeError as error:
        macros = settings.macros_behind(error.owner, error.fields) if settings else ()
        hint = f" (set by {', '.join(macros)})" if macros else ""
        raise PlugError(_without_calls(error) + hint) from error
    except PlugError as error:
        raise PlugError(_without_calls(error)) from error
    except Exception as error:  # gin raises any class, with the position in its message
        raise PlugError(_explain(error)) from error


def macro(name: str, *, files: Sequence[str], bindings: Sequence[str]) -> Any:
    """The value of a macro, following references to others; None if that is not a literal.

    Raises:
        PlugError: a file that is not found or cannot be read.
    """
    from plug_jax.cli.gin_statements import MACRO, Reference

    pieces, _ = _read(files, bindings)
    statements = [s for piece in pieces for s in piece.statements if s.selector == MACRO]
    values = {statement.setting: statement.value for statement in statements}
    value = values.pop(name, None)
    while isinstance(value, Reference) and value.name == MACRO:
        value = values.pop("/".join(value.scopes), None)
    return None if isinstance(value, Reference) else value


def operative_config() -> str:
    """All bindings in use, as a gin file; call it after `configured`."""
    import gin

    return gin.operative_config_str()


def search_paths() -> list[Path]:
    """Where relative gin files are looked up: the current directory, then our own files."""
    package = Path(plug_jax.__file__).parent
    # Inside the package in a wheel, next to it in a checkout.
    ours = (directory / "gin_configs" for directory in (package, package.parent))
    return [Path.cwd(), next(directory for directory in ours if directory.is_dir())]


def _read(
    files: Sequence[str], bindings: Sequence[str]
) -> tuple[list[Piece], dict[str, ImportStatement]]:
    """The statements of files and then bindings, and the files' imports."""
    from plug_jax.cli.gin_statements import read_bindings, read_files

    pieces = read_files(files, search_paths())
    imports = {name: s for piece in pieces for name, s in piece.origin.imports.items()}
    return [*pieces, read_bindings(bindings, imports, rank=1)], imports


def _without_calls(error: PlugError) -> str:
    """The message without gin's additions."""
    return str(error).split("\n  In call to configurable")[0]


def _explain(error: Exception) -> str:
    """gin's message in one or two lines, without its debugging notes."""
    message = str(error).strip() or type(error).__name__
    return "gin: " + " ".join(line.strip() for line in message.splitlines() if line.strip())
