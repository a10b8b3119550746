"""The items of a checkpoint, and the orbax manager that writes them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import fnmatch
import functools
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from etils import epath

from plug_jax.checkpoints.best import Best
from plug_jax.checkpoints.checksums import is_bucket, write_checksums, write_part
from plug_jax.checkpoints.save_barrier import SaveBarrier
from plug_jax.errors import PlugError

CHECKPOINTS = "checkpoints"


class PlainPath(epath.gpath.PosixGPath):
    """An absolute path without expansion or globbing, which is what orbax should get.

    epath's own `glob` treats the directory as part of the pattern: below `lr=[1e-4]` orbax would
    find none of the files that it has just written, and leave a checkpoint that cannot be restored.
    epath's own `resolve` turns gs:// into a local directory.
    """

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Self:
        """A local path, with `~` for the home directory, or one such as gs://.

        Raises:
            PlugError: an empty name, as from an unset shell variable; or one that tensorstore
                cannot open: with a backslash, which it reads as a slash, or bytes that are not
                UTF-8.
        """
        if not os.fspath(path):
            raise PlugError("the path of a checkpoint is empty; the current directory is '.'")
        plain = cls(os.path.expanduser(os.fspath(path))).resolve()
        name = str(plain)
        if "\\" in name or name.encode("utf-8", "ignore").decode() != name:
            raise PlugError(
                f"checkpoints cannot be in {name!r}: the name of their directory must not "
                "contain a backslash or bytes that are not UTF-8; rename it"
            )
        return plain

    def resolve(self, strict: bool = False) -> Self:
        """The absolute path."""
        return self if self._uri_scheme else super().resolve(strict)

    def glob(self, pattern: str) -> Iterator[Self]:
        """The paths below this directory whose names match `pattern`, with `*` and so on."""
        first, _, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatch.fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)


@dataclasses.dataclass(frozen=True)
class LatestRegular:
    """Keeps the newest `n` (None: all); steps in `extra` only while they are the newest.

    So a run keeps the same checkpoints however often it was interrupted.
    """

    n: int | None
    extra: Collection[int] = ()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each stays, oldest first; called by orbax."""
        regular = [one.step for one in checkpoints if one.step not in self.extra]
        kept = {*regular[-(self.n or len(regular)) :], *(one.step for one in checkpoints[-1:])}
        return [one.step in kept for one in checkpoints]


class _Manager(ocp.CheckpointManager):
    """orbax's manager, except that it opens a directory with damaged steps: reading finds those."""

    def __init__(self, directory: epath.Path, **options: Any) -> None:
        try:
            super().__init__(directory, **options)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise PlugError(
                f"{directory} has steps that are no checkpoints ({type(error).__name__}: {error}); "
                "`plug-jax checkpoint verify` names them"
            ) from error

    def metrics(self, step: int) -> Any:
        """The step's metrics if it was the best when saved; None if they cannot be read."""
        try:
            return super().metrics(step)
        except (OSError, RecursionError, ValueError):
            return None


def open_manager(
    directory: epath.Path,
    *,
    max_to_keep: int | None = None,
    extra: Collection[int] = (),
    keep_every: int | None = None,
    best: Best | None = None,
    create: bool = False,
    timeout: float = 1200.0,
    barrier: SaveBarrier | None = None,
) -> ocp.CheckpointManager:
    """The manager of MODEL_DIR/checkpoints.

    It keeps the newest `max_to_keep`, multiples of `keep_every` steps, and the best. A checkpoint
    with metrics was the run's best by its metric when it was saved. `extra`: see `LatestRegular`;
    it may grow.

    `timeout`: seconds that the processes may take to write one; they wait at `barrier`, which no
    other manager uses.
    """
    policies = ocp.checkpoint_managers
    kept: list[Any] = [LatestRegular(max_to_keep, extra)]
    if keep_every is not None:
        kept.append(policies.EveryNSteps(keep_every))

    def value(metrics: Mapping[str, float]) -> float:
        assert best is not None
        # One that was not the best when saved, or by another metric, ranks last.
        return metrics.get(best.metric, -best.sign * math.inf)

    if best is not None:
        best_one = policies.BestN(
            get_metric_fn=value,
            reverse=best.sign < 0,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        kept.append(best_one)
    path = PlainPath.of(directory)
    return _Manager(
        path,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=value if best is not None else None,
            create=create,
            async_options=ocp.AsyncOptions(
                timeout_secs=math.ceil(timeout),
                barrier_sync_fn=barrier,
                # Else a directory that cannot be made would be waited for until the timeout.
                create_directories_asynchronously=False,
            ),
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=barrier.name if barrier else None
            ),
            temporary_path_class=_CommittedStep if is_bucket(path) else _RenamedStep,
        ),
        handler_registry=handlers(barrier),
    )


def handlers(
    barrier: SaveBarrier | None = None,
) -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """The handler of each item; `barrier`: where the processes wait for each other."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays = (ocp.args.StandardSave, ocp.args.StandardRestore)
    files_args = (FilesSave, FilesRestore)
    json_args = (ocp.args.JsonSave, ocp.args.JsonRestore)
    for item, args, handler in (
        ("params", arrays, _ArraysHandler(barrier)),
        ("unused", arrays, _ArraysHandler(barrier)),
        ("optimizer", arrays, _ArraysHandler(barrier)),
        ("data", files_args, FilesHandler(barrier)),
        ("vocabulary", files_args, FilesHandler(barrier)),
        ("metadata", json_args, ocp.JsonCheckpointHandler()),
    ):
        for one in args:
            registry.add(item, one, handler)
    return registry


class _ArraysHandler(ocp.StandardCheckpointHandler):
    """orbax's handler; after writing, each process hashes what it wrote."""

    def __init__(self, barrier: SaveBarrier | None) -> None:
        super().__init__()
        self._barrier = barrier

    async def async_save(self, directory: epath.Path, *args: Any, **options: Any) -> Any:
        """The futures of writing and then hashing."""
        futures = await super().async_save(directory, *args, **options)
        hashing = functools.partial(write_part, directory, jax.process_index())
        written = ocp.future.ChainedFuture(futures or [], hashing)
        return [self._barrier.watched(written) if self._barrier else written]


class _Checked(ocp.path.atomicity.TemporaryPathBase):
    """A step that gets its checksums before its final name."""

    _metadata: Any = None  # where orbax writes _CHECKPOINT_METADATA; items have none

    @classmethod
    def from_final(
        cls, final_path: epath.Path, *, checkpoint_metadata_store: Any = None, **options: Any
    ) -> Any:
        """Like orbax's, for a step with `checkpoint_metadata_store` or for an item."""
        path = super().from_final(final_path, **options)
        path._metadata = checkpoint_metadata_store
        return path

    async def finalize(self) -> None:
        """Write the checksums, when all other files are complete, and rename the step."""
        if (metadata := self._metadata) is not None:
            await asyncio.to_thread(metadata.wait_until_finished)
            metadata.update(
                file_path=self.get() / "_CHECKPOINT_METADATA", commit_timestamp_nsecs=time.time_ns()
            )
            await asyncio.to_thread(metadata.wait_until_finished)
            await asyncio.to_thread(write_checksums, self.get())
        await super().finalize()


class _RenamedStep(_Checked, ocp.path.atomicity.AtomicRenameTemporaryPath):
    """On file systems that rename directories atomically."""


class _CommittedStep(_Checked, ocp.path.atomicity.CommitFileTemporaryPath):
    """In buckets, which cannot rename a directory."""


class FilesHandler(ocp.AsyncCheckpointHandler):
    """An orbax item that is a directory of files, written and read by plain functions."""

    def __init__(self, barrier: SaveBarrier | None = None) -> None:
        self._barrier = barrier

    def save(self, directory: epath.Path, args: FilesSave) -> None:
        """Let `args.write` fill the directory, on every process."""
        args.write(directory)

    async def async_save(self, directory: epath.Path, args: FilesSave) -> list[Any]:
        """Like `save`, at once; its errors are raised when the save is waited for.

        Raised here, on one process, they would leave the others waiting for it.
        """
        written: concurrent.futures.Future[None] = concurrent.futures.Future()
        try:
            self.save(directory, args)
        except Exception as error:
            written.set_exception(error)
        else:
            written.set_result(None)
        return [self._barrier.watched(written) if self._barrier else written]

    def restore(self, directory: epath.Path, args: FilesRestore) -> None:
        """Let `args.read` read the directory, on every process."""
        args.read(directory)


@ocp.args.register_with_handler(FilesHandler, for_save=True)
@dataclasses.dataclass
class FilesSave(ocp.args.CheckpointArgs):
    """What to write."""

    write: Callable[[Any], None]


@ocp.args.register_with_handler(FilesHandler, for_restore=True)
@dataclasses.dataclass
class FilesRestore(ocp.args.CheckpointArgs):
    """What to read."""

    read: Callable[[Any], None]
