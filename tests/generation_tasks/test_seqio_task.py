"""The tasks that gin names: tokens of official and own files, and data positions."""

import json

import numpy as np
import pytest

from plug_jax.data.pipeline import pipeline
from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES
from plug_jax.errors import PlugError
from plug_jax.inference.rows import RowSource
from plug_jax.tasks import generation
from tests.generation_tasks.official_files import QUESTIONS, WRITERS, write_lines

UNK, CLS, SEP = 1, 2, 3
LETTERS = "".join(dict.fromkeys("".join(map("".join, QUESTIONS)) + "答案上下文问题：[]"))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """The path of a vocabulary with an id per character."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_PIECES, *LETTERS]) + "\n", encoding="utf-8")
    return str(path)


def ids(text):
    """Ids of characters; | is [SEP]."""
    return [SEP if c == "|" else len(SPECIAL_PIECES) + LETTERS.index(c) for c in text]


def examples(name, split="train"):
    task = pipeline.find_task(name)
    dataset = task.get_dataset(None, split, shuffle=False, trim_output_features=False)
    return list(dataset.as_numpy_iterator())


def test_the_features_of_a_question(tmp_path, vocabulary):
    directory = str(WRITERS["dureader_qg"](tmp_path))
    name = generation.official(task="dureader_qg", data_dir=directory, vocabulary=vocabulary)
    assert name == "dureader_qg"
    first = examples(name)[0]
    source, target = ids("北京|中国的首都是北京。"), ids("首都在哪？")
    assert first.pop("encoder_input_tokens").tolist() == [CLS, *source, SEP]
    assert first.pop("encoder_token_types").tolist() == [0] * (len(source) + 2)
    assert first.pop("decoder_input_tokens").tolist() == [CLS, *target]
    assert first.pop("decoder_target_tokens").tolist() == [*target, SEP]
    assert first.pop("decoder_loss_weights").tolist() == [1] * 6
    assert first.pop("references").tolist() == ["首都在哪？".encode()]
    assert first == {"id": b"0"}


def test_templates_and_their_prefix(tmp_path, vocabulary):
    directory = str(WRITERS["dureader_robust"](tmp_path))
    first = examples(
        generation.official(
            task="dureader_robust", data_dir=directory, vocabulary=vocabulary, layout="paddlenlp"
        )
    )[0]
    source = ids("答案：北京|上下文：中国的首都是北京。")
    assert first["encoder_input_tokens"].tolist() == [CLS, *source, SEP]
    assert first["decoder_target_tokens"].tolist() == [*ids("问题：首都在哪？"), SEP]
    assert first["references"].tolist() == ["首都在哪？".encode()]
    assert first["target_prefix"] == "问题：".encode()


def own(tmp_path, vocabulary, rows, **options):
    path = write_lines(tmp_path / "own.jsonl", rows)
    files = {"train_file": str(path), "test_file": str(path)}
    return generation.source_target(**files, vocabulary=vocabulary, **options)


def test_what_is_too_long_is_cut_and_closed(tmp_path, vocabulary):
    rows = [{"source": "北京小雨", "target": "三天去了"}]
    lengths = {"max_source_length": 5, "max_target_length": 4}
    (cut,) = examples(own(tmp_path, vocabulary, rows, **lengths))
    assert cut["encoder_input_tokens"].tolist() == [CLS, *ids("北京小"), SEP]
    # [CLS] y [SEP] has 4 tokens, of which the inputs have the first 3 and the targets the last.
    assert cut["decoder_input_tokens"].tolist() == [CLS, *ids("三天")]
    assert cut["decoder_target_tokens"].tolist() == [*ids("三天"), SEP]
    assert cut["references"].tolist() == ["三天去了".encode()]
    with pytest.raises(PlugError, match="at least 3 .* not 384 and 2"):
        examples(own(tmp_path, vocabulary, rows, max_target_length=2))


def test_text_that_spells_sep_is_no_sep(tmp_path, vocabulary):
    rows = [{"a": "[SEP]", "b": "三", "target": ["[SEP]", "去"]}]
    (example,) = examples(own(tmp_path, vocabulary, rows, source=("{a}", "{b}了")))
    spelt = [*ids("["), UNK, *ids("]")]  # sep is a word that the vocabulary lacks
    assert example["encoder_input_tokens"].tolist() == [CLS, *spelt, SEP, *ids("三了"), SEP]
    assert example["decoder_target_tokens"].tolist() == [*spelt, SEP]
    assert example["references"].tolist() == [b"[SEP]", "去".encode()]


def test_a_row_without_a_target_weighs_nothing(tmp_path, vocabulary):
    rows = [{"source": "三"}, {"source": "天", "target": "去"}]
    name = own(tmp_path, vocabulary, rows, target_prefix="问")
    none, some = examples(name, "test")
    assert none["decoder_input_tokens"].tolist() == [CLS]
    assert none["decoder_target_tokens"].tolist() == [SEP]
    assert none["decoder_loss_weights"].tolist() == [0] and none["references"].size == 0
    assert some["decoder_loss_weights"].tolist() == [1, 1, 1]
    with pytest.raises(PlugError, match="own.jsonl, line 1: there is no 'target'"):
        examples(name, "train")
    with pytest.raises(PlugError, match="no split 'validation', only train, test"):
        list(RowSource(mixture_or_task_name=name))


def test_rows_for_infer_carry_ids_and_references(tmp_path, vocabulary):
    rows = [{"id": 7, "source": "三天", "target": ["去了", "去"]}]
    name = own(tmp_path, vocabulary, rows, max_target_length=3)
    (row,) = RowSource(mixture_or_task_name=name, split="test")
    assert row.ids["prompt"] == [CLS, *ids("三天"), SEP]
    references = {"references": ["去了", "去"]}
    assert row.fields == {"id": "7", "prompt": "三天", "target": "去", **references}


# --- data positions


def numbered(tmp_path, vocabulary, count):
    """A task whose example n has n + 1 text tokens."""
    return own(tmp_path, vocabulary, [{"source": "天" * n, "target": "去"} for n in range(count)])


def iterator(name, **changes):
    settings = {
        "feature_lengths": {"encoder": 32, "decoder": 4},
        "split": "train",
        "batch_size": 2,
        "shuffle": True,
        "seed": 3,
        "pack": False,
    }
    config = pipeline.DatasetConfig(mixture_or_task_name=name, **(settings | changes))
    return pipeline.make_iterator(config)


def taken(batches, count):
    """The numbers of the examples in this many batches."""
    found = (next(batches)["encoder_segment_ids"].sum(axis=1) - 2 for _ in range(count))
    return np.concatenate(list(found)).tolist()


def test_every_epoch_has_all_examples_in_an_order_of_its_own(tmp_path, vocabulary):
    name = numbered(tmp_path, vocabulary, 20)
    epochs = np.array(taken(iterator(name), 30)).reshape(3, 20).tolist()
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(20)]}) == 4
    assert taken(iterator(name), 10) == epochs[0]
    assert taken(iterator(name, seed=4), 10) != epochs[0]
    held_out = iterator(name, shuffle=False, num_epochs=1)
    assert taken(held_out, 10) == list(range(20))


def test_streams_share_the_examples(tmp_path, vocabulary):
    name = numbered(tmp_path, vocabulary, 20)
    both = np.array(taken(iterator(name, streams=2), 20)).reshape(2, 10, 2)
    for epoch in both:
        assert sorted(epoch.reshape(-1).tolist()) == list(range(20))


def test_a_place_is_gone_on_from_in_the_middle_of_an_epoch(tmp_path, vocabulary):
    name = numbered(tmp_path, vocabulary, 20)
    first = iterator(name)
    before = taken(first, 13)
    first.save(tmp_path / "place")
    after = taken(first, 12)
    again = iterator(name)
    again.restore(tmp_path / "place")
    assert taken(again, 12) == after
    assert taken(iterator(name), 25) == before + after


def test_other_data_are_not_gone_on_in(tmp_path, vocabulary):
    name = numbered(tmp_path, vocabulary, 20)
    batches = iterator(name)
    next(batches)
    batches.save(tmp_path / "place")
    numbered(tmp_path, vocabulary, 21)
    with pytest.raises(PlugError, match=r"files: .*own.jsonl \([0-9,]+ bytes\) then"):
        iterator(name).restore(tmp_path / "place")
    rows = [{"text": "天" * n, "target": "去"} for n in range(20)]
    own(tmp_path, vocabulary, rows, source="{text}", max_source_length=20)
    with pytest.raises(PlugError) as error:
        iterator(name).restore(tmp_path / "place")
    assert "max_source_length: 384 then, 20 now" in str(error.value)
    assert "source.reader.arguments.layout" in str(error.value)


def test_an_example_that_does_not_fit_its_row_is_an_error(tmp_path, vocabulary):
    name = own(tmp_path, vocabulary, [{"source": json.dumps("天" * 40), "target": "去"}])
    with pytest.raises(PlugError, match="32"):
        next(iterator(name))
