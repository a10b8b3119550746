"""Whether a checkpoint is what was written, found before anything else reads it.

A step is damaged when a file is missing, is not listed in its checksums or has other bytes, and
when what it says of itself is not to be believed. Steps of a version that wrote no checksums are
read as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Self

import jax
from etils import epath

from plug_jax.errors import PlugError
from plug_jax.training.checksums import (
    CHECKSUMS,
    COMMITTED,
    ForeignFileError,
    digest,
    files,
    in_threads,
    is_bucket,
    parse,
)
from plug_jax.training.declarations import describes_itself, find_false_declaration
from plug_jax.training.processes import of_all_processes

DAMAGED = ".damaged"  # after the step, in the name of what is set aside
_NEEDED = ("metadata/metadata", "params/_METADATA")  # of every step, whatever else it has
_OUT_OF_MEMORY = (MemoryError, jax.errors.JaxRuntimeError)


@dataclasses.dataclass(frozen=True)
class Damage:
    """The first thing that is wrong with a step."""

    file: str  # by its name within the step; "" for the step itself
    what: str  # said of the file: "is missing"
    denied: bool = False  # nothing is known to be wrong: it may not be read

    def of(self, step: epath.Path) -> str:
        """In words, with the whole path."""
        return f"{step / self.file if self.file else step} {self.what}"


class DamagedCheckpointError(PlugError):
    """A checkpoint that is not what was written."""

    def __init__(self, step: epath.Path, damage: Damage, remedy: str = "") -> None:
        super().__init__(f"damaged checkpoint: {damage.of(step)}{remedy}")
        self.step, self.damage = step, damage

    @classmethod
    def at(cls, step: epath.Path, damage: Damage) -> Self:
        """What a command that reads a step says: the file, and the step to name in its place."""
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
    """The first damage of a step, or of some items of it alone.

    Args:
        step: MODEL_DIR/checkpoints/<step>.
        items: such as "params"; None: all, and orbax's own files.
        contents: read every byte; else only look at what is there.
        share: (i, n) to read the bytes of the i-th of n parts of the files alone.
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
    """As `find_damage`, each process reading its part; the same on each. All have to call it."""
    share = (jax.process_index(), jax.process_count())
    mine = find_damage(step, items, contents=contents, share=share)
    found = of_all_processes(None if mine is None else dataclasses.asdict(mine))
    return next((Damage(**one) for one in found if one is not None), None)


def newest_good(directory: epath.Path, *, without: str) -> epath.Path | None:
    """The newest step of MODEL_DIR/checkpoints that is not damaged, but for the one named."""
    for step in reversed(steps_in(directory)):
        if str(step) != without and find_damage(directory / str(step)) is None:
            return directory / str(step)
    return None


def steps_in(directory: epath.Path) -> list[int]:
    """What has the name of a step in MODEL_DIR/checkpoints, in order, damaged or not.

    An object store has no directories to rename: there a step is one when orbax says that it has
    been committed.
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

    A run that goes on from an older step comes to write theirs again, and what it keeps of its
    newest steps should be good ones.

    Args:
        directory: MODEL_DIR/checkpoints.
        damaged: what is wrong with each.
        going_on: the step that the run goes on from.
    """
    if jax.process_index() == 0:
        for step, damage in damaged.items():
            path = directory / str(step)
            names = (f"{step}{DAMAGED}{n or ''}" for n in itertools.count())
            aside = next(directory / name for name in names if not (directory / name).exists())
            path.rename(aside)
            print(
                f"DAMAGED CHECKPOINT: {damage.of(path)}. GOING ON FROM STEP {going_on}; the "
                f"damaged one is now {aside}",
                file=sys.stderr,
            )
    if damaged:
        of_all_processes(None)  # none lists the directory before


@contextlib.contextmanager
def reading(step: epath.Path, item: str) -> Iterator[None]:
    """Whatever an item cannot be read for is a DamagedCheckpointError."""
    try:
        yield
    except (PlugError, *_OUT_OF_MEMORY):
        raise
    except Exception as error:  # of any class: orbax raises this very one around others
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
        return Damage("", "is no directory" if step.exists() else "is missing")

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
    # What the checksums say is no proof against who wrote them.
    for name in sorted(filter(describes_itself, there)):
        if what := find_false_declaration(step / name):
            return Damage(name, what)
    return None


def _differing(
    step: epath.Path, there: set[str], sums: Mapping[str, str], share: tuple[int, int]
) -> Damage | None:
    """The first file that is not as its checksum says; of the bytes, in one of many shares."""
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
        print(
            f"{directory} has checkpoints without {CHECKSUMS}, of an earlier version: they are "
            "read as they are, damaged or not",
            file=sys.stderr,
        )
