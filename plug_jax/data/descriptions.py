"""Canonical JSON descriptions of tasks: equal across processes and runs."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

import seqio
import tensorflow as tf

from plug_jax.data.many_files import of_each
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

_FOLDER = re.compile(r"^plug_jax\.data\.(?:preprocessors|sources)\.")


def describe(value: Any) -> Any:
    """A JSON value, without memory addresses and vocabulary paths.

    A function is described by its name (`_name`), a `functools.partial` by name and arguments,
    anything else by its `repr`.

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
    if isinstance(value, Set):  # its order changes from run to run
        return sorted((describe(item) for item in value), key=json.dumps)
    if hasattr(value, "__qualname__"):
        return _name(value)
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    except Exception:  # a user's __repr__ may raise anything
        return _name(type(value))


def describe_vocabularies(task: seqio.Task) -> list[Any]:
    """The vocabularies of a task's features, each once."""
    found = [describe(feature.vocabulary) for feature in task.output_features.values()]
    unique = {json.dumps(vocabulary, sort_keys=True): vocabulary for vocabulary in found}
    return [unique[key] for key in sorted(unique)]


def describe_reader(source: seqio.DataSource) -> dict[str, Any]:
    """The function that turns a source's file into documents."""
    # seqio keeps it under one of these names.
    reader = getattr(source, "_reader", None) or getattr(source, "_dataset_fn", None)
    return {"class": _name(type(source)), "reader": describe(reader)}


def file_sizes(files: Sequence[str]) -> list[int | None]:
    """Bytes of each; None for shards that are not files."""
    return of_each(_size, files)


def _size(path: str) -> int | None:
    try:
        return tf.io.gfile.stat(path).length
    except tf.errors.OpError:
        return None


def _name(value: Any) -> str:
    """The full name of a function or class, without its module's folder in data/.

    So names in old caches and checkpoints, from before there were folders, stay valid.
    """
    module = _FOLDER.sub("plug_jax.data.", value.__module__)
    module = "plug_jax.data.sources" if module == "plug_jax.data.text_source" else module
    return f"{module}.{value.__qualname__}"
