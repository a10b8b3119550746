"""From a seqio task or mixture to batches."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.data.autotuning import without_autotuning
from plug_jax.data.caching.files import cached_shards, check_cache, check_token_files
from plug_jax.data.drops import drop_counts, why_nothing_is_left
from plug_jax.data.features import Feature, feature_lengths, features_declared
from plug_jax.data.pipeline.batched_task import BatchedMixture, BatchedTask
from plug_jax.data.pipeline.batches import BatchIterator
from plug_jax.data.pipeline.feature_converters import RowFeatureConverter
from plug_jax.data.pipeline.packing import DEFAULT_WINDOW
from plug_jax.data.pipeline.stream_settings import stream_settings
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.named_modules import import_named

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """What to read, and how to batch it.

    Without `num_epochs` (training) the data repeat endlessly, with new random draws every epoch.
    They are divided into `streams`, each with its own files (or else every n-th example), which it
    reads once per epoch. With `num_epochs` (evaluation) there is one stream, and every example
    counts: the last batch is filled up with empty rows (segment ids all 0), and the tasks of a
    mixture are read one after the other, ignoring rates.

    The batches depend on the number of streams, not of processes. To resume with another number of
    processes, the number of streams must divide it or be a multiple of it. Streams shared by
    several processes are read by each.
    """

    mixture_or_task_name: str
    feature_lengths: Mapping[str, int]  # per row: {"encoder": E} or {"encoder": E, "decoder": D}
    split: str
    batch_size: int  # rows over all processes: the global batch size
    shuffle: bool
    seed: int
    num_epochs: int | None = None
    pack: bool = True
    packing_window: int = DEFAULT_WINDOW  # examples packed together
    streams: int | None = None  # None: the number of processes; a restored run keeps its own
    use_cached: bool = False
    cache_dirs: Sequence[str] = ()  # output of `plug-jax cache`, besides seqio's own directories
    module: str | None = None  # imported first, to register its tasks

    def __post_init__(self) -> None:
        """Raises PlugError for a value of another type, or a number below 1."""
        check_fields(self)
        for name in ("batch_size", "packing_window", "num_epochs", "streams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlugError(f"{name} of the data must be at least 1, not {value}.")


def make_iterator(
    config: DatasetConfig,
    features: Sequence[Feature] | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """The batches of one of `process_count` processes; the same arguments give the same batches.

    Rows have `features`, such as those of a run's objectives; None: all that the task has.
    Raises PlugError for an unknown task or split, features that the task lacks or that have no row
    length, a missing cache or one of another vocabulary, data without an example, and numbers of
    rows, streams and processes that cannot be divided.
    """
    register_tasks(config)
    streams = 1 if config.num_epochs is not None else config.streams or process_count
    rows = _Rows.of(config, features)
    _check_tasks(config)

    def open_stream(stream: int, of: int) -> tf.data.Dataset:
        return _batches(config, rows, seqio.ShardInfo(stream, of))

    def check_stream(stream: int, of: int) -> None:
        shard = seqio.ShardInfo(stream, of)
        if config.num_epochs is not None:  # it ended before its first batch
            raise _no_examples(config.mixture_or_task_name, config, shard)
        _check_examples(config, rows, shard)

    return BatchIterator(
        open_stream,
        check_stream=check_stream,
        settings=lambda: stream_settings(
            config, find_task(config.mixture_or_task_name), list(rows.lengths)
        ),
        endless=config.num_epochs is None,
        batch_size=config.batch_size,
        streams=streams,
        process_index=process_index,
        process_count=process_count,
    )


def stream_batches(
    config: DatasetConfig, features: Sequence[Feature], stream: seqio.ShardInfo
) -> tf.data.Dataset:
    """The batches of one stream of `make_iterator`'s endless data, for other trainers than ours.

    [batch_size // streams, row length] of each feature. Raises what `make_iterator` does.
    """
    assert config.num_epochs is None
    register_tasks(config)
    rows = _Rows.of(config, features)
    _check_tasks(config)
    _check_examples(config, rows, stream)
    return without_autotuning(_batches(config, rows, stream))


def register_tasks(config: DatasetConfig) -> None:
    """Import the tasks' module, and tell seqio where caches are. PlugError as `import_tasks`."""
    if config.module is not None:
        import_tasks(config.module)
    if missing := set(config.cache_dirs) - set(seqio.get_global_cache_dirs()):
        seqio.add_global_cache_dirs(sorted(missing))


def import_tasks(module: str) -> None:
    """Import a module that registers tasks. PlugError if it is missing or broken."""
    try:
        import_named(module)
    except PlugError as error:
        raise PlugError(
            f"The module of tasks {module!r} cannot be imported: {error}. Name an importable "
            "module, such as 'plug_jax.tasks.demo', or put its directory on PYTHONPATH."
        ) from error


def vocabulary_of(mixture_or_task_name: str, *, module: str | None = None) -> PlugVocabulary:
    """The vocabulary of a task's `encoder_input_tokens`; imports `module` first.

    Raises PlugError for an unknown task or module.
    """
    if module is not None:
        import_tasks(module)
    features = find_task(mixture_or_task_name).output_features
    if "encoder_input_tokens" not in features:
        raise PlugError(
            f"{mixture_or_task_name!r} has no feature encoder_input_tokens, only "
            f"{', '.join(sorted(features))}."
        )
    return features["encoder_input_tokens"].vocabulary


@dataclasses.dataclass(frozen=True)
class _Rows:
    """How examples become rows: the length of every feature, and the packing."""

    lengths: Mapping[str, int]
    converter: RowFeatureConverter

    @classmethod
    def of(cls, config: DatasetConfig, features: Sequence[Feature] | None) -> _Rows:
        declared = find_task(config.mixture_or_task_name).output_features
        if features is None:
            features = features_declared(declared)
        names = [feature.name for feature in features]
        if missing := sorted(set(names) - set(declared)):
            raise PlugError(
                f"{config.mixture_or_task_name!r} lacks the output features {', '.join(missing)}, "
                "which the run's objectives need: name a task that has them in "
                "MIXTURE_OR_TASK_NAME, or other OBJECTIVES (gin_configs/objectives/). It has "
                f"{', '.join(sorted(declared))}."
            )
        lengths = feature_lengths(config.feature_lengths, names)
        converter = RowFeatureConverter(features, pack=config.pack, window=config.packing_window)
        return cls(lengths, converter)


def _batches(config: DatasetConfig, rows: _Rows, stream: seqio.ShardInfo) -> tf.data.Dataset:
    """The batches of one stream, [batch_size // streams, row length] of each feature."""
    tasks = tasks_of(config)
    if config.num_epochs is None:
        seed = _stream_seed(config, tasks, stream)
        return _stream_rows(config, rows, find_task(config.mixture_or_task_name), seed, stream)
    # seqio would end a mixture when its first task ends.
    parts = [_stream_rows(config, rows, task, config.seed) for task in tasks]
    whole = functools.reduce(tf.data.Dataset.concatenate, parts)
    empty = {
        name: tf.zeros([config.batch_size - 1, *spec.shape[1:]], spec.dtype)
        for name, spec in whole.element_spec.items()
    }
    whole = whole.concatenate(tf.data.Dataset.from_tensors(empty))
    return whole.rebatch(config.batch_size, drop_remainder=True)


def _stream_rows(
    config: DatasetConfig,
    rows: _Rows,
    provider: seqio.Task | seqio.Mixture,
    seed: int,
    stream: seqio.ShardInfo | None = None,
) -> tf.data.Dataset:
    """Rows in batches, of which only the last may be smaller than a stream's part of a batch."""
    if isinstance(provider, BatchedTask | BatchedMixture):
        provider = provider.padded
    examples = provider.get_dataset(
        rows.lengths,
        split=config.split,
        use_cached=config.use_cached,
        shuffle=config.shuffle,
        seed=seed,
        shard_info=stream,
        num_epochs=config.num_epochs,
        trim_output_features=False,  # An example that does not fit is an error, not cut.
        try_in_mem_cache=False,  # It would be written to every checkpoint of the iterator.
    )
    streams = 1 if stream is None else stream.num_shards
    return rows.converter.batches(examples, rows.lengths, config.batch_size // streams)


def _stream_seed(
    config: DatasetConfig, tasks: Sequence[seqio.Task], stream: seqio.ShardInfo
) -> int:
    """The seed of one stream: its own if possible, so that it draws its own masks.

    seqio assigns whole files to a stream, or, if there are too few, every n-th document. In the
    latter case all streams must shuffle alike, so they share the seed.
    """

    def file_count(task: seqio.Task) -> int:
        if config.use_cached and task.supports_caching:
            return len(cached_shards(task, config.split))
        return len(task.source.list_shards(config.split))

    if stream.num_shards == 1 or any(file_count(task) < stream.num_shards for task in tasks):
        return config.seed
    # 31 bits: seqio counts on from here in int64.
    return int(np.random.SeedSequence([config.seed, stream.index]).generate_state(1)[0] >> 1)


def find_task(name: str) -> seqio.Task | seqio.Mixture:
    """The registered task or mixture. Raises PlugError with near matches if there is none."""
    names = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name in names:
        return seqio.get_mixture_or_task(name)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    hint = f"Did you mean {', '.join(near)}?" if near else f"{len(names)} others are registered."
    raise PlugError(
        f"No task or mixture is called {name!r}. {hint} Tasks are registered when their module "
        "is imported (MIXTURE_OR_TASK_MODULE)."
    )


def tasks_of(config: DatasetConfig) -> list[seqio.Task]:
    """The tasks that have the split; seqio skips the others of a mixture.

    Raises PlugError if none has it.
    """
    name, split = config.mixture_or_task_name, config.split
    provider = find_task(name)
    tasks = [task for task in seqio.get_subtasks(provider) if split in task.splits]
    if not tasks:
        raise PlugError(f"{name!r} has no split {split!r}, only {', '.join(provider.splits)}.")
    return tasks


def _check_tasks(config: DatasetConfig) -> None:
    """Raises for a split or a cache that does not fit."""
    for task in tasks_of(config):
        if config.use_cached and task.supports_caching and not task.cache_dir:
            directories = ", ".join(seqio.get_global_cache_dirs()) or "none is named"
            raise PlugError(
                f"Task {task.name!r} is not cached in any of the cache directories "
                f"({directories}); run `plug-jax cache` first, or set use_cached to False."
            )
        if config.use_cached and task.supports_caching:
            check_cache(task, config.split)
        check_token_files(task, config.split)


def _check_examples(config: DatasetConfig, rows: _Rows, stream: seqio.ShardInfo) -> None:
    """Raises if a task has no example for an endless stream, which would repeat forever."""
    for task in tasks_of(config):
        examples = task.get_dataset(
            sequence_length=rows.lengths,
            split=config.split,
            use_cached=config.use_cached,
            shuffle=False,
            seed=config.seed,
            shard_info=stream,
            num_epochs=1,
            trim_output_features=False,
            try_in_mem_cache=False,
        )
        if next(iter(without_autotuning(examples.take(1))), None) is None:
            raise _no_examples(task.name, config, stream)


def _no_examples(name: str, config: DatasetConfig, stream: seqio.ShardInfo) -> PlugError:
    where = f" for data stream {stream.index} of {stream.num_shards}"
    return PlugError(
        f"{name!r} gives no example in split {config.split!r}"
        f"{where if stream.num_shards > 1 else ''}. {why_nothing_is_left(drop_counts())}"
    )
