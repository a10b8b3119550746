"""From a seqio task to the batches of one process, whose position can be saved and restored."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import json
import os
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.data.drops import drop_counts
from plug_jax.data.feature_converters import PalmFeatureConverter, StructBertFeatureConverter
from plug_jax.data.features import feature_lengths
from plug_jax.data.packing import DEFAULT_WINDOW
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.vocabularies import PlugVocabulary

# What TensorFlow raises for an iterator's checkpoint that is damaged or of another pipeline.
_RESTORE_ERRORS = (tf.errors.OpError, AssertionError, IndexError, RuntimeError, ValueError)


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """What to read, and how to make batches of it.

    Without `num_epochs` (training) the data repeat without end, with new random draws every epoch,
    and each process reads its own share. With it (evaluation) every example counts: the last batch
    is filled up with empty rows (segment ids all 0), and the tasks of a mixture follow each other
    whatever their rates. Every process then reads everything and keeps its rows of each batch, so
    that no process ends before the others.
    """

    mixture_or_task_name: str
    feature_lengths: Mapping[str, int]  # of a row: {"encoder": E} or {"encoder": E, "decoder": D}
    split: str
    batch_size: int  # rows, over all processes
    shuffle: bool
    seed: int
    num_epochs: int | None = None
    pack: bool = True
    packing_window: int = DEFAULT_WINDOW  # examples packed together
    use_cached: bool = False
    module: str | None = None  # imported first, for the tasks that it registers

    def __post_init__(self) -> None:
        """Raises PlugError for a number below 1."""
        for name in ("batch_size", "packing_window", "num_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlugError(f"{name} of the data must be at least 1, not {value}.")


def make_iterator(
    config: DatasetConfig, *, process_index: int = 0, process_count: int = 1
) -> BatchIterator:
    """The batches of one of `process_count` processes; the same arguments give the same batches.

    The converter follows from the task: PALM's if it has `decoder_target_tokens`, else
    StructBERT's. Raises PlugError for an unknown task or split, features or lengths that fit no
    converter, a missing cache, and a batch size that is no multiple of the number of processes.
    """
    if config.module is not None:
        import_tasks(config.module)
    if config.batch_size % process_count:
        raise PlugError(
            f"A batch of {config.batch_size} rows cannot be split evenly over {process_count} "
            f"processes; choose a multiple of {process_count}."
        )
    return BatchIterator(config, seqio.ShardInfo(process_index, process_count))


def import_tasks(module: str) -> None:
    """Import a module that registers tasks. Raises PlugError if there is none of that name."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise PlugError(
            f"The module of tasks {module!r} cannot be imported: {error}. Name an importable "
            "module, such as 'tasks.demo', or put its directory on PYTHONPATH."
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


class BatchIterator:
    """Iterates over the batches of one process; `make_iterator` makes it."""

    def __init__(self, config: DatasetConfig, shard: seqio.ShardInfo) -> None:
        """Builds the pipeline; nothing is read before the first batch is asked for."""
        self._config = config
        self._shard = shard
        options = tf.data.Options()
        options.deterministic = True
        dataset = _batches(config, shard).prefetch(tf.data.AUTOTUNE)
        self._iterators = [iter(dataset.with_options(options))]
        self._under_way = False
        # Threads of tf.data that call Python while the interpreter shuts down would never end, and
        # the program neither: the iterator has to go before.
        weakref.finalize(self, self._iterators.clear)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """The iterator itself."""
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch: int32 [batch_size // process_count, row length] of every model feature.

        Raises PlugError if there is no example at all, or one that does not fit its row.
        """
        try:
            if not self._under_way and self._config.num_epochs is None:
                _check_examples(self._config, self._shard)
            batch = next(self._iterators[0])
        except StopIteration:
            if self._under_way:
                raise
            raise _no_examples(self._config.mixture_or_task_name, self._config) from None
        except tf.errors.InvalidArgumentError as error:
            # A PlugError raised inside the graph arrives as text, below a traceback.
            if found := re.search(r"PlugError: (.*)", error.message):
                raise PlugError(found[1]) from error
            raise
        self._under_way = True
        return {name: rows.numpy() for name, rows in batch.items()}

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the position of this process to `directory`/process_<index>-of-<count>.*."""
        tf.io.gfile.makedirs(os.fspath(directory))
        self._checkpoint().write(self._position_file(directory))

    def restore(self, directory: str | os.PathLike[str]) -> None:
        """Goes to the position that `save` wrote: the batches that followed it follow again.

        The config must be the one of the run that saved. Raises PlugError if `directory` holds no
        position for this process, or those of another number of processes.
        """
        position = self._position_file(directory)
        if not tf.io.gfile.exists(position + ".index"):
            raise PlugError(_missing_position(directory, position, self._shard.num_shards))
        try:
            self._checkpoint().read(position).assert_existing_objects_matched()
        except _RESTORE_ERRORS as error:
            raise PlugError(
                f"The data position in {position}.* cannot be restored: it is damaged, or was "
                f"saved with another task or other settings of the data. ({error})"
            ) from error
        self._under_way = True

    def _checkpoint(self) -> tf.train.Checkpoint:
        return tf.train.Checkpoint(iterator=self._iterators[0])

    def _position_file(self, directory: str | os.PathLike[str]) -> str:
        name = f"process_{self._shard.index:05d}-of-{self._shard.num_shards:05d}"
        return os.path.join(os.fspath(directory), name)


def _batches(config: DatasetConfig, shard: seqio.ShardInfo) -> tf.data.Dataset:
    lengths, converter = _lengths_and_converter(config)
    tasks = _tasks(config)
    get_rows = functools.partial(
        seqio.get_dataset,
        task_feature_lengths=lengths,
        feature_converter=converter,
        dataset_split=config.split,
        use_cached=config.use_cached,
        shuffle=config.shuffle,
        num_epochs=config.num_epochs,
        trim_output_features=False,  # An example that does not fit is an error, not cut.
        verbose=False,
    )
    rows_here = config.batch_size // shard.num_shards
    if config.num_epochs is None:
        seed = _process_seed(config, tasks, shard)
        rows = get_rows(config.mixture_or_task_name, shard_info=shard, seed=seed)
        return rows.batch(rows_here, drop_remainder=True)
    # seqio would end a mixture with the first task that ends.
    parts = [get_rows(task, seed=config.seed) for task in tasks]
    rows = functools.reduce(tf.data.Dataset.concatenate, parts)
    empty = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in rows.element_spec.items()}
    rows = rows.concatenate(tf.data.Dataset.from_tensors(empty).repeat(config.batch_size - 1))
    batches = rows.batch(config.batch_size, drop_remainder=True)
    here = slice(shard.index * rows_here, (shard.index + 1) * rows_here)
    return batches.map(lambda batch: {name: rows[here] for name, rows in batch.items()})


def _process_seed(
    config: DatasetConfig, tasks: Sequence[seqio.Task], shard: seqio.ShardInfo
) -> int:
    """The seed of one process: its own where that is possible, so that it draws its own masks.

    seqio gives whole files to a process, or, where there are too few, every n-th example. In the
    latter case all processes must shuffle alike, so they share the seed.
    """

    def file_count(task: seqio.Task) -> int:
        if config.use_cached and task.supports_caching:
            info = seqio.utils.get_cached_info_path(task.cache_dir, config.split)
            with tf.io.gfile.GFile(info) as file:
                return json.load(file)["num_shards"]
        return len(task.source.list_shards(config.split))

    if shard.num_shards == 1 or any(file_count(task) < shard.num_shards for task in tasks):
        return config.seed
    # 31 bits: seqio counts on from here in int64.
    return int(np.random.SeedSequence([config.seed, shard.index]).generate_state(1)[0] >> 1)


def _lengths_and_converter(
    config: DatasetConfig,
) -> tuple[dict[str, int], seqio.FeatureConverter]:
    """The length of every task feature, and the converter that the task's features ask for."""
    features = find_task(config.mixture_or_task_name).output_features
    palm = "decoder_target_tokens" in features
    converter_class = PalmFeatureConverter if palm else StructBertFeatureConverter
    if missing := sorted(set(converter_class.TASK_FEATURES) - set(features)):
        raise PlugError(
            f"{config.mixture_or_task_name!r} lacks the output features {', '.join(missing)}, "
            f"which {'stage 2 (PALM)' if palm else 'stage 1 (StructBERT)'} needs; see "
            f"{'palm' if palm else 'structbert'}_features in plug_jax.data.features."
        )
    lengths = feature_lengths(config.feature_lengths, converter_class.TASK_FEATURES)
    return lengths, converter_class(pack=config.pack, window=config.packing_window)


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


def _tasks(config: DatasetConfig) -> list[seqio.Task]:
    """The tasks that have the split; seqio leaves out the others of a mixture."""
    name, split = config.mixture_or_task_name, config.split
    provider = find_task(name)
    tasks = [task for task in seqio.get_subtasks(provider) if split in task.splits]
    if not tasks:
        raise PlugError(f"{name!r} has no split {split!r}, only {', '.join(provider.splits)}.")
    for task in tasks:
        if config.use_cached and task.supports_caching and not task.cache_dir:
            raise PlugError(
                f"Task {task.name!r} is not cached in any of seqio's cache directories; cache it "
                "first, or set use_cached to False."
            )
    return tasks


def _check_examples(config: DatasetConfig, shard: seqio.ShardInfo) -> None:
    """Raises if a task gives this process no example: repeating it would never end."""
    lengths, _ = _lengths_and_converter(config)
    for task in _tasks(config):
        examples = task.get_dataset(
            sequence_length=lengths,
            split=config.split,
            use_cached=config.use_cached,
            shuffle=False,
            seed=config.seed,
            shard_info=shard,
            num_epochs=1,
            trim_output_features=False,
        )
        if next(iter(examples.take(1)), None) is None:
            raise _no_examples(task.name, config, shard)


def _no_examples(
    name: str, config: DatasetConfig, shard: seqio.ShardInfo | None = None
) -> PlugError:
    where = f" for process {shard.index} of {shard.num_shards}" if shard else ""
    drops = ", ".join(f"{reason} {count}" for reason, count in sorted(drop_counts().items()))
    return PlugError(
        f"{name!r} gives no example in split {config.split!r}{where}. Dropped on the way: "
        f"{drops or 'nothing, so its source is empty'}."
    )


def _missing_position(directory: str | os.PathLike[str], position: str, process_count: int) -> str:
    pattern = os.path.join(os.fspath(directory), "process_*-of-*.index")
    counts = {int(file.removesuffix(".index")[-5:]) for file in tf.io.gfile.glob(pattern)}
    if counts and process_count not in counts:
        return (
            f"{os.fspath(directory)} holds the data position of a run with "
            f"{' or '.join(map(str, sorted(counts)))} processes, but this one has {process_count}; "
            "resume with as many processes as before, or start the data anew."
        )
    return f"The data position {position}.index is missing; restore a complete checkpoint."
