"""The settings that a stream of batches depends on: saved with its position, compared on resuming.

A setting is a name and a JSON value: batch_size, masked_language_model.mask_rate, files. They are
read from the DatasetConfig and the task, so that tasks of any kind need not declare them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import seqio

from plug_jax.data.caching.files import SplitFiles, cached_shards, read_json
from plug_jax.data.descriptions import (
    describe,
    describe_reader,
    describe_vocabularies,
    file_sizes,
)

if TYPE_CHECKING:
    from plug_jax.data.pipeline.pipeline import DatasetConfig

Settings = Mapping[str, Any]

# Search paths of tasks and caches do not matter, only what is found.
_FREE_FIELDS = ("module", "cache_dirs")
_MOST_SHOWN = 8  # differences per message, and items of a list
_LONGEST_SHOWN = 120  # characters of a value
_ABSENT = "absent"
_RECORDS = "records."  # of a source that describes itself; older versions did not save them


def stream_settings(
    config: DatasetConfig, provider: seqio.Task | seqio.Mixture, features: Sequence[str]
) -> Settings:
    """Names and values of all settings that the batches of `config` and this task depend on.

    In a mixture, settings of a task begin with its name. `features` are the rows' features. Files
    are represented by size, functions by name.
    """
    fields = {
        field.name: describe(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in _FREE_FIELDS
    }
    settings = {**_flat(fields), "features": sorted(features)}
    for task in seqio.get_subtasks(provider):
        if config.split not in task.splits:
            continue
        of_task = {**_source(task, config), **_preprocessors(task)}
        if isinstance(provider, seqio.Mixture):
            of_task = _flat({task.name: {"rate": provider.get_rate(task), **of_task}})
        settings |= of_task
    return settings


def changes(then: Settings, now: Settings) -> list[str]:
    """Each setting that differs, with both values: ["batch_size: 8 then, 4 now"].

    What an older version of plug-jax did not save of a source of records is no difference.
    """
    found = []
    for name in dict.fromkeys([*then, *now]):
        old, new = then.get(name, _ABSENT), now.get(name, _ABSENT)
        if _text(old) == _text(new) or _not_yet_saved(name, then):
            continue
        if isinstance(old, list) and isinstance(new, list):
            found.append(f"{name}: {_list_change(old, new)}")
        else:
            found.append(f"{name}: {_shown(old)} then, {_shown(new)} now")
    more = found[_MOST_SHOWN:]
    return [*found[:_MOST_SHOWN], f"and {len(more)} more"] if more else found


def _source(task: seqio.Task, config: DatasetConfig) -> dict[str, Any]:
    """The documents, or cached tokens, that are read."""
    settings: dict[str, Any] = {"vocabulary": describe_vocabularies(task)}
    if config.use_cached and task.supports_caching:
        files = cached_shards(task, config.split)
        made_of = read_json(SplitFiles(task.cache_dir, config.split, len(files)).fingerprint)
        settings["cache"] = hashlib.sha256(_text(made_of).encode()).hexdigest()
    else:
        files = task.source.list_shards(config.split)
        settings |= _flat({"source": describe_reader(task.source)})
        if isinstance(task.source, seqio.TfdsDataSource):
            dataset = task.source.tfds_dataset
            name = dataset.resolved_tfds_name(config.split)
            settings["dataset"] = f"{name}, {dataset._map_split(config.split)}"
    settings["files"] = _with_sizes(dict(zip(files, file_sizes(files), strict=True)))
    if hasattr(task.source, "settings_of_records"):
        told = task.source.settings_of_records(config.split)
        read = _with_sizes(told.pop("files"))  # `list_shards` may have told of some
        told["files"] = [file for file in read if file not in settings["files"]]
        settings |= _flat(describe(told), _RECORDS)
    return settings


def _with_sizes(files: Mapping[str, int | None]) -> list[str]:
    return [path if size is None else f"{path} ({size:,} bytes)" for path, size in files.items()]


def _not_yet_saved(name: str, then: Settings) -> bool:
    """Whether it is a setting of records, and `then` has none of that task."""
    task, mark, _ = name.partition(_RECORDS)
    return bool(mark) and not any(other.startswith(task + mark) for other in then)


def _preprocessors(task: seqio.Task) -> dict[str, Any]:
    """The functions in order, with their arguments except the task's own vocabulary."""
    vocabularies = describe_vocabularies(task)
    settings: dict[str, Any] = {"preprocessors": []}
    for stage in task.preprocessors:
        described = describe(stage)
        arguments: Mapping[str, Any] = {}
        if isinstance(described, Mapping):
            described, arguments = described["function"], described["arguments"]
        name = _without_module(str(described).strip("<>").removesuffix(" object"))
        times = settings["preprocessors"].count(name)
        settings["preprocessors"].append(name)
        name += f" ({times + 1})" if times else ""
        settings |= _flat({name: {k: v for k, v in arguments.items() if v not in vocabularies}})
    return settings


def _flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            is_name = name in ("function", "class")
            flat[prefix + name] = _without_module(value) if is_name else value
    return flat


def _without_module(name: str) -> str:
    """The name of a function or class, independent of its module, which may change."""
    return name.rpartition(".")[2]


def _list_change(old: Sequence[Any], new: Sequence[Any]) -> str:
    """The elements that are in only one of two lists."""
    then, now = Counter(map(_text, old)), Counter(map(_text, new))
    gone, come = list((then - now).elements()), list((now - then).elements())
    if not gone and not come:
        return "in another order now"
    return f"{_some(gone)} then, {_some(come)} now"


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(_cut(item.strip('"')) for item in items[:_MOST_SHOWN])
    more = len(items) - _MOST_SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown or "none of these"


def _shown(value: Any) -> str:
    return value if value is _ABSENT else _cut(_text(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _text(value: Any) -> str:
    """JSON, as in a checkpoint; NaN equals NaN."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
