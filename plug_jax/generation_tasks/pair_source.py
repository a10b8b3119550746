"""Source-target pairs: a seqio source, and the features for an encoder-decoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.errors import PlugError
from plug_jax.generation_tasks.records import Pair

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

# (path, split) to pairs.
ReadPairs = Callable[[str, str], Sequence[Pair]]


class PairSource(seqio.DataSource):
    """Pairs in memory, as strings; a split is one file, read on first use.

    An example is {"id": [], "source": [parts], "target": [] ("" without references),
    "references": [n]}, all tf.string. Every epoch shuffles the whole split anew, and a position is
    a number: iterator checkpoints do not grow with the data.
    """

    def __init__(self, read: ReadPairs, find: Callable[[str], str], splits: Sequence[str]) -> None:
        """`find` returns the path of a split; it and `read` raise PlugError for errors."""
        super().__init__(splits, performs_internal_shuffling=True)
        self._reader = read  # `plug_jax.data.descriptions` looks for this name
        self._find = find
        self._tables: dict[str, _Table] = {}

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """False: seqio gives each stream every n-th example."""
        return False

    def list_shards(self, split: str) -> list[str]:
        """The path of the split's file."""
        return [self._find(split)]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """The examples of a split."""
        if split not in self._tables:
            with tf.init_scope():
                self._tables[split] = _Table.of(self._reader(self._find(split), split))
        table = self._tables[split]
        size = int(table.ids.shape[0])
        places = _shuffled(size, seed) if shuffle else tf.data.Dataset.range(size)
        return places.map(table.example, num_parallel_calls=tf.data.AUTOTUNE)


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    """Pairs as string tensors."""

    ids: tf.Tensor  # [n]
    sources: tf.Tensor  # [n, parts]
    references: tf.Tensor  # of all pairs, [r]
    ends: tf.Tensor  # int64 [n + 1]: pair i has references ends[i] to ends[i + 1]

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> _Table:
        return cls(
            tf.constant([pair.id for pair in pairs]),
            tf.constant([list(pair.source) for pair in pairs]),
            tf.constant([text for pair in pairs for text in pair.references], tf.string),
            tf.constant(np.cumsum([0, *(len(pair.references) for pair in pairs)]), tf.int64),
        )

    def example(self, place: tf.Tensor) -> dict[str, tf.Tensor]:
        references = self.references[self.ends[place] : self.ends[place + 1]]
        return {
            "id": self.ids[place],
            "source": self.sources[place],
            "target": tf.concat([references, [""]], axis=0)[0],
            "references": references,
        }


def _shuffled(size: int, seed: int | None) -> tf.data.Dataset:
    """0 to size - 1 in an order that is drawn anew at every iteration."""

    def order(drawn: tf.Tensor) -> tf.data.Dataset:
        key = tf.cast(tf.stack([drawn, 0]), tf.uint32)
        shuffle = functools.partial(
            tf.random.experimental.index_shuffle, seed=key, max_index=size - 1
        )
        return tf.data.Dataset.range(size).map(shuffle)

    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    return draws.take(1).flat_map(order)


def source_target_features(
    dataset: tf.data.Dataset,
    *,
    vocabulary: PlugVocabulary,
    max_source_length: int,
    max_target_length: int,
    target_prefix: str = "",
) -> tf.data.Dataset:
    """Examples of a `PairSource` to encoder and decoder features.

    [SEP] between and after the parts of the source is inserted by id, so text cannot spell it. Long
    texts are cut at the end, as in the released PLUG, and still closed by [SEP]. Without a
    reference the decoder's target is only [SEP], with weight 0. The strings "id", "references" and,
    if set, "target_prefix" are kept.

    Example, with one id a character, the source ("北京", "首都是北京") and the target "是哪":

        encoder_input_tokens     [CLS] 北 京 [SEP] 首 都 是 北 京 [SEP]
        encoder_token_types      [0,   0, 0, 0,    0, 0, 0, 0, 0, 0]
        decoder_input_tokens     [CLS] 是 哪
        decoder_target_tokens    是 哪 [SEP]
        decoder_loss_weights     [1, 1, 1]

    Args:
      dataset: see `PairSource`.
      vocabulary: that of the tokens.
      max_source_length: maximum encoder tokens, including [CLS] and [SEP].
      max_target_length: maximum tokens of [CLS] target [SEP]; the features have one less.
      target_prefix: the beginning of the target.

    Raises:
      PlugError: lengths that leave no room for a token.
    """
    if min(max_source_length, max_target_length) < 3:
        raise PlugError(
            "max_source_length and max_target_length must be at least 3 ([CLS], a token, [SEP]), "
            f"not {max_source_length} and {max_target_length}."
        )
    cls, sep = [vocabulary.cls_id], [vocabulary.sep_id]

    def features(pair: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        parts = vocabulary.encode_tf(pair["source"])
        seps = tf.fill([parts.nrows(), 1], vocabulary.sep_id)
        source = tf.concat([parts, seps], axis=1).flat_values[:-1]
        encoder = tf.concat([cls, source[: max_source_length - 2], sep], axis=0)
        has_target = tf.size(pair["references"]) > 0
        text = tf.strings.join([target_prefix, pair["target"]])
        target = vocabulary.encode_tf(tf.where(has_target, text, ""))[: max_target_length - 2]
        written = tf.concat([target, sep], axis=0)
        kept = {"id": pair["id"], "references": pair["references"]}
        return {
            "encoder_input_tokens": encoder,
            "encoder_token_types": tf.zeros_like(encoder),
            "decoder_input_tokens": tf.concat([cls, target], axis=0),
            "decoder_target_tokens": written,
            "decoder_loss_weights": tf.fill(tf.shape(written), tf.cast(has_target, tf.int32)),
            **(kept | {"target_prefix": target_prefix} if target_prefix else kept),
        }

    return seqio.map_over_dataset(features)(dataset)
