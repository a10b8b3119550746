"""Small datasets in TFDS format, under the names of large ones."""

from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds


def build_tfds(
    data_dir: Path,
    name: str,
    splits: dict[str, list[str]],
    *,
    text_feature: str = "text",
    shards: int = 1,
) -> None:
    """Writes texts by split where TFDS looks for NAME, such as "wiki40b/zh-cn:1.3.0".

    They have an id too, as Wikipedia's have. Every n-th text is in the same shard.
    """
    directory = data_dir / name.replace(":", "/")
    directory.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {text_feature: tfds.features.Text(), "wikidata_id": tfds.features.Text()}
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=str(directory),
        dataset_name=name.split("/")[0],
        filetype_suffix="tfrecord",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    infos = []
    for split, texts in splits.items():
        parts = [texts[shard::shards] for shard in range(shards)]
        for shard, part in enumerate(parts):
            path = directory / (
                f"{template.dataset_name}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"
            )
            with tf.io.TFRecordWriter(str(path)) as writer:
                for number, text in enumerate(part):
                    record = {text_feature: text, "wikidata_id": f"Q{number}"}
                    writer.write(features.serialize_example(features.encode_example(record)))
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(part) for part in parts],
                num_bytes=0,
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=str(directory),
        features=features,
        split_infos=infos,
        filename_template=template,
        check_data=False,
    )
