"""Checkpoints: MODEL_DIR/checkpoints/<step>/, written by orbax, each self-contained.

A step has the items `params` and `optimizer` (arrays), `data` (each process's position in its
data), `vocabulary` (the vocabulary's own file) and `metadata` (the PlugConfig), so generation,
evaluation and the next stage need nothing else. Orbax writes to a temporary name and renames at
the end: an interrupted save leaves no partial checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp
from etils import epath

from plug_jax.checkpoints.best import Best
from plug_jax.checkpoints.checksums import CHECKSUMS
from plug_jax.checkpoints.format import CHECKPOINTS, FilesRestore, FilesSave, open_manager
from plug_jax.checkpoints.integrity import (
    Damage,
    DamagedCheckpointError,
    find_damage,
    find_damage_together,
    reading,
    set_aside,
    steps_in,
)
from plug_jax.checkpoints.reading import read_metadata, stored_arrays
from plug_jax.checkpoints.saved_model import lora_of, vocabulary_fingerprint
from plug_jax.checkpoints.saving import Saver
from plug_jax.config import PlugConfig
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary, save_vocabulary
from plug_jax.errors import PlugError, shortened
from plug_jax.field_types import check_fields
from plug_jax.techniques.lora import Lora
from plug_jax.training.safety import SafetyState
from plug_jax.training.same_run import (
    check_same_heads,
    check_same_lora,
    check_same_model,
    check_same_task,
)
from plug_jax.training.state import StateLayout, TrainState

# orbax's messages for intact arrays that do not match the run's.
_OTHER_ARRAYS = "structures do not match|not compatible with the stored shape"


class ResumableIterator(Protocol):
    """A data iterator whose position can be saved to a directory and restored."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write this process's position."""

    def restore(
        self, directory: str | os.PathLike[str], *, restart_changed: bool = False
    ) -> str | None:
        """Restore the position that `save` wrote; returns a note for the user, if any.

        `restart_changed`: if it is in other data than these, start from their beginning instead.
        PlugError without it.
        """


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often to save and how many to keep."""

    every: int  # steps; the last step is also saved
    keep: int | None = 3  # how many of the newest; None: all
    keep_every: int | None = None  # multiples of this many steps are kept permanently
    most_failures: int | None = 5  # failed saves in a row that end the run; None: unlimited
    timeout: float = 1200.0  # seconds; a longer save ends the run
    # Read data that changed since the checkpoint from their beginning. Unchanged data continue from
    # their position, so the setting may stay when a run is killed and restarted.
    restart_changed_data: bool = False
    verify: bool = True  # check every byte against its checksum before resuming

    def __post_init__(self) -> None:
        check_fields(self)
        if self.every < 1 or (self.keep is not None and self.keep < 1):
            raise PlugError(
                f"CheckpointConfig: every and keep must be 1 or more, got {self.every}, {self.keep}"
            )
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.every):
            raise PlugError(
                f"KEEP_EVERY must be a multiple of CHECKPOINT_EVERY ({self.every}), got "
                f"{self.keep_every}"
            )
        if self.most_failures is not None and self.most_failures < 1:
            raise PlugError(f"SAVE_FAILURES must be 1 or more, or None, got {self.most_failures}")
        if not self.timeout >= 1:
            raise PlugError(f"SAVE_TIMEOUT must be 1 s or more, got {self.timeout}")


class Checkpoints:
    """The checkpoints of one run, written in the background."""

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        config: CheckpointConfig,
        *,
        model: PlugConfig,
        vocabulary: PlugVocabulary,
        task: Mapping[str, Any] | None = None,
        best: Best | None = None,
        lora: Lora | None = None,
        create: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        """Open MODEL_DIR/checkpoints, or `create` it.

        `task` is a `task_description`; `best`: also keep the best. `say` reports failed saves to
        the user.
        """
        self._lora = lora
        self._model = model
        self._task = task
        self._every = config.every
        self._restart_changed_data = config.restart_changed_data
        self._verify = config.verify
        self._vocabulary = vocabulary
        self._fingerprint = vocabulary_fingerprint(vocabulary)
        self._interrupted: set[int] = set()  # saved only because of interruptions
        self._saver = Saver(
            lambda failures, barrier: open_manager(
                epath.Path(model_dir) / CHECKPOINTS,
                max_to_keep=config.keep,
                keep_every=config.keep_every,
                extra=self._interrupted,
                best=best,
                create=create and not failures,
                timeout=config.timeout,
                barrier=barrier,
            ),
            most_failures=config.most_failures,
            timeout=config.timeout,
            say=say,
        )
        self._interrupted |= set(filter(self._was_interrupted, self._manager.all_steps()))
        self._last_regular = max(self.regular_steps(), default=0)

    @property
    def _manager(self) -> ocp.CheckpointManager:
        return self._saver.manager

    def latest_step(self) -> int | None:
        """The newest checkpoint, damaged or not, or None."""
        return max(steps_in(self._manager.directory), default=None)

    def regular_steps(self) -> list[int]:
        """The steps that the run would have saved without interruptions."""
        self._saver.wait()
        return sorted(set(self._manager.all_steps()) - self._interrupted)

    def newest_before(self, step: int) -> int:
        """The newest checkpoint of an earlier step than this one, 0 for none."""
        return max((one for one in self._manager.all_steps() if one < step), default=0)

    def overdue(self, step: int) -> bool:
        """Whether a due checkpoint was left out."""
        return step // self._every > self._last_regular // self._every

    def steps(self) -> list[int]:
        """The stored steps, and the one being saved."""
        return list(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        data: ResumableIterator,
        *,
        best_metrics: Mapping[str, float] | None = None,
        interrupted: bool = False,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Start to save the state and data position; returns once the arrays are copied.

        `best_metrics`: its evaluation's, if that is the run's best so far.
        `interrupted`: only for resuming; deleted when the next one is complete.
        `before` writes what must be on disk before the checkpoint; the first process calls it. A
        failed save is reported, at once or when the next one starts.

        Raises:
            CannotSave: too many saves in a row have failed, or this one takes too long.
        """
        metadata: dict[str, Any] = {
            "plug_config": self._model.to_dict(),
            "vocabulary_fingerprint": self._fingerprint,
            "task": self._task,
        }
        if self._lora is not None:
            metadata["lora"] = dataclasses.asdict(self._lora)
        step = int(state.step)
        if interrupted:
            metadata["interrupted"] = True
            self._interrupted.add(step)
        else:
            self._last_regular = step
        self._saver.start(
            step,
            ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(
                    {"step": state.step, "slots": state.opt_state, "safety": state.safety}
                ),
                data=FilesSave(data.save),
                vocabulary=FilesSave(self._save_vocabulary),
                metadata=ocp.args.JsonSave(metadata),
            ),
            best_metrics or {},  # None would cause a warning if the best is kept
            before=before,
        )

    def restore(
        self, layout: StateLayout, data: ResumableIterator, *, step: int | None = None
    ) -> tuple[TrainState, str | None]:
        """Restore the newest good checkpoint's state directly into its shardings, and `data`.

        Also returns a note on the data position, if any. Newer damaged ones are skipped, renamed
        and named on standard error; every process uses the same one. With `step` it must be that
        one.

        Raises:
            PlugError: the checkpoint is of another model, vocabulary or optimizer, has heads of
                other objectives, or is of data with other settings.
            DamagedCheckpointError: none is good, or the newest may not be read.
        """
        self._saver.wait()
        directory = self._manager.directory
        if step is not None:
            self._check(step)
            return self._restore(step, layout, data)
        steps = steps_in(directory)
        damaged: dict[int, Damage] = {}
        for step in reversed(steps):
            damage = find_damage_together(directory / str(step), contents=self._verify)
            if damage is None:
                try:
                    restored = self._restore(step, layout, data)
                except DamagedCheckpointError as error:
                    if jax.process_count() > 1:  # the others may have read it and be waiting
                        raise
                    damage = error.damage
            if damage is None:
                of_best = {s: find_damage_together(directory / str(s), ["metrics"]) for s in steps}
                damaged |= {s: found for s, found in of_best.items() if found is not None}
                set_aside(directory, damaged, going_on=step)
                if damaged:
                    self._manager.reload()
                    self._last_regular = max(self.regular_steps(), default=0)
                return restored
            damaged[step] = damage
            if damage.denied:
                raise DamagedCheckpointError.at(directory / str(step), damage)
        newest = max(damaged)
        raise DamagedCheckpointError.at(directory / str(newest), damaged[newest])

    def _check(self, step: int) -> None:
        path = self._manager.directory / str(step)
        if damage := find_damage_together(path, contents=self._verify):
            raise DamagedCheckpointError.at(path, damage)

    def _restore(
        self, step: int, layout: StateLayout, data: ResumableIterator
    ) -> tuple[TrainState, str | None]:
        path = self._manager.directory / str(step)
        where = os.fspath(path)
        metadata = read_metadata(path)
        check_same_model(where, metadata, self._model, self._fingerprint)
        target = layout.with_shardings()
        if not (path / "data").exists():
            raise PlugError(
                f"{where} has no data position to resume from, like a converted checkpoint; name "
                "it as INITIAL_CHECKPOINT of a new MODEL_DIR."
            )
        check_same_lora(where, lora_of(metadata), self._lora)
        stored = stored_arrays(path, "params", expected=target.params)
        check_same_heads(where, stored, target.params)
        check_same_task(where, metadata.get("task"), self._task)
        note = self._restore_place(step, data)  # before the arrays, which may take minutes
        return self._restore_state(step, layout), note

    def restore_state(self, layout: StateLayout, step: int) -> TrainState:
        """The state of a step's checkpoint, without its data position.

        Raises:
            PlugError: it has other parameters or another optimizer.
            DamagedCheckpointError: it is damaged.
        """
        self._check(step)
        return self._restore_state(step, layout)

    def _restore_state(self, step: int, layout: StateLayout) -> TrainState:
        path = self._manager.directory / str(step)
        target = layout.with_shardings()
        wanted = {"step": target.step, "slots": target.opt_state, "safety": target.safety}
        if "safety" not in stored_arrays(path, "optimizer", expected=wanted):
            # It is from a version without skipping.
            del wanted["safety"]
        arrays = ocp.args.Composite(
            params=ocp.args.StandardRestore(target.params),
            optimizer=ocp.args.StandardRestore(wanted),
        )
        is_whole = self._verify and (path / CHECKSUMS).exists()
        with reading(path, ""):
            try:
                restored = self._manager.restore(step, args=arrays)
            except (ValueError, KeyError) as error:
                if not is_whole and not re.search(_OTHER_ARRAYS, str(error)):
                    raise
                raise PlugError(
                    f"{path} does not fit this run's parameters or optimizer; continue with the "
                    f"optimizer that it was trained with (MODEL_DIR/config.gin), or start a new "
                    f"MODEL_DIR with INITIAL_CHECKPOINT.{_what_differs(str(error))}"
                ) from error
        optimizer = restored.optimizer
        safety = optimizer.get("safety")
        if safety is None:
            safety = jax.jit(SafetyState.start, out_shardings=layout.shardings.safety)()
        return TrainState(optimizer["step"], restored.params, optimizer["slots"], safety)

    def _was_interrupted(self, step: int) -> bool:
        """Whether a step is an interruption's; unknown, so False, if damaged."""
        path = self._manager.directory / str(step)
        if find_damage(path, ["metadata"]) is not None:
            return False
        return bool(json.loads((path / "metadata" / "metadata").read_text()).get("interrupted"))

    def _restore_place(self, step: int, data: ResumableIterator) -> str | None:
        notes = []

        def read(directory: epath.Path) -> None:
            restart = self._restart_changed_data
            notes.append(data.restore(directory, restart_changed=restart))

        self._manager.restore(step, args=ocp.args.Composite(data=FilesRestore(read)))
        return notes[0]

    def finish(self) -> None:
        """Wait for the last save. CannotSave if it failed."""
        self._saver.wait(last=True)

    def close(self) -> None:
        """Wait for the current save; reports a failure."""
        self._saver.close()

    def _save_vocabulary(self, directory: epath.Path) -> None:
        if jax.process_index() == 0:
            save_vocabulary(self._vocabulary, directory)


def _what_differs(message: str) -> str:
    """The arrays that orbax's message names, if it does: it prints their whole trees too."""
    names = re.findall(r"^(\S+):$", message, re.MULTILINE)
    if not names:
        return f" ({shortened(message)})"
    return f" Arrays that differ: {shortened(', '.join(names))}."
