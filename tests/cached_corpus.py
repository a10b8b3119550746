"""A small corpus of Chinese characters, tasks over it, and the contents of their caches."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json

import seqio
import tensorflow as tf

from plug_jax.data.caching import run as caching
from plug_jax.data.preprocessors.cleaning import MinLength
from plug_jax.data.preprocessors.documents import (
    batch_documents,
    clean_documents,
    tokenize_documents,
)
from plug_jax.data.sources.text_source import TextSource
from plug_jax.data.vocabularies.vocabulary import WordPieceVocabulary

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 200)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FILES = 3


def vocabulary_of(directory, *, more=()):
    path = directory / f"vocab{len(more)}.txt"
    path.write_text("\n".join([*SPECIAL, *CHARACTERS, "。", *more]) + "\n", encoding="utf-8")
    return WordPieceVocabulary(path)


def random_text(rng, length=None):
    length = length or int(rng.integers(5, 80))
    return "".join(rng.choice(CHARACTERS, length)) + "。"


def write_corpus(directory, documents):
    """Documents by file."""
    directory.mkdir(exist_ok=True)
    for number, lines in enumerate(documents):
        path = directory / f"{number}.txt"
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return TextSource(train=f"{directory}/*.txt", validation=f"{directory}/0.txt")


@seqio.map_over_dataset(num_seeds=1)
def mask_at_random(block, seed):
    """Stands in for an objective: random, depending on the seed."""
    kept = tf.random.stateless_uniform(tf.shape(block["tokens"]), seed) > 0.15
    return {"tokens": tf.where(kept, block["tokens"], 4)}


def task_of(source, vocabulary, *, shortest=10, name="small", first=batch_documents):
    return seqio.Task(
        name,
        source=source,
        preprocessors=[
            first,
            functools.partial(clean_documents, steps=[MinLength(shortest)]),
            functools.partial(tokenize_documents, vocabulary=vocabulary),
            seqio.CacheDatasetPlaceholder(),
            mask_at_random,
        ],
        output_features={"tokens": seqio.Feature(vocabulary)},
    )


def cache(task, directory, **options):
    options = {"workers": 1, "splits": ["train"]} | options
    return caching.cache_task(task, str(directory), **options)


def statistics_of(directory, split="train", name="small"):
    return json.loads((directory / name / f"stats.{split}.json").read_text())


def shard_files(directory, name="small"):
    return sorted((directory / name).glob("*.tfrecord-*"))


def digests(directory):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shard_files(directory)
    }


def texts_of(directory, vocabulary, name="small"):
    """The documents in a cache, by shard."""
    shards = []
    for path in shard_files(directory, name):
        documents = []
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            example = tf.train.Example.FromString(record).features.feature
            ids = iter(example["tokens"].int64_list.value)
            for length in example["document_lengths"].int64_list.value:
                documents.append(vocabulary.decode(list(itertools.islice(ids, length))))
        shards.append(documents)
    return shards
