import pickle

import pytest
import tensorflow as tf

from plug_jax.data.drops import change_counts, reset_counts
from plug_jax.data.sources.tfds_source import TfdsSource, Wiki40bMarkup
from plug_jax.errors import PlugError
from tests.tfds_data import build_tfds

NAME = "wiki40b/zh-cn:1.3.0"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    texts = [f"第{number}篇" for number in range(20)]
    build_tfds(directory, NAME, {"train": texts, "validation": ["完"]}, shards=4)
    return str(directory)


def texts(dataset):
    assert dataset.element_spec == {"text": tf.TensorSpec([], tf.string)}
    return [record["text"].decode() for record in dataset.as_numpy_iterator()]


def test_splits_and_slices_by_the_name_of_ours(data_dir):
    splits = {"train": "train[:75%]", "held_out": "train[75%:]", "validation": "validation"}
    source = TfdsSource(NAME, splits=splits, data_dir=data_dir)
    source = pickle.loads(pickle.dumps(source))
    found = {split: texts(source.get_dataset(split, shuffle=False)) for split in source.splits}
    assert {split: len(documents) for split, documents in found.items()} == {
        "train": 15,
        "held_out": 5,
        "validation": 1,
    }
    assert sorted(found["train"] + found["held_out"]) == sorted(f"第{n}篇" for n in range(20))
    assert found["validation"] == ["完"]
    assert source.num_input_examples("train") == 15
    assert len(source.list_shards("train")) == 3  # whole files of 5


def test_another_text_feature(tmp_path):
    build_tfds(tmp_path, "news/zh:1.0.0", {"train": ["一", "二"]}, text_feature="content")
    options = dict(splits={"train": "train"}, data_dir=str(tmp_path))
    source = TfdsSource("news/zh:1.0.0", text_feature="content", **options)
    assert texts(source.get_dataset("train", shuffle=False)) == ["一", "二"]
    with pytest.raises(PlugError, match="no feature 'text', only content, wikidata_id"):
        TfdsSource("news/zh:1.0.0", **options).list_shards("train")


def test_iterators_restore_and_hold_no_cache(data_dir, tmp_path):
    source = TfdsSource(NAME, splits={"train": "train"}, data_dir=data_dir)

    def start():
        return iter(source.get_dataset("train", shuffle=True, seed=4))

    expected = [record["text"].numpy() for record in start()]
    iterator = start()
    for _ in range(7):
        next(iterator)
    saved = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "checkpoint"))
    restored = start()
    tf.train.Checkpoint(iterator=restored).restore(saved).assert_consumed()
    assert [record["text"].numpy() for record in restored] == expected[7:]
    assert not source.tfds_dataset.read_config.try_autocache


def test_missing_data_are_named_with_what_to_do(tmp_path):
    source = TfdsSource(NAME, splits={"train": "train"}, data_dir=str(tmp_path))
    assert tuple(source.splits) == ("train",)  # nothing has been read so far
    command = f"tfds build {NAME} --data_dir={tmp_path}"
    for ask in (source.list_shards, source.get_dataset, source.num_input_examples):
        with pytest.raises(PlugError, match=f"no data of {NAME} in {tmp_path}.*{command}"):
            ask("train")
    build_tfds(tmp_path, NAME, {"train": ["一"]})
    assert texts(source.get_dataset("train")) == ["一"]


def test_splits_that_are_not_there(data_dir):
    source = TfdsSource(NAME, splits={"train": "test[:1%]"}, data_dir=data_dir)
    with pytest.raises(PlugError, match=r"no split 'test\[:1%\]', only train, validation"):
        source.get_dataset("train")
    with pytest.raises(PlugError, match="no 'validation' split, only train"):
        source.list_shards("validation")


def test_a_name_without_a_version():
    with pytest.raises(PlugError, match="Name the version of 'wiki40b/zh-cn'"):
        TfdsSource("wiki40b/zh-cn", splits={"train": "train"})


def test_markup_as_in_the_docstring():
    reset_counts()
    marked = "\n_START_ARTICLE_\n天\n_START_PARAGRAPH_\n天亮了。_NEWLINE_下雨了。"
    section = (
        "\n_START_ARTICLE_\n甲\n_START_SECTION_\n乙\n_START_SECTION_\n丙\n_START_PARAGRAPH_\n丁"
    )
    plain = Wiki40bMarkup()(tf.constant([marked, "一\n\n二", section]))
    assert [text.decode() for text in plain.numpy()] == [
        "天\n天亮了。\n下雨了。",
        "一\n\n二",
        "甲\n乙\n丙\n丁",
    ]
    assert change_counts() == {"wiki40b_markup": 2}
