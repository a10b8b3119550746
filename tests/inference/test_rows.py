"""Rows from JSON lines and from seqio tasks."""

import gzip
import json

import pytest
import seqio
import tensorflow as tf

from plug_jax.data.vocabularies.vocabulary import load_vocabulary
from plug_jax.errors import PlugError
from plug_jax.inference.rows import Row, RowSource, contents_of, to_json
from plug_jax.tasks import pretrain
from tests.stored_model import CHARACTERS


def rows_of(path, content):
    path.write_bytes(content)
    return list(RowSource(files=str(path)))


def test_each_line_is_a_row_and_a_bad_one_says_where_it_is(tmp_path):
    content = (
        b'\xef\xbb\xbf{"prompt": "\xe5\xa4\xa9", "id": 7}\r\n'
        b"\n  \n"  # skipped
        b"{not json}\n"
        b'["a"]\n'
        b'"text"\n'
        b'{"prompt": "\xff"}\n'
        b'{"a": 1.5}'  # without a final line feed
    )
    rows = rows_of(tmp_path / "a.jsonl", content)
    assert [row.fields for row in rows] == [
        {"prompt": "天", "id": 7},
        {"line": "{not json}"},
        {"line": '["a"]'},
        {"line": '"text"'},
        {"line": '{"prompt": "\\xff"}'},
        {"a": 1.5},
    ]
    where = f"{tmp_path / 'a.jsonl'}, line"
    assert [row.error for row in rows] == [
        None,
        f"{where} 4 is not JSON: Expecting property name enclosed in double quotes: line 1 "
        "column 2 (char 1)",
        f"{where} 5 holds no JSON object but a list",
        f"{where} 6 holds no JSON object but a string",
        f"{where} 7 is not UTF-8",
        None,
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a": NaN}',
        b'{"a": [-Infinity]}',
        b'{"a": 1e400}',
    ],
)
def test_json_that_python_cannot_hold_is_a_bad_row(tmp_path, line):
    [row] = rows_of(tmp_path / "a.jsonl", line + b"\n")
    assert "is not JSON" in row.error


def test_files_come_in_order_and_compressed_ones_too(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    parts = gzip.compress(b'{"text": "c"}\n') + gzip.compress(b'{"text": "d"}\n')
    (tmp_path / "c.jsonl.gz").write_bytes(parts)
    source = RowSource(files=[str(tmp_path / "c*"), str(tmp_path / "[ab].jsonl")])
    assert [row.fields["text"] for row in source] == ["c", "d", "a", "b"]
    assert list(source) == list(source)
    assert [p.rsplit("/", 1)[1] for p in source.paths()] == ["c.jsonl.gz", "a.jsonl", "b.jsonl"]


def test_a_damaged_file_ends_the_job(tmp_path):
    whole = gzip.compress(to_json({"text": CHARACTERS * 50}) + b"\n")
    for content in (whole[:-20], b'{"text": "not compressed"}\n'):
        with pytest.raises(PlugError, match="damaged or not compressed"):
            rows_of(tmp_path / "a.jsonl.gz", content)


def test_what_to_read_has_to_be_named(tmp_path):
    for names in ({}, {"files": "a.jsonl", "mixture_or_task_name": "b"}):
        with pytest.raises(PlugError, match="either files"):
            RowSource(**names)
    with pytest.raises(PlugError, match="No file of rows matches"):
        list(RowSource(files=str(tmp_path / "*.jsonl")))
    with pytest.raises(PlugError, match="No task or mixture is called 'nothing'"):
        list(RowSource(mixture_or_task_name="nothing"))


def test_the_first_field_that_there_is():
    row = Row({"text": "b", "prompt": "a", "inputs": "c", "n": 3, "half": "\ud800"})
    assert row.text(("prompt", "text")) == "a"
    assert row.text(("target", "text")) == "b"
    with pytest.raises(PlugError, match="no field 'x' or 'y'; the row has text, prompt, inputs"):
        row.text(("x", "y"))
    with pytest.raises(PlugError, match="'n' must hold text, not a number"):
        row.text(("n",))
    with pytest.raises(PlugError, match="half of a surrogate pair"):
        row.text(("half",))


@pytest.mark.parametrize("value", [{"a": "天\n"}, {"a": "\ud800x"}, {"a": [1.5, None, {}]}])
def test_json_comes_back(value):
    line = to_json(value)
    assert b"\n" not in line
    assert json.loads(line.decode()) == value


def test_contents_tell_other_rows_apart():
    rows = [Row({"a": "x"}), Row({"a": "y"})]
    assert contents_of(rows) == contents_of(list(rows))
    assert contents_of(rows).rows == 2
    others = [
        [Row({"a": "y"}), Row({"a": "x"})],
        rows[:1],
        [Row({"a": "x"}), Row({"a": "y"}, ids={"prompt": [1]})],
        [Row({"a": "x"}), Row({"b": "y"})],
    ]
    assert len({contents_of(of).sha256 for of in [rows, *others]}) == 5


def test_a_stage_2_example_is_its_clean_text_and_its_target(tmp_path):
    """The parts of a document, without the masks of the encoder's input, and with their tokens."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text(f"{CHARACTERS}\n{CHARACTERS[::-1]}\n", encoding="utf-8")
    files = {"train_files": None, "validation_files": str(tmp_path / "a.txt")}
    files["train_files"] = files["validation_files"]
    vocabulary = str(tmp_path / "vocab.txt")
    name = pretrain.palm_text(
        **files, vocabulary=vocabulary, min_length=8, max_length=24, name="rows_palm"
    )
    source = RowSource(mixture_or_task_name=name, module="tasks.pretrain")
    rows = list(source)
    assert rows and rows == list(source)
    documents = (CHARACTERS, CHARACTERS[::-1])
    for row in rows:
        assert any(row.fields["prompt"] + row.fields["target"] in d for d in documents)
        v = load_vocabulary(vocabulary)
        assert row.ids["prompt"] == [v.cls_id, *v.encode(row.fields["prompt"]), v.sep_id]
        assert row.ids["target"] == [*v.encode(row.fields["target"]), v.sep_id]
    assert source.vocabulary() == load_vocabulary(vocabulary)
    with pytest.raises(PlugError, match="'rows_palm' has no split 'test', only train, validation"):
        list(RowSource(mixture_or_task_name=name, split="test"))


def test_an_example_of_another_task_is_its_features_as_text():
    vocabulary = seqio.ByteVocabulary()
    examples = {"inputs": ["Ab", "天"], "targets": ["c", "d"], "kind": [1, 2]}
    feature = seqio.Feature(vocabulary, add_eos=False)
    task = seqio.Task(
        "rows_other",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(examples),
            splits=["validation"],
        ),
        preprocessors=[
            lambda dataset: dataset.map(lambda e: {**e, "inputs": tf.strings.lower(e["inputs"])}),
            seqio.preprocessors.tokenize,
        ],
        output_features={"inputs": feature, "targets": feature},
    )
    seqio.TaskRegistry.add_provider("rows_other", task)
    source = RowSource(mixture_or_task_name="rows_other")
    assert [row.fields for row in source] == [
        {"inputs": "ab", "targets": "c", "kind": 1},
        {"inputs": "天", "targets": "d", "kind": 2},
    ]
    assert source.vocabulary() is None


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_carriage_returns_of_text(tmp_path, pack):
    path = tmp_path / ("a.txt.gz" if pack is gzip.compress else "a.txt")
    with pytest.raises(PlugError, match=r"a\.txt.* ends no line with a line feed but has carriage"):
        rows_of(path, pack("天\r地\r".encode()))
    assert [row.fields["text"] for row in rows_of(path, pack("天\r地\r\n人\r".encode()))] == [
        "天\r地",
        "人",
    ]
    assert [row.fields["text"] for row in rows_of(path, pack("天\r".encode()))] == ["天"]
