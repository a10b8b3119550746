"""The tasks of both stages of PLUG, StructBERT's and PALM's, over any seqio source."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

import seqio
import tensorflow as tf

from plug_jax.data.features import DECODER, ENCODER, PALM, STRUCTBERT, output_features
from plug_jax.data.pipeline.batched_task import BatchedTask
from plug_jax.data.preprocessors.documents import (
    CleaningStep,
    batch_documents,
    clean_documents,
    tokenize_documents,
)
from plug_jax.data.preprocessors.lengths import sample_lengths
from plug_jax.data.preprocessors.masking import masked_language_model
from plug_jax.data.preprocessors.sentence_order import sentence_pairs
from plug_jax.data.preprocessors.word_order import shuffle_windows
from plug_jax.data.sources.token_source import TokenSource, check_tokens
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.errors import PlugError


class StructBertOptions(TypedDict, total=False):
    """Options of a stage-1 task; see `structbert_task` for defaults."""

    max_length: int
    mask_rate: float
    shuffle_rate: float
    shuffle_window: int


class PalmOptions(TypedDict, total=False):
    """Options of a stage-2 task; see `palm_task` for defaults."""

    min_length: int
    max_length: int
    mask_rate: float
    close_at_document_end_only: bool
    sentence_end_probability: float


def structbert_task(
    name: str,
    source: seqio.DataSource,
    vocabulary: PlugVocabulary,
    *,
    cleaning: Sequence[CleaningStep] = (),
    max_length: int = 512,
    mask_rate: float = 0.15,
    shuffle_rate: float = 0.05,
    shuffle_window: int = 3,
) -> BatchedTask:
    """A stage-1 task, not registered: sentence pairs, masked LM, and shuffled windows.

    `source` gives {"text": document}, or is a `TokenSource`; `cleaning` are steps of
    `plug_jax.data.preprocessors.cleaning`, which do not apply to tokens (PlugError).
    `max_length` counts the tokens of an example, including [CLS] and [SEP].
    """
    objectives = [
        functools.partial(sentence_pairs, vocabulary=vocabulary, max_length=max_length),
        functools.partial(masked_language_model, vocabulary=vocabulary, mask_rate=mask_rate),
        functools.partial(
            shuffle_windows, vocabulary=vocabulary, window=shuffle_window, rate=shuffle_rate
        ),
    ]
    documents = _documents(source, vocabulary, cleaning)
    return BatchedTask(
        name,
        source,
        [*documents, *objectives],
        output_features(STRUCTBERT, vocabulary),
        max_lengths={ENCODER: max_length},
    )


def palm_task(
    name: str,
    source: seqio.DataSource,
    vocabulary: PlugVocabulary,
    *,
    cleaning: Sequence[CleaningStep] = (),
    min_length: int = 32,
    max_length: int = 512,
    mask_rate: float = 0.15,
    close_at_document_end_only: bool = False,
    sentence_end_probability: float = 0.0,
) -> BatchedTask:
    """A stage-2 task, not registered: windows of random encoder and decoder length, masked LM.

    `source` and `cleaning` are as in `structbert_task`. Lengths are drawn in [min_length,
    max_length], including [CLS] and [SEP].
    """
    objectives = [
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
    documents = _documents(source, vocabulary, cleaning)
    return BatchedTask(
        name,
        source,
        [*documents, *objectives],
        output_features(PALM, vocabulary),
        max_lengths={ENCODER: max_length, DECODER: max_length},
    )


def add_structbert(
    name: str,
    source: seqio.DataSource,
    vocabulary: PlugVocabulary,
    *,
    cleaning: Sequence[CleaningStep] = (),
    **options: Unpack[StructBertOptions],
) -> BatchedTask:
    """Register `structbert_task`, replacing a task of the same name."""
    return _register(structbert_task(name, source, vocabulary, cleaning=cleaning, **options))


def add_palm(
    name: str,
    source: seqio.DataSource,
    vocabulary: PlugVocabulary,
    *,
    cleaning: Sequence[CleaningStep] = (),
    **options: Unpack[PalmOptions],
) -> BatchedTask:
    """Register `palm_task`, replacing a task of the same name."""
    return _register(palm_task(name, source, vocabulary, cleaning=cleaning, **options))


def _documents(
    source: seqio.DataSource, vocabulary: PlugVocabulary, cleaning: Sequence[CleaningStep]
) -> list[Callable[..., tf.data.Dataset]]:
    """Preprocessors from documents to blocks of tokens, once for all epochs, up to the cache."""
    if isinstance(source, TokenSource):
        if cleaning:
            raise PlugError(
                "Tokens cannot be cleaned: leave out `cleaning`, and clean the text before it is "
                "tokenised (`plug-jax cache` does both)."
            )
        return [functools.partial(check_tokens, vocabulary=vocabulary)]
    return [
        batch_documents,
        functools.partial(clean_documents, steps=tuple(cleaning)),
        functools.partial(tokenize_documents, vocabulary=vocabulary),
        seqio.CacheDatasetPlaceholder(),
    ]


def _register(task: BatchedTask) -> BatchedTask:
    if task.name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
    return task
