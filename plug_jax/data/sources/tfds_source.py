"""Documents from TensorFlow Datasets (TFDS) already prepared on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.utils import file_utils

from plug_jax.data.drops import count_changes
from plug_jax.errors import PlugError


class TfdsSource(seqio.TfdsDataSource):
    """Documents of a dataset that TFDS prepared, as {"text": tf.string []}; sharded by file.

    Nothing is ever downloaded or generated, and nothing is looked up before a split is listed or
    read. The data directory is seqio's override, `data_dir`, or TFDS's default (the environment
    variable TFDS_DATA_DIR, or ~/tensorflow_datasets).

    Raises PlugError when a split is listed or read: for data that are not prepared, or lack the
    split or text feature.
    """

    def __init__(
        self,
        dataset: str,
        *,
        splits: Mapping[str, str],
        data_dir: str | None = None,
        text_feature: str = "text",
    ) -> None:
        """Describes the dataset.

        Args:
          dataset: its name with config and version, such as "wiki40b/zh-cn:1.3.0".
          splits: TFDS splits or slices by split, such as {"train": "train[:99%]"}.
          data_dir: TFDS's directory, if not the default.
          text_feature: the feature with the document.
        """
        if ":" not in dataset:
            raise PlugError(f"Name the version of {dataset!r} too, as in wiki40b/zh-cn:1.3.0.")
        super().__init__(dataset, tfds_data_dir=data_dir, splits=dict(splits), read_only=True)
        self._tfds_dataset = _PreparedDataset(
            dataset, data_dir=data_dir, split_map=dict(splits), text_feature=text_feature
        )
        self._tfds_splits = dict(splits)
        self._text_feature = text_feature

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """The documents of a split."""
        self._check_split(split)
        dataset = super().get_dataset(split, shuffle, seed, shard_info)
        if self._text_feature == "text":
            return dataset
        return dataset.map(lambda record: {"text": record[self._text_feature]})

    def list_shards(self, split: str) -> list[str]:
        """Paths of the split's files."""
        self._check_split(split)
        return [str(path) for path in super().list_shards(split)]

    def description(self, split: str) -> dict[str, str]:
        """What of the dataset a split reads, for JSON; nothing is looked up."""
        return {
            "name": self.tfds_dataset.name,
            "slice": self._tfds_splits[split],
            "text_feature": self._text_feature,
        }

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise PlugError(f"There is no {split!r} split, only {', '.join(self.splits)}.")
        name, known = self._tfds_splits[split], self.tfds_dataset.builder.info.splits
        try:
            known[name]
        except (KeyError, ValueError) as error:
            raise PlugError(
                f"{self.tfds_dataset.name} has no split {name!r}, only {', '.join(known)}."
            ) from error


class _PreparedDataset(seqio.utils.LazyTfdsLoader):
    """seqio's loader, only for datasets whose files exist."""

    def __init__(
        self, name: str, *, data_dir: str | None, split_map: dict[str, str], text_feature: str
    ) -> None:
        # Read no other feature.
        decoders = tfds.decode.PartialDecoding({text_feature: True})
        super().__init__(
            name, data_dir=data_dir, split_map=split_map, decoders=decoders, read_only=True
        )
        self._text_feature = text_feature

    @property
    def read_config(self) -> tfds.ReadConfig:
        """Disables TFDS's cache in memory, which every iterator checkpoint would include."""
        return dataclasses.replace(super().read_config, try_autocache=False)

    def _get_builder(self, split: str | None = None) -> tfds.core.DatasetBuilder:
        # Without files, TFDS would use the dataset's code, and look up metadata online.
        if not self.is_memoized(split):
            try:
                read_only_builder.builder_from_files(self.name, data_dir=self.data_dir)
            except tfds.core.DatasetNotFoundError as error:
                directories = file_utils.list_data_dirs(given_data_dir=self.data_dir)
                where = ", ".join(map(str, directories))
                raise PlugError(
                    f"TFDS has no data of {self.name} in {where}. Prepare them with `tfds build "
                    f"{self.name} --data_dir={directories[0]}`, or say where they are with the "
                    "environment variable TFDS_DATA_DIR or the task's data_dir."
                ) from error
        builder = super()._get_builder(split)
        if self._text_feature not in builder.info.features:
            raise PlugError(
                f"{self.name} has no feature {self._text_feature!r}, only "
                f"{', '.join(sorted(builder.info.features))}."
            )
        return builder


@dataclasses.dataclass(frozen=True)
class Wiki40bMarkup:
    r"""Turns wiki40b's markup into plain lines: title, headings and paragraphs.

    A step of `documents.clean_documents`; texts that it changes are counted as
    "wiki40b_markup".

    Example: "\n_START_ARTICLE_\n天\n_START_PARAGRAPH_\n天亮了。_NEWLINE_下雨了。" becomes
    "天\n天亮了。\n下雨了。".
    """

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Texts tf.string [d] to tf.string [d]."""
        marks = r"\s*_START_(?:ARTICLE|SECTION|PARAGRAPH)_\s*|\s*_NEWLINE_\s*"
        plain = tf.strings.strip(tf.strings.regex_replace(texts, marks, "\n"))
        return count_changes(plain, {"wiki40b_markup": tf.math.count_nonzero(plain != texts)})
