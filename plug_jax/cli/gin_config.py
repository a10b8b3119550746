"""gin for the commands: files and overrides in, a configured object out, errors that name names."""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from plug_jax.errors import PlugError

T = TypeVar("T")

_OVERRIDE = "--gin."
_REQUIRED = "%gin.REQUIRED"
_COMMENT = re.compile(r"^\s*#.*$|[ \t]#[^'\"\n]*$", re.MULTILINE)
_STRING = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")
_IMPORT = re.compile(r"^(?:from|import) .+", re.MULTILINE)
_INCLUDE = re.compile(r"^include\s+['\"](.+)['\"]", re.MULTILINE)
# Macros that a kind of file sets, rather than the command line.
_SET_BY = {
    "PARTITIONER": "by a mesh/ file: --gin_file=mesh/cpu1.gin",
    "VOCAB_SIZE": "by a models/ file: --gin_file=models/tiny.gin",
    "DECODER_LAYERS": "by a models/ file: --gin_file=models/tiny.gin",
}
_DEFINED = re.compile(r"^([A-Z][A-Z0-9_]*)\s*=\s*(.*)", re.MULTILINE)
_USED = re.compile(r"%([A-Z][A-Z0-9_]*)\b")


def add_arguments(
    parser: argparse.ArgumentParser, *, default: str | None = None, required: bool = True
) -> None:
    """Add --gin_file (repeatable; later files override earlier ones)."""
    parser.add_argument(
        "--gin_file",
        action="append",  # to the default, if there is one
        required=required and default is None,
        default=None if default is None else [default],
        metavar="FILE",
        help="a gin file, repeatable, later ones override; looked up in the current directory, "
        "then among those that ship with plug-jax (runs/, models/, mesh/, demo/). --gin.NAME=VALUE "
        "sets a macro (--gin.TRAIN_STEPS=100) or a parameter (--gin.step.StepConfig.micro_batches=2"
        "); strings need quotes inside: \"'...'\"",
    )


def overrides(unknown: Iterable[str]) -> list[str]:
    """`--gin.NAME=VALUE` arguments as gin bindings; anything else is an error that names it."""
    bindings = []
    for argument in unknown:
        if not argument.startswith(_OVERRIDE) or "=" not in argument:
            raise PlugError(f"unknown argument {argument!r}; gin overrides are --gin.NAME=VALUE")
        name, value = argument.removeprefix(_OVERRIDE).split("=", 1)
        bindings.append(f"{name} = {value}")
    return bindings


def configured(build: Callable[..., T], *, files: Sequence[str], bindings: Sequence[str]) -> T:
    """Parse files and bindings, then call `build` (a class or function that they configure).

    Raises:
        PlugError: a file that is not found, a misspelt or missing macro, a binding of something
            that does not exist, a value that the object itself refuses.
    """
    import gin

    gin.clear_config()
    for path in search_paths():
        gin.add_config_file_search_path(str(path))
    _check_macros(files, bindings)
    # gin logs an error for each place where it looks for a file in vain before it finds it.
    logging.disable(logging.ERROR)
    try:
        # Names after @ are found by imports; other bindings are of what the files have registered.
        imports = _imports(files) if any("@" in binding for binding in bindings) else []
        gin.parse_config_files_and_bindings(list(files), [*imports, *bindings])
        return gin.get_configurable(build)()
    except PlugError as error:
        raise PlugError(str(error).split("\n  In call to configurable")[0]) from error
    except Exception as error:  # gin raises every kind, with the place in the file in its message
        raise PlugError(_explain(error)) from error
    finally:
        logging.disable(logging.NOTSET)


def macros_used(files: Sequence[str]) -> set[str]:
    """Names of the macros that gin files read. PlugError for a file that is not found."""
    return set(_USED.findall(_STRING.sub("''", "\n".join(_expanded(name) for name in files))))


def operative_config() -> str:
    """Every binding that was used, as a gin file; to be called after `configured`."""
    import gin

    return gin.operative_config_str()


def search_paths() -> list[Path]:
    """Where a relative gin file is looked up: the current directory, then our own files."""
    gin_configs = importlib.import_module("gin_configs")
    return [Path.cwd(), *(Path(directory) for directory in gin_configs.__path__)]


def _check_macros(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Catch misspelt macros, which gin itself would take for new ones, and those never set."""
    in_files = _STRING.sub("''", "\n".join(_expanded(name) for name in files))
    on_command_line = _STRING.sub("''", "\n".join(bindings))
    used = set(_USED.findall(f"{in_files}\n{on_command_line}"))
    in_files_values = dict(_DEFINED.findall(in_files))
    overridden = dict(_DEFINED.findall(on_command_line))
    for name in overridden:
        if name not in used | in_files_values.keys():
            raise PlugError(f"--gin.{name}: no gin file reads such a macro{_near(name, used)}")
    for name in sorted(in_files_values.keys() - used):
        if _near(name, used, cutoff=0.8):
            raise PlugError(f"macro {name} is set but nothing reads it{_near(name, used)}")
    values = in_files_values | overridden
    missing = [n for n in sorted(used) if values.get(n, _REQUIRED).startswith(_REQUIRED)]
    if missing:
        hints = [
            f"{name} ({_SET_BY[name]})" if name in _SET_BY else f"{name} (--gin.{name}=...)"
            for name in missing
        ]
        raise PlugError(f"required, but not set: {', '.join(hints)}")


def _imports(files: Sequence[str]) -> list[str]:
    """What the files import, for the command line to name: --gin.CLEANING="(@cleaning.X(),)"."""
    lines = dict.fromkeys(_IMPORT.findall("\n".join(_expanded(name) for name in files)))
    return sorted(lines, key=lambda line: "__gin__" not in line)  # has to be the first


def _expanded(name: str) -> str:
    """The text of a gin file with its includes in their places, without comments."""
    candidates = [Path(name)] if os.path.isabs(name) else [p / name for p in search_paths()]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        ours = search_paths()[-1]
        known = [str(p.relative_to(ours)) for p in ours.rglob("*.gin")]
        raise PlugError(f"no gin file {name!r}{_near(name, known)}")
    text = _COMMENT.sub("", path.read_text(encoding="utf-8"))
    return _INCLUDE.sub(lambda match: _expanded(match[1]), text)


def _near(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _explain(error: Exception) -> str:
    """gin's message on one line or two, without its notes on how to debug gin."""
    message = str(error).strip() or type(error).__name__
    return "gin: " + " ".join(line.strip() for line in message.splitlines() if line.strip())
