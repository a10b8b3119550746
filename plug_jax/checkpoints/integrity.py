"""Integrity checks of a checkpoint, made before anything else reads it.

A step is damaged if a file is missing, is not listed in its checksums or has other bytes, or if its
declarations are not plausible. Steps of a version that wrote no checksums are read unverified.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Self

import jax
from etils import epath

from plug_jax.checkpoints.checksums import (
    CHECKSUMS,
    COMMITTED,
    ForeignFileError,
    digest,
    files,
    in_threads,
    is_bucket,
    parse,
)
from plug_jax.checkpoints.declarations import describes_itself, find_false_declaration
from plug_jax.errors import PlugError
from plug_jax.hosts.processes import of_all_processes
from plug_jax.standard_error import say

DAMAGED = ".damaged"  # suffix of a step that is set aside
_NEEDED = ("metadata/metadata", "params/_METADATA")  # in every step
_OUT_OF_MEMORY = (MemoryError, jax.errors.JaxRuntimeError)


@dataclasses.dataclass(frozen=True)
class Damage:
    """The first thing that is wrong with a step."""

    file: str  # name within the step; "" for the step itself
    what: str  # predicate, such as "is missing"
    denied: bool = False  # not known to be damaged, but not readable by this user

    def of(self, step: epath.Path) -> str:
        """A description with the whole path."""
        return f"{step / self.file if self.file else step} {self.what}"


class DamagedCheckpointError(PlugError):
    """A checkpoint that differs from what was written."""

    def __init__(self, step: epath.Path, damage: Damage, remedy: str = "") -> None:
        super().__init__(f"damaged checkpoint: {damage.of(step)}{remedy}")
        self.step, self.damage = step, damage

    @classmethod
    def at(cls, step: epath.Path, damage: Damage) -> Self:
        """The error of a command that reads a step: the file, and the good step to use instead."""
        if damage.denied:
            return cls(step, damage, "; allow this user to read it")
        good = newest_good(step.parent, without=step.name)
        remedy = (
            f"; the newest good one is {good}: name that, or bring the file back from a copy"
            if good
            else "; there is no good one beside it: bring the file back from a copy"
        )
        return cls(step, damage, remedy)


def find_damage(
    step: epath.Path,
    items: Collection[str] | None = None,
    *,
    contents: bool = True,
    share: tuple[int, int] = (0, 1),
) -> Damage | None:
    """The first damage of a step, or of only some of its items.

    Args:
        step: MODEL_DIR/checkpoints/<step>.
        items: such as "params"; None: all, including orbax's own files.
        contents: read every byte; else only check which files exist.
        share: (i, n) to read only the i-th of n parts of the files.
    """
    try:
        return _find(step, items, contents, share)
    except ForeignFileError as error:
        name, kind = error.args
        return Damage(name, f"is {kind}, which no checkpoint has")
    except OSError as error:
        name = str(error.filename or "").removeprefix(f"{step}").strip("/")
        what = f"cannot be read: {error.strerror or error}"
        return Damage(name, what, denied=isinstance(error, PermissionError))


def find_damage_together(
    step: epath.Path, items: Collection[str] | None = None, *, contents: bool = True
) -> Damage | None:
    """Like `find_damage`, shared between processes; all must call it, and get the same result."""
    share = (jax.process_index(), jax.process_count())
    mine = find_damage(step, items, contents=contents, share=share)
    found = of_all_processes(None if mine is None else dataclasses.asdict(mine))
    return next((Damage(**one) for one in found if one is not None), None)


def newest_good(directory: epath.Path, *, without: str) -> epath.Path | None:
    """The newest undamaged step of MODEL_DIR/checkpoints, other than the one named."""
    for step in reversed(steps_in(directory)):
        if str(step) != without and find_damage(directory / str(step)) is None:
            return directory / str(step)
    return None


def steps_in(directory: epath.Path) -> list[int]:
    """The step numbers in MODEL_DIR/checkpoints in order, damaged or not.

    An object store cannot rename directories: there a step counts if orbax says that it is
    committed.
    """
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir()]
    steps = [name for name in names if name.isdecimal() and str(int(name)) == name]
    if is_bucket(directory):
        committed = in_threads(lambda name: (directory / name / COMMITTED).exists(), steps)
        steps = [name for name in steps if committed[name]]
    return sorted(map(int, steps))


def set_aside(directory: epath.Path, damaged: Mapping[int, Damage], *, going_on: int) -> None:
    """Rename damaged steps to names that orbax leaves alone, and say so. All processes call it.

    A run that resumes from an older step will write these steps again, and the newest steps that it
    keeps should be good ones.

    Args:
        directory: MODEL_DIR/checkpoints.
        damaged: what is wrong with each.
        going_on: the step from which the run resumes.
    """
    if jax.process_index() == 0:
        for step, damage in damaged.items():
            path = directory / str(step)
            names = (f"{step}{DAMAGED}{n or ''}" for n in itertools.count())
            aside = next(directory / name for name in names if not (directory / name).exists())
            path.rename(aside)
            say(
                f"DAMAGED CHECKPOINT: {damage.of(path)}. GOING ON FROM STEP {going_on}; the "
                f"damaged one is now {aside}"
            )
    if damaged:
        of_all_processes(None)  # no process lists the directory earlier


@contextlib.contextmanager
def reading(step: epath.Path, item: str) -> Iterator[None]:
    """Within, any error of reading an item becomes a DamagedCheckpointError."""
    try:
        yield
    except (PlugError, *_OUT_OF_MEMORY):
        raise
    except Exception as error:  # any class: orbax wraps others in this one
        cause = error.__cause__ or error
        if isinstance(cause, _OUT_OF_MEMORY):
            raise
        first = next(iter(str(cause).splitlines()), "")
        damage = Damage(item, f"cannot be read ({type(cause).__name__}: {first[:200]})")
        raise DamagedCheckpointError.at(step, damage) from error


def _find(
    step: epath.Path, items: Collection[str] | None, contents: bool, share: tuple[int, int]
) -> Damage | None:
    if not step.is_dir():
        return Damage("", "is not a directory" if step.exists() else "is missing")

    def within(name: str) -> bool:
        return items is None or name.partition("/")[0] in items

    there = {name for name in files(step) if within(name)}
    for name in filter(within, _NEEDED):
        if name not in there:
            return Damage(name, "is missing")
    if (step / CHECKSUMS).is_file():
        try:
            sums = parse((step / CHECKSUMS).read_text(encoding="utf-8"))
        except ValueError:
            return Damage(CHECKSUMS, "is not what was written")
        sums = {name: sha for name, sha in sums.items() if within(name)}
        if found := _differing(step, there, sums, share if contents else (0, 0)):
            return found
    elif contents:
        _say_unchecked(str(step.parent))
    # Checksums prove nothing against whoever wrote them.
    for name in sorted(filter(describes_itself, there)):
        if what := find_false_declaration(step / name):
            return Damage(name, what)
    return None


def _differing(
    step: epath.Path, there: set[str], sums: Mapping[str, str], share: tuple[int, int]
) -> Damage | None:
    """The first file that does not match its checksum; bytes are read for one share only."""
    if missing := sorted(sums.keys() - there):
        return Damage(missing[0], "is missing")
    if added := sorted(there - sums.keys()):
        return Damage(added[0], f"is not in {CHECKSUMS}")
    index, count = share
    mine = sorted(sums)[index::count] if count else []
    found = in_threads(lambda name: digest(step / name), mine)
    for name in mine:
        if found[name] != sums[name]:
            empty = (step / name).stat().length == 0
            return Damage(name, "is empty" if empty else "has other bytes than were written")
    return None


@functools.cache
def _say_unchecked(directory: str) -> None:
    """Once for each MODEL_DIR."""
    if jax.process_index() == 0:
        say(
            f"{directory} has checkpoints without {CHECKSUMS}, of an earlier version: they are "
            "read as they are, damaged or not"
        )
