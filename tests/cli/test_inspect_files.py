"""`plug-jax inspect` over files without a registered task, and seqio's own tool."""

import json
from pathlib import Path

import pytest
import seqio
import tensorflow as tf

from plug_jax.cli.main import main
from plug_jax.data.vocabularies.vocabulary import default_vocabulary, save_vocabulary
from tests.inspected_examples import make_vocabulary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return make_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def test_records_of_tokens(vocabulary, tmp_path, capsys):
    save_vocabulary(vocabulary, tmp_path)
    ids = tf.train.Feature(
        int64_list=tf.train.Int64List(value=vocabulary.encode("天地人你我" * 40))
    )
    record = tf.train.Example(features=tf.train.Features(feature={"tokens": ids}))
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for _ in range(20):
            writer.write(record.SerializeToString())
    files = ["--input", str(tmp_path / "a.tfrecord"), "--vocabulary", str(tmp_path)]
    assert main(["inspect", *files, "--stage", "2", "--format", "tokens", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] >= 20


def test_the_field_of_json_lines_is_named(vocabulary, tmp_path, capsys):
    save_vocabulary(vocabulary, tmp_path)
    line = json.dumps({"content": "天地人你我，天地人。" * 20}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f"{line}\n" * 20)
    files = ["--input", str(tmp_path / "a.jsonl"), "--vocabulary", str(tmp_path), "--stage", "2"]
    options = ["--format", "jsonl", "--text_key", "content", "--json"]
    assert main(["inspect", *files, *options]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] >= 20
    assert main(["inspect", *files, *options[:2]]) == 2
    said = capsys.readouterr().err
    assert "missing_text_key 20. Name the field that has the text" in said and "--text_key" in said
    assert main(["inspect", *files, "--text_key", ""]) == 2
    assert "'' is for JSON lines" in capsys.readouterr().err
    assert main(["inspect", *files, "--text_key", "content"]) == 2
    assert "'content' is for JSON lines, but the file format is 'lines'" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_found_first(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("天地人你我，天地人。\n" * 20)
    (tmp_path / "z.txt").symlink_to(tmp_path / "gone.txt")
    assert main(["inspect", "--input", f"{tmp_path}/*.txt", "--stage", "2"]) == 2
    captured = capsys.readouterr()
    assert "are missing or cannot be read: " in captured.err and not captured.out


@pytest.mark.slow
def test_files_of_ones_own(vocabulary, tmp_path, capsys):
    save_vocabulary(vocabulary, tmp_path)
    for number in (1, 2):
        (tmp_path / f"{number}.txt").write_text("天地人你我，天地人。\n" * 20 + "\n我。\n")
    files = ["--input", str(tmp_path / "1.txt"), str(tmp_path / "2.txt")]
    common = [*files, "--vocabulary", str(tmp_path), "--json"]
    registered = seqio.TaskRegistry.names()
    assert main(["inspect", *common, "--stage", "2", "--format", "paragraphs"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["lengths"]["encoder"]["longest_asked"]) == ("stage2_of_input", 512)
    assert found["drops"]["document_too_short"] == 2  # both from a single line
    assert found["shares"]["mask_rate"]["target"] == 0.15
    assert seqio.TaskRegistry.names() == registered
    assert main(["inspect", *files, "--json", "--stage", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["vocabulary"] == repr(default_vocabulary())
    assert found["shares"]["label_0"]["total"] == found["examples"] > 5
    assert found["shares"]["label_0"]["target"] == pytest.approx(1 / 3)
    missing = [
        "inspect",
        "--input",
        str(tmp_path / "3.txt"),
        "--vocabulary",
        str(tmp_path),
        "--stage",
        "1",
    ]
    assert main(missing) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "No text file matches" in captured.err
    assert main(["inspect", *common, "--stage", "1", "--split", "validation"]) == 2
    assert "no split 'validation'" in capsys.readouterr().err
