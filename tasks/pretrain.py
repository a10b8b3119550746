"""Pre-training tasks for both stages of PLUG: StructBERT's and PALM's.

These functions, for use in gin (see gin_configs/runs/), register a task or mixture and return its
name: `structbert_text` and `palm_text` over text or token files, `structbert_tfds` and `palm_tfds`
over TensorFlow Datasets, `structbert_mixture` and `palm_mixture` over domains. To train on other
sources, register your own task with `add_structbert` or `add_palm` over any seqio source that
yields {"text": document}, and name it in MIXTURE_OR_TASK_NAME.

Importing this module registers {structbert,palm}_{wiki40b_zh,wikipedia_zh,mc4_zh}, whose data must
be prepared by TFDS before they are read. The vocabulary is the environment variable
PLUG_JAX_VOCABULARY, or `default_vocabulary()`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Unpack

import seqio

from plug_jax.data.pipeline.batched_task import BatchedMixture, BatchedTask
from plug_jax.data.preprocessors.documents import CleaningStep
from plug_jax.data.sources.files import Format, source_of_files
from plug_jax.data.sources.text_source import DEFAULT_TEXT_KEY
from plug_jax.data.sources.tfds_source import TfdsSource, Wiki40bMarkup
from plug_jax.data.sources.token_source import TokenSource
from plug_jax.data.vocabularies.vocabulary import (
    PlugVocabulary,
    default_vocabulary,
    load_vocabulary,
)
from plug_jax.errors import PlugError
from plug_jax.field_types import typed

from .stages import (
    PalmOptions,
    StructBertOptions,
    add_palm,
    add_structbert,
    palm_task,
    structbert_task,
)

__all__ = [
    "add_palm",
    "add_structbert",
    "palm_mixture",
    "palm_task",
    "palm_text",
    "palm_tfds",
    "structbert_mixture",
    "structbert_task",
    "structbert_text",
    "structbert_tfds",
]

Paths = str | Sequence[str]

# Chinese TFDS data by task name: the dataset, and its split for each of ours.
_TFDS = {
    "wiki40b_zh": (
        "wiki40b/zh-cn:1.3.0",
        {"train": "train", "validation": "validation", "test": "test"},
    ),
    "wikipedia_zh": (
        "wikipedia/20230601.zh:1.0.0",
        {"train": "train[:99%]", "validation": "train[99%:]"},
    ),
    "mc4_zh": ("c4/multilingual:3.1.0", {"train": "zh", "validation": "zh-validation"}),
}


@typed
def structbert_text(
    *,
    train_files: Paths | None,
    validation_files: Paths | None,
    vocabulary: str | None,
    file_format: Format = "lines",
    text_key: str = DEFAULT_TEXT_KEY,
    cleaning: Sequence[CleaningStep] = (),
    name: str = "structbert_text",
    **options: Unpack[StructBertOptions],
) -> str:
    """Register a stage-1 task over files and return its name.

    Formats are those of `TextSource`, and "tokens" for a `TokenSource`; `text_key` is the field of
    JSON lines that holds the text; options are those of `structbert_task`: `max_length`,
    `mask_rate`, `shuffle_rate`, `shuffle_window`.
    """
    source = _files(train_files, validation_files, file_format, text_key)
    return add_structbert(name, source, _load(vocabulary), cleaning=cleaning, **options).name


@typed
def palm_text(
    *,
    train_files: Paths | None,
    validation_files: Paths | None,
    vocabulary: str | None,
    file_format: Format = "lines",
    text_key: str = DEFAULT_TEXT_KEY,
    cleaning: Sequence[CleaningStep] = (),
    name: str = "palm_text",
    **options: Unpack[PalmOptions],
) -> str:
    """Register a stage-2 task over files and return its name; see `structbert_text`.

    Options are those of `palm_task`: `min_length`, `max_length`, `mask_rate`,
    `close_at_document_end_only`, `sentence_end_probability`.
    """
    source = _files(train_files, validation_files, file_format, text_key)
    return add_palm(name, source, _load(vocabulary), cleaning=cleaning, **options).name


@typed
def structbert_tfds(
    *,
    dataset: str,
    splits: Mapping[str, str],
    vocabulary: str | None,
    cleaning: Sequence[CleaningStep] = (),
    text_feature: str = "text",
    data_dir: str | None = None,
    name: str | None = None,
    **options: Unpack[StructBertOptions],
) -> str:
    """Register a stage-1 task over prepared TFDS data and return its name; see `TfdsSource`.

    wiki40b's markup becomes plain lines before the other steps of `cleaning`. The default `name` is
    the dataset's.
    """
    source = TfdsSource(dataset, splits=splits, data_dir=data_dir, text_feature=text_feature)
    name = name or _name_after("structbert", dataset)
    steps = [*_markup(dataset), *cleaning]
    return add_structbert(name, source, _load(vocabulary), cleaning=steps, **options).name


@typed
def palm_tfds(
    *,
    dataset: str,
    splits: Mapping[str, str],
    vocabulary: str | None,
    cleaning: Sequence[CleaningStep] = (),
    text_feature: str = "text",
    data_dir: str | None = None,
    name: str | None = None,
    **options: Unpack[PalmOptions],
) -> str:
    """Register a stage-2 task over prepared TFDS data; see `structbert_tfds`."""
    source = TfdsSource(dataset, splits=splits, data_dir=data_dir, text_feature=text_feature)
    name = name or _name_after("palm", dataset)
    steps = [*_markup(dataset), *cleaning]
    return add_palm(name, source, _load(vocabulary), cleaning=steps, **options).name


@typed
def structbert_mixture(
    *,
    rates: Mapping[str, float],
    train_files: Mapping[str, Paths],
    validation_files: Mapping[str, Paths] | None,
    vocabulary: str | None,
    file_format: Format | Mapping[str, Format] = "lines",
    text_key: str | Mapping[str, str] = DEFAULT_TEXT_KEY,
    cleaning: Sequence[CleaningStep] = (),
    name: str = "structbert_mixture",
    **options: Unpack[StructBertOptions],
) -> str:
    """Register a weighted mixture of domains for stage 1 and return its name.

    Each domain is a separate task, NAME_DOMAIN. Evaluation reads all validation files of all
    domains, ignoring rates.

    Args:
      rates: relative numbers of examples by domain: {"news": 0.4, "poems": 0.1}.
      train_files: by domain, for the domains in `rates`.
      validation_files: the same, or None.
      vocabulary: its path.
      file_format: one for all domains, or by domain; see `structbert_text`. Tokens are not cleaned.
      text_key: one for all domains of JSON lines, or by domain, where it is not "text".
      cleaning: steps of `plug_jax.data.preprocessors.cleaning` for all domains of text.
      name: of the mixture.
      options: those of `structbert_text`, for all domains.

    Raises:
      PlugError: domains that differ between the arguments, or a rate that is not above 0.
    """
    sources = _domains(rates, train_files, validation_files, file_format, text_key)
    add = functools.partial(add_structbert, vocabulary=_load(vocabulary), **options)
    return _mixture(name, rates, sources, add, cleaning)


@typed
def palm_mixture(
    *,
    rates: Mapping[str, float],
    train_files: Mapping[str, Paths],
    validation_files: Mapping[str, Paths] | None,
    vocabulary: str | None,
    file_format: Format | Mapping[str, Format] = "lines",
    text_key: str | Mapping[str, str] = DEFAULT_TEXT_KEY,
    cleaning: Sequence[CleaningStep] = (),
    name: str = "palm_mixture",
    **options: Unpack[PalmOptions],
) -> str:
    """Register a weighted mixture of domains for stage 2; see `structbert_mixture`.

    Rates count windows. A document below 2 * min_length - 3 tokens, 61 by default, gives none and
    is dropped as "document_too_short": poems of four or eight lines have 24 to 64 including
    punctuation. So join several poems into one document, or lower `min_length`.
    """
    sources = _domains(rates, train_files, validation_files, file_format, text_key)
    add = functools.partial(add_palm, vocabulary=_load(vocabulary), **options)
    return _mixture(name, rates, sources, add, cleaning)


def _files(
    train: Paths | None, validation: Paths | None, file_format: Format, text_key: str
) -> seqio.DataSource:
    if train is None:
        raise _not_set("TRAIN_FILES")
    return source_of_files(
        train=train, validation=validation, file_format=file_format, text_key=text_key
    )


def _load(vocabulary: str | None) -> PlugVocabulary:
    if vocabulary is None:
        raise _not_set("VOCABULARY")
    return load_vocabulary(vocabulary)


def _not_set(macro: str) -> PlugError:
    return PlugError(
        f"{macro} is not set: pass --gin.{macro}=..., or name a registered task in "
        "MIXTURE_OR_TASK_NAME"
    )


def _name_after(stage: str, dataset: str) -> str:
    return re.sub(r"\W", "_", f"{stage}_{dataset}")


def _markup(dataset: str) -> tuple[CleaningStep, ...]:
    return (Wiki40bMarkup(),) if dataset.startswith("wiki40b/") else ()


def _domains(
    rates: Mapping[str, float],
    train: Mapping[str, Paths],
    validation: Mapping[str, Paths] | None,
    file_format: Format | Mapping[str, Format],
    text_key: str | Mapping[str, str],
) -> dict[str, seqio.DataSource]:
    """The source of each domain."""
    formats = dict.fromkeys(rates, file_format) if isinstance(file_format, str) else file_format
    held_out: Mapping[str, Paths | None] = validation or dict.fromkeys(rates)
    named = {"train_files": train, "validation_files": held_out, "file_format": formats}
    for argument, of_domains in named.items():
        if differing := sorted(set(rates) ^ set(of_domains)):
            raise PlugError(
                f"The domains of the mixture's rates and {argument} differ in "
                f"{', '.join(differing)}: name the same ones in both."
            )
    if not rates:
        raise PlugError("The mixture has no domain: name some in its rates.")
    for domain, rate in rates.items():
        if not 0 < rate < float("inf"):
            raise PlugError(f"The rate of {domain!r} in the mixture is {rate}; it must be above 0.")
    keys = _text_keys(formats, text_key)
    return {name: _files(train[name], held_out[name], formats[name], keys[name]) for name in rates}


def _text_keys(
    formats: Mapping[str, Format], text_key: str | Mapping[str, str]
) -> Mapping[str, str]:
    """The key of each domain; those without JSON lines have the default, or are refused later."""
    if isinstance(text_key, str):
        of_json = [domain for domain, format_ in formats.items() if format_ == "jsonl"]
        text_key = dict.fromkeys(of_json or formats, text_key)
    if unknown := sorted(set(text_key) - set(formats)):
        raise PlugError(
            f"The text_key of the mixture names {', '.join(unknown)}, which its rates lack."
        )
    return dict.fromkeys(formats, DEFAULT_TEXT_KEY) | dict(text_key)


def _mixture(
    name: str,
    rates: Mapping[str, float],
    sources: Mapping[str, seqio.DataSource],
    add: Callable[..., BatchedTask],
    cleaning: Sequence[CleaningStep],
) -> str:
    """Register a task for each domain, and their mixture; returns the mixture's name."""
    tasks = []
    for domain, source in sources.items():
        steps = () if isinstance(source, TokenSource) else cleaning
        task = add(f"{name}_{domain}", source, cleaning=steps)
        tasks.append((task, float(rates[domain])))
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add_provider(name, BatchedMixture(name, tasks))
    return name


def _register_tfds() -> None:
    path = os.environ.get("PLUG_JAX_VOCABULARY")
    try:
        vocabulary = load_vocabulary(path) if path else default_vocabulary()
    except PlugError as error:
        raise PlugError(f"The environment variable PLUG_JAX_VOCABULARY: {error}") from error
    for name, (dataset, splits) in _TFDS.items():
        source = TfdsSource(dataset, splits=splits)
        add_structbert(f"structbert_{name}", source, vocabulary, cleaning=_markup(dataset))
        add_palm(f"palm_{name}", source, vocabulary, cleaning=_markup(dataset))


_register_tfds()
