"""Tasks described for JSON: the same in every process and every run, other ones differently."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence, Set
from concurrent import futures
from typing import Any

import seqio
import tensorflow as tf

from plug_jax.data.vocabularies import PlugVocabulary

_READERS = 32  # threads, for the latency of remote file systems


def describe(value: Any) -> Any:
    """A value for JSON, without addresses and paths of vocabularies.

    A function is its name, and a `functools.partial` that and its arguments; what has no other
    description is its `repr`.

    Example: functools.partial(masked_language_model, mask_rate=0.15) is
    {"function": "plug_jax.data.masking.masked_language_model", "arguments": {"mask_rate": 0.15}}.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, PlugVocabulary):
        content = hashlib.sha256(value.files[value.FILE_NAME]).hexdigest()
        return {"class": type(value).__name__, "sha256": content, **value.settings}
    if isinstance(value, functools.partial):
        arguments = {str(i): argument for i, argument in enumerate(value.args)} | value.keywords
        return {"function": describe(value.func), "arguments": describe(arguments)}
    if isinstance(value, Mapping):
        return {str(key): describe(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Set):  # in an order that changes from run to run
        return sorted((describe(item) for item in value), key=json.dumps)
    if hasattr(value, "__qualname__"):
        return _name(value)
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    except Exception:  # whatever a stranger's __repr__ may raise
        return _name(type(value))


def describe_vocabularies(task: seqio.Task) -> list[Any]:
    """The vocabularies of a task's features, each once."""
    found = [describe(feature.vocabulary) for feature in task.output_features.values()]
    unique = {json.dumps(vocabulary, sort_keys=True): vocabulary for vocabulary in found}
    return [unique[key] for key in sorted(unique)]


def describe_reader(source: seqio.DataSource) -> dict[str, Any]:
    """What turns a file of a source into documents."""
    # seqio keeps it under one of these names.
    reader = getattr(source, "_reader", None) or getattr(source, "_dataset_fn", None)
    return {"class": _name(type(source)), "reader": describe(reader)}


def file_sizes(files: Sequence[str]) -> list[int | None]:
    """Bytes of each; None for shards of a source that are no files."""
    with futures.ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_size, files))


def _size(path: str) -> int | None:
    try:
        return tf.io.gfile.stat(path).length
    except tf.errors.OpError:
        return None


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
