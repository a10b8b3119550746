"""Pre-training tasks over a user's own text files, for both stages of PLUG.

The paths come from gin (see gin_configs/runs/): `structbert_text` and `palm_text` register a task
and return its name. To train on other sources, register a task of your own with `add_structbert` or
`add_palm` over any seqio source that yields {"text": document}, and name it in
MIXTURE_OR_TASK_NAME; mixtures are seqio's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import seqio
import tensorflow as tf

from plug_jax.data.features import palm_features, structbert_features
from plug_jax.data.lengths import sample_lengths
from plug_jax.data.masking import masked_language_model
from plug_jax.data.sentence_order import sentence_pairs
from plug_jax.data.sources import FileFormat, TextSource
from plug_jax.data.vocabularies import PlugVocabulary, load_vocabulary
from plug_jax.data.word_order import shuffle_windows
from plug_jax.errors import PlugError

Paths = str | Sequence[str]


def add_structbert(
    name: str,
    source: seqio.DataSource,
    vocabulary: PlugVocabulary,
    *,
    max_length: int = 512,
    mask_rate: float = 0.15,
    shuffle_rate: float = 0.05,
    shuffle_window: int = 3,
) -> seqio.Task:
    """Register a stage-1 task: sentence pairs, masked LM, and shuffled windows.

    `max_length` counts the tokens of an example, [CLS] and [SEP] included. A task that has the name
    already is replaced.
    """
    preprocessors = [
        functools.partial(sentence_pairs, vocabulary=vocabulary, max_length=max_length),
        functools.partial(masked_language_model, vocabulary=vocabulary, mask_rate=mask_rate),
        functools.partial(
            shuffle_windows, vocabulary=vocabulary, window=shuffle_window, rate=shuffle_rate
        ),
    ]
    return _add(name, source, preprocessors, structbert_features(vocabulary))


def add_palm(
    name: str,
    source: seqio.DataSource,
    vocabulary: PlugVocabulary,
    *,
    min_length: int = 32,
    max_length: int = 512,
    mask_rate: float = 0.15,
    close_at_document_end_only: bool = False,
    sentence_end_probability: float = 0.0,
) -> seqio.Task:
    """Register a stage-2 task: windows of random encoder and decoder length, and masked LM.

    Lengths are drawn in [min_length, max_length], [CLS] and [SEP] included. A task that has the
    name already is replaced.
    """
    preprocessors = [
        functools.partial(
            sample_lengths,
            vocabulary=vocabulary,
            min_length=min_length,
            max_length=max_length,
            close_at_document_end_only=close_at_document_end_only,
            sentence_end_probability=sentence_end_probability,
        ),
        functools.partial(masked_language_model, vocabulary=vocabulary, mask_rate=mask_rate),
    ]
    return _add(name, source, preprocessors, palm_features(vocabulary))


def structbert_text(
    *,
    train_files: Paths | None,
    validation_files: Paths | None,
    vocabulary: str | None,
    file_format: FileFormat = "lines",
    max_length: int = 512,
    name: str = "structbert_text",
) -> str:
    """Register a stage-1 task over text files and return its name; see `TextSource`."""
    source, pieces = _open(train_files, validation_files, vocabulary, file_format)
    return add_structbert(name, source, pieces, max_length=max_length).name


def palm_text(
    *,
    train_files: Paths | None,
    validation_files: Paths | None,
    vocabulary: str | None,
    file_format: FileFormat = "lines",
    min_length: int = 32,
    max_length: int = 512,
    name: str = "palm_text",
) -> str:
    """Register a stage-2 task over text files and return its name; see `TextSource`."""
    source, pieces = _open(train_files, validation_files, vocabulary, file_format)
    return add_palm(name, source, pieces, min_length=min_length, max_length=max_length).name


def _open(
    train: Paths | None, validation: Paths | None, vocabulary: str | None, file_format: FileFormat
) -> tuple[TextSource, PlugVocabulary]:
    if train is None or vocabulary is None:
        macro = "TRAIN_FILES" if train is None else "VOCABULARY"
        raise PlugError(
            f"{macro} is not set: pass --gin.{macro}=..., or name a registered task in "
            "MIXTURE_OR_TASK_NAME"
        )
    source = TextSource(train=train, validation=validation, file_format=file_format)
    return source, load_vocabulary(vocabulary)


def _add(
    name: str,
    source: seqio.DataSource,
    preprocessors: list,
    features: dict[str, seqio.Feature],
) -> seqio.Task:
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[*preprocessors, _keep_only(tuple(features))],
        output_features=features,
        metric_fns=[],
    )


def _keep_only(names: tuple[str, ...]) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """Drop what the model does not read (such as the raw text)."""
    return seqio.map_over_dataset(lambda example: {name: example[name] for name in names})
