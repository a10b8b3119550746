"""Tasks for fine-tuning the encoder-decoder, named by gin, over official files or your own."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TypedDict, Unpack

import seqio

from plug_jax.data.features import CONTINUATION, ENCODER_TEXT, output_features
from plug_jax.data.vocabularies.vocabulary import load_vocabulary
from plug_jax.errors import PlugError
from plug_jax.field_types import typed
from plug_jax.generation_tasks.formats import by_name
from plug_jax.generation_tasks.pair_source import PairSource, source_target_features
from plug_jax.generation_tasks.records import Layout
from plug_jax.generation_tasks.tasks import find_file, find_task, read_pairs

__all__ = ["official", "source_target"]


class LengthOptions(TypedDict, total=False):
    """Maximum tokens of source and target, including [CLS] and [SEP]."""

    max_source_length: int
    max_target_length: int


@typed
def official(
    *,
    task: str,
    data_dir: str,
    vocabulary: str,
    layout: str = "plug",
    name: str | None = None,
    **lengths: Unpack[LengthOptions],
) -> str:
    """Register a task over the official files of a generation task and return its name.

    Args:
      task: one of `plug_jax.generation_tasks.tasks.GENERATION_TASKS`.
      data_dir: the directory of its files.
      vocabulary: its path.
      layout: templates of source and target: "plug", or "paddlenlp" where it exists.
      name: of the registered task; default: the generation task's.
      lengths: see `source_target`.
    """
    found = find_task(task)
    source = PairSource(
        functools.partial(read_pairs, read=found.read, layout=found.layout(layout)),
        functools.partial(find_file, found, data_dir),
        tuple(found.files),
    )
    return _register(name or task, source, found.layout(layout), vocabulary, **lengths)


@typed
def source_target(
    *,
    train_file: str,
    vocabulary: str,
    validation_file: str | None = None,
    test_file: str | None = None,
    source: str | tuple[str, ...] = ("{source}",),
    target: str = "target",
    target_prefix: str = "",
    name: str = "source_target",
    **lengths: Unpack[LengthOptions],
) -> str:
    """Register a task over your own files, in JSON lines, TSV or CSV, and return its name.

    Args:
      train_file: a path whose ending gives the format (`plug_jax.generation_tasks.formats`). TSV
        and CSV have a header line.
      vocabulary: its path.
      validation_file: the same for the validation split, or None.
      test_file: the same for the test split, which may lack targets, or None.
      source: the source's template, with a record's fields in braces, or several joined by [SEP]:
        ("{answer}", "{context}").
      target: the field with the target text. In JSON lines it may be a list: the first is trained
        on, all are references.
      target_prefix: the beginning of every target.
      name: of the registered task.
      lengths: max_source_length and max_target_length in tokens, including [CLS] and [SEP]; longer
        texts are cut. Default: 384 and 30, as in the released PLUG.
    """
    given = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {split: os.path.expanduser(path) for split, path in given.items() if path is not None}
    parts = (source,) if isinstance(source, str) else source
    layout = Layout(parts, target, target_prefix)
    pairs = PairSource(
        functools.partial(read_pairs, read=by_name, layout=layout),
        functools.partial(_file_of, files),
        tuple(files),
    )
    return _register(name, pairs, layout, vocabulary, **lengths)


def _file_of(files: Mapping[str, str], split: str) -> str:
    if split not in files:
        raise PlugError(f"There is no {split!r} split, only {', '.join(files)}.")
    return files[split]


def _register(
    name: str,
    source: PairSource,
    layout: Layout,
    vocabulary: str,
    max_source_length: int = 384,
    max_target_length: int = 30,
) -> str:
    """Register the task, replacing one of the same name; returns the name."""
    loaded = load_vocabulary(vocabulary)
    features = functools.partial(
        source_target_features,
        vocabulary=loaded,
        max_source_length=max_source_length,
        max_target_length=max_target_length,
        target_prefix=layout.target_prefix,
    )
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[features],
        output_features=output_features((*ENCODER_TEXT, *CONTINUATION), loaded),
        shuffle_buffer_size=None,  # the source shuffles
    )
    return name
