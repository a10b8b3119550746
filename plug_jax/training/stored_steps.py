"""Lists and removes the checkpoints of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from plug_jax.checkpoints.checksums import CHECKSUMS, ForeignFileError, files
from plug_jax.checkpoints.format import CHECKPOINTS, PlainPath
from plug_jax.checkpoints.integrity import DAMAGED, DamagedCheckpointError, find_damage, steps_in
from plug_jax.checkpoints.reading import best_step
from plug_jax.errors import PlugError
from plug_jax.training.model_dir import alone
from plug_jax.training.writers import read_metrics


@dataclasses.dataclass(frozen=True)
class StoredStep:
    """One stored checkpoint."""

    path: str
    name: str  # the step, or its new name if set aside: "300.damaged"
    state: str  # "whole", "damaged", "not verified" or "no checksums"
    damage: str | None  # a description
    size: int  # bytes
    loss: float | None  # from metrics.jsonl, the newest up to that step
    validation_loss: float | None
    best: bool  # whether commands given the MODEL_DIR read it

    def to_json(self) -> dict[str, Any]:
        """As JSON; the step is a number, or null if the name is not one."""
        fields = dataclasses.asdict(self)
        name = fields.pop("name")
        return {"step": int(name) if name.isdecimal() else None, **fields}


def stored_steps(path: str | os.PathLike[str], *, contents: bool) -> list[StoredStep]:
    """The steps of a MODEL_DIR in order, including those set aside; or the one step at `path`.

    `contents`: read every byte; otherwise only compare file names.

    Raises:
        PlugError: there is no such directory, or no checkpoint in it.
    """
    root = PlainPath.of(path)
    if root.parent.name == CHECKPOINTS and is_step(root.name):
        root, names = root.parent, [root.name]
    else:
        root = root / CHECKPOINTS
        steps = steps_in(root)
        aside = [p.name for p in root.iterdir() if is_step(p.name)] if root.is_dir() else []
        names = [*map(str, steps), *sorted(name for name in aside if not name.isdecimal())]
    names = [name for name in names if _is_there(root / name)]
    if not names:
        raise PlugError(
            f"no checkpoint in {os.fspath(path)}: give a MODEL_DIR that `plug-jax train` or "
            "`plug-jax convert` wrote, or MODEL_DIR/checkpoints/<step>"
        )
    try:
        best = best_step(root)
    except DamagedCheckpointError:
        best = None
    records = _records(root.parent)
    return [_stored(root / name, records, str(best), contents=contents) for name in names]


def _records(model_dir: epath.Path) -> Sequence[dict[str, Any]]:
    """The records of metrics.jsonl. If it is damaged, only a message: checkpoints may be good."""
    try:
        return read_metrics(model_dir)
    except (PlugError, OSError) as error:
        print(f"plug-jax: losses are not shown: {error}", file=sys.stderr)
        return []


def remove_steps(
    paths: Sequence[str | os.PathLike[str]], *, even_the_last: bool
) -> Iterator[tuple[str, int]]:
    """Remove steps of one or more runs; returns the path and size of each removed one.

    Raises:
        PlugError: one is not a step, or a run would lose its last good one; then nothing is
            removed. `even_the_last` allows the latter.
        ModelDirInUse: a run writes there.
    """
    steps = list(dict.fromkeys(PlainPath.of(path) for path in paths))
    for step in steps:
        if step.parent.name != CHECKPOINTS or not is_step(step.name) or not _is_there(step):
            raise PlugError(f"{step} is not a checkpoint: give MODEL_DIR/checkpoints/<step>")
    roots = list(dict.fromkeys(step.parent for step in steps))
    with contextlib.ExitStack() as stack:
        for root in roots:
            stack.enter_context(alone(root.parent))
        for root in roots if not even_the_last else ():
            _check_one_stays(root, {step.name for step in steps if step.parent == root})
        for step in steps:
            size = size_of(step)
            if step.is_dir() and not os.path.islink(step):
                step.rmtree()
            else:
                step.unlink()
            yield os.fspath(step), size


def is_step(name: str) -> bool:
    """Whether a name is that of a step, possibly set aside."""
    step = name.partition(DAMAGED)[0]
    return step.isascii() and step.isdecimal()


def _is_there(step: epath.Path) -> bool:
    """Whether a step exists; dangling links count."""
    return step.exists() or os.path.islink(step)


def size_of(step: epath.Path) -> int:
    """The size in bytes of a step, as far as it is readable."""
    try:
        return sum((step / name).stat().length for name in files(step))
    except (ForeignFileError, OSError):
        return 0


def _check_one_stays(root: epath.Path, going: set[str]) -> None:
    names = [str(step) for step in reversed(steps_in(root))]
    if any(name not in going and find_damage(root / name) is None for name in names):
        return
    for name in names:
        if name in going and find_damage(root / name) is None:
            raise PlugError(
                f"{root / name} is the only good checkpoint of {root.parent}; nothing is removed. "
                "Add --even_the_last to remove it anyway"
            )


def _stored(
    step: epath.Path, records: Sequence[dict[str, Any]], best: str, *, contents: bool
) -> StoredStep:
    damage = find_damage(step, contents=contents)
    if damage is not None:
        state = "damaged"
    elif not (step / CHECKSUMS).is_file():
        state = "no checksums"
    else:
        state = "whole" if contents else "not verified"
    number = int(step.name.partition(DAMAGED)[0])

    def newest(split: str) -> float | None:
        values = [r.get("loss") for r in records if r["split"] == split and r["step"] <= number]
        value = values[-1] if values else None
        return value if value is not None and math.isfinite(value) else None

    return StoredStep(
        path=os.fspath(step),
        name=step.name,
        state=state,
        damage=damage.of(step) if damage else None,
        size=size_of(step),
        loss=newest("train"),
        validation_loss=newest("validation"),
        best=step.name == best,
    )
