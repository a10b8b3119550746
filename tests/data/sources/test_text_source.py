import gzip
import json
import logging
import os
import pickle
import random
from pathlib import Path

import pytest
import seqio
import tensorflow as tf

from plug_jax.data.drops import drop_counts, reset_counts
from plug_jax.data.sources.text_source import TextSource
from plug_jax.errors import PlugError

FORMATS = ["lines", "paragraphs", "jsonl"]
MARK = b"\xef\xbb\xbf"


@pytest.fixture(autouse=True)
def fresh_counts():
    reset_counts()


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="a.txt"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_file


def read(*, split="train", shard_info=None, **options):
    dataset = TextSource(**options).get_dataset(split, shuffle=False, shard_info=shard_info)
    assert dataset.element_spec == {"text": tf.TensorSpec([], tf.string)}
    return [example["text"].decode() for example in dataset.as_numpy_iterator()]


def in_format(documents, file_format):
    """The content of a file with these documents (of one line each)."""
    if file_format == "jsonl":
        documents = [json.dumps({"text": document}) for document in documents]
    return "".join(d + ("\n\n" if file_format == "paragraphs" else "\n") for d in documents)


# --- file formats


def test_lines(write):
    path = write("第一篇\r\n\n \t\n\u3000\n  第二篇 \n第三篇")
    assert read(train=path) == ["第一篇", "  第二篇 ", "第三篇"]
    assert drop_counts() == {}


def test_paragraphs_as_in_the_docstring(write):
    path = write("第一行\n第二行\n\n另一篇\n")
    assert read(train=path, file_format="paragraphs") == ["第一行\n第二行", "另一篇"]


def test_paragraphs_are_separated_by_any_number_of_blank_lines(write):
    path = write("\n\u3000\na\r\nb\r\n\r\n \n\nc\n\n\nd\n e")
    assert read(train=path, file_format="paragraphs") == ["a\nb", "c", "d\n e"]
    assert drop_counts() == {}


def test_jsonl(write):
    records = [{"text": "一\n二", "x": [1]}, {"x": None, "text": "\x00尾\x00"}]
    path = write("\n".join(map(json.dumps, records)) + "\n\n")
    assert read(train=path, file_format="jsonl") == ["一\n二", "\x00尾\x00"]
    assert drop_counts() == {}


def test_the_text_key_can_be_named(write):
    path = write('{"text": "no", "content": "yes"}\n')
    assert read(train=path, file_format="jsonl", text_key="content") == ["yes"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_byte_order_mark_is_removed_at_the_start_only(write, file_format):
    content = MARK + in_format(["一", "二"], file_format).encode()
    assert read(train=write(content), file_format=file_format) == ["一", "二"]
    path = write(in_format(["一", "\ufeff二"], file_format), "b.txt")
    assert read(train=path, file_format=file_format) == ["一", "\ufeff二"]


@pytest.mark.parametrize("file_format", ["lines", "paragraphs"])
def test_control_characters_stay(write, file_format):
    path = write("a\x00b\x01\x1fc\x7f\x00\n")
    assert read(train=path, file_format=file_format) == ["a\x00b\x01\x1fc\x7f\x00"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_document_of_5_megabytes_on_one_line(write, file_format):
    document = "长" * 1_750_000
    path = write(in_format([document, "短"], file_format))
    assert read(train=path, file_format=file_format) == [document, "短"]


def test_a_paragraph_document_of_many_lines(write):
    lines = [f"{i}" + "行" * (i % 400) for i in range(1500)]
    path = write("\n".join(lines) + "\n\n" + "尾")
    assert read(train=path, file_format="paragraphs") == ["\n".join(lines), "尾"]


# --- compressed files


@pytest.mark.parametrize("file_format", FORMATS)
def test_compressed_files_read_as_plain_ones(write, tmp_path, file_format):
    content = MARK + in_format(["一", "坏", "二\x00"], file_format).encode()
    content = content.replace("坏".encode(), b"\xff")
    write(content)
    write(gzip.compress(content), "b.txt.gz")
    documents = read(train=[f"{tmp_path}/a.txt"], file_format=file_format)
    # In JSON the bad byte stands in for an escape.
    assert documents[0] == "一" and len(documents) in (2, 3)
    expected = drop_counts()
    reset_counts()
    assert read(train=f"{tmp_path}/*.gz", file_format=file_format) == documents
    assert drop_counts() == expected


def test_compressed_files_of_several_members(write):
    """As written by `cat a.gz b.gz` and parallel compressors; plain files may be among them."""
    members = gzip.compress("一\n二\n三".encode()) + gzip.compress(b"3\n4\n") + gzip.compress(b"")
    paths = [write(members, "a.gz"), write("五", "b.txt")]
    assert read(train=paths) == ["一", "二", "三3", "4", "五"]
    assert drop_counts() == {}


def noise(count):
    """Incompressible lines."""
    draw = random.Random(1)
    return "".join(f"{draw.getrandbits(200):x}\n" for _ in range(count)).encode()


DAMAGE = {
    "cut short": lambda packed: packed[: len(packed) // 2],
    "without its checksum": lambda packed: packed[:-3],
    "bytes changed": lambda packed: packed[:70_000] + b"XXXXXXXX" + packed[70_008:],
    "not compressed": lambda packed: gzip.decompress(packed),
    "an empty part in the middle": lambda packed: packed + gzip.compress(b"") + packed,
    "followed by something": lambda packed: packed + b"\x00\x00",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_left_out_and_counted(write, damage):
    bad = write(DAMAGE[damage](gzip.compress(noise(5000))), "a.gz")
    assert read(train=[bad, write(gzip.compress("好".encode()), "b.gz")]) == ["好"]
    assert drop_counts() == {"damaged_file": 1}


def test_nothing_but_empty_and_damaged_files(write):
    blank = gzip.compress(MARK + b"\n \n")
    paths = [write(b"", "a.gz"), write(blank, "b.gz"), write(b"no gzip", "c.gz")]
    with pytest.raises(PlugError, match=r"empty or damaged: .*a\.gz, .*b\.gz, .*c\.gz\."):
        read(train=paths)
    assert read(train=[*paths, write("一", "d.txt")]) == ["一"]
    assert drop_counts() == {"empty_file": 2, "damaged_file": 1}


# --- file patterns


def test_any_file_system_of_tensorflow():
    """Such as gs://; this one is in memory."""
    for name, text in {"a.txt": "一".encode(), "b.txt.gz": gzip.compress("二".encode())}.items():
        with tf.io.gfile.GFile(f"ram://sources/{name}", "wb") as file:
            file.write(text)
    assert read(train="ram://sources/*") == ["一", "二"]
    assert read(train=["ram://sources/b.txt.gz"]) == ["二"]
    with pytest.raises(PlugError, match="No text file matches ram://sources/c"):
        read(train="ram://sources/c*")
    with pytest.raises(PlugError, match="An empty name matches no text file"):
        read(train="")


def test_paths_globs_and_lists_of_them(write, tmp_path):
    for name in ("b.txt", "a.txt", "c.text", "[d].text"):
        write(name, name)
    assert read(train=tmp_path / "b.txt") == ["b.txt"]
    assert read(train=f"{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert read(train=[f"{tmp_path}/c.text", f"{tmp_path}/*.text"]) == ["c.text", "[d].text"]
    assert read(train=f"{tmp_path}/[d].text") == ["[d].text"]


def test_validation_is_a_split_of_its_own(write):
    files = dict(train=write("一"), validation=write("二", "b.txt"))
    assert tuple(TextSource(**files).splits) == ("train", "validation")
    assert read(**files) == ["一"]
    assert read(split="validation", **files) == ["二"]


def test_sharded_by_file(write, tmp_path):
    for i in range(4):
        write(f"{i}a\n{i}b", f"{i}.txt")
    source = TextSource(train=f"{tmp_path}/*.txt")
    assert [shard[-5:] for shard in source.list_shards("train")] == [f"{i}.txt" for i in range(4)]
    pattern = f"{tmp_path}/*.txt"
    first, second = (read(train=pattern, shard_info=seqio.ShardInfo(i, 2)) for i in range(2))
    assert first == ["0a", "0b", "2a", "2b"]
    assert second == ["1a", "1b", "3a", "3b"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_task_reads_it(write, file_format):
    path = write(in_format(["一", "二", "三"], file_format))
    task = seqio.Task(
        f"test_sources_{file_format}",
        source=pickle.loads(pickle.dumps(TextSource(train=path, file_format=file_format))),
        output_features={
            "text": seqio.Feature(seqio.PassThroughVocabulary(1), rank=0, dtype=tf.string)
        },
        preprocessors=[],
    )
    dataset = task.get_dataset(None, split="train", shuffle=True, seed=1, num_epochs=2)
    texts = [example["text"].decode() for example in dataset.as_numpy_iterator()]
    assert sorted(texts) == sorted(["一", "二", "三"] * 2)
    with pytest.raises(PlugError, match="no 'validation' split, only train"):
        task.get_dataset(None, split="validation")


@pytest.mark.parametrize("file_format", FORMATS)
def test_iterators_restore_exactly(write, tmp_path, file_format):
    for name in ("a", "b"):
        content = in_format([f"{name}{i}" for i in range(30)], file_format).encode()
        content = content[:100] + b"\n\n\xff\n\n" + content[100:]
        write(content, f"{name}.txt")
        write(gzip.compress(content), f"{name}.txt.gz")
    source = TextSource(train=f"{tmp_path}/*.txt*", file_format=file_format)

    def start():
        return iter(source.get_dataset("train", shuffle=True, seed=3))

    def drain(iterator):
        return [example["text"].numpy() for example in iterator]

    expected = drain(start())
    assert len(expected) >= 116
    for position in (0, 47):
        iterator = start()
        for _ in range(position):
            next(iterator)
        saved = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "checkpoint"))
        next(iterator)
        restored = start()
        tf.train.Checkpoint(iterator=restored).restore(saved).assert_consumed()
        assert drain(restored) == expected[position:]


# --- errors


def test_a_missing_path_is_named_when_listed(tmp_path):
    source = TextSource(train=[f"{tmp_path}/none.txt"])
    for ask in (source.list_shards, source.get_dataset):
        with pytest.raises(PlugError, match=r"No text file matches .*/none\.txt\."):
            ask("train")


def test_one_missing_path_among_others(write, tmp_path):
    with pytest.raises(PlugError, match=r"none\*\.txt"):
        read(train=[write("一"), f"{tmp_path}/none*.txt"])


def test_a_directory(tmp_path):
    with pytest.raises(PlugError, match="is a directory; name files"):
        read(train=tmp_path)


def test_no_paths():
    with pytest.raises(PlugError, match="at least one text file"):
        TextSource(train=[])


def test_an_unknown_format(write):
    with pytest.raises(PlugError, match="'csv': use one of lines, paragraphs, jsonl"):
        TextSource(train=write("一"), file_format="csv")


def test_a_split_without_files(write):
    source = TextSource(train=write("一"))
    with pytest.raises(PlugError, match="no 'test' split, only train"):
        source.get_dataset("test")


@pytest.mark.parametrize("file_format", FORMATS)
def test_nothing_but_empty_files(write, file_format):
    paths = [write(b""), write("\n \n\u3000\n", "b.txt"), write(MARK + b"\n", "c.txt")]
    with pytest.raises(
        PlugError, match=r"every file is empty or damaged: .*a\.txt, .*b\.txt, .*c\.txt\."
    ):
        read(train=paths, file_format=file_format)


# --- dropped documents, and their counts


@pytest.mark.parametrize("file_format", FORMATS)
def test_some_empty_files_are_counted(write, file_format):
    paths = [write(b""), write(in_format(["一"], file_format), "b.txt"), write("\n \n", "c.txt")]
    assert read(train=paths, file_format=file_format) == ["一"]
    assert drop_counts() == {"empty_file": 2}


@pytest.mark.parametrize("file_format", FORMATS)
def test_invalid_utf8_drops_its_document(write, file_format):
    bad = [b"\xff", b"a\x80", "中".encode()[:2], b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"]
    good = [f"{i}一\ufffd\uffff😀" for i in range(len(bad) + 1)]
    content = in_format([d for text in good for d in (text, "BAD")][:-1], file_format).encode()
    for piece in bad:
        content = content.replace(b"BAD", piece, 1)
    assert read(train=write(content), file_format=file_format) == good
    assert drop_counts() == {"invalid_utf8": len(bad)}


def test_invalid_utf8_drops_the_whole_paragraph(write):
    path = write(b"a\nb\xff\nc\n\nd")
    assert read(train=path, file_format="paragraphs") == ["d"]
    assert drop_counts() == {"invalid_utf8": 1}


BAD_JSON = {
    "invalid_json": ['{"text": "a"', "plain", '["text"]', "3", '"text"', "[" * 99_999, "1" * 5000],
    "missing_text_key": ['{"txt": "a"}', "{}", '{"text": null}', '{"text": ["a"]}'],
    "empty_document": ['{"text": ""}', '{"text": " \\n\u3000"}'],
    "invalid_utf8": ['{"text": "\\ud800"}'],
}


@pytest.mark.parametrize("reason", BAD_JSON)
def test_bad_json_lines_are_counted(write, reason):
    lines = ['{"text": "一"}', *BAD_JSON[reason], '{"text": "二"}']
    assert read(train=write("\n".join(lines)), file_format="jsonl") == ["一", "二"]
    assert drop_counts() == {reason: len(BAD_JSON[reason])}


NAMES = ["a[1].txt", "b*c?.txt", "{d}.txt", "e f.txt", "g\nh.txt", "100%25#.txt", "~j", "-i.txt"]


def test_files_of_any_name(tmp_path, monkeypatch):
    """A name that exists literally is not a pattern; nor is an existing directory in its path."""
    directory = tmp_path / "lr=[1e-4]*"
    directory.mkdir()
    monkeypatch.chdir(directory)
    for name in NAMES:
        (directory / name).write_text(json.dumps({"text": name}))
    assert read(train=NAMES, file_format="jsonl") == NAMES

    def files(*patterns):
        return TextSource(train=[str(p) for p in patterns]).list_shards("train")

    paths = [str(directory / name) for name in NAMES]
    assert files(*paths) == paths
    assert files(directory / "[ab]*") == paths[:2]
    assert files(tmp_path / "lr=[[]*" / "[ab]*") == paths[:2]


def test_a_name_that_is_a_pattern_too(tmp_path, caplog):
    """The file takes precedence, with one warning."""
    caplog.set_level(logging.WARNING)  # libraries may have set another
    literal, other = str(tmp_path / "a[1].txt"), str(tmp_path / "a1.txt")
    for path in (literal, other):
        Path(path).write_text("天\n", encoding="utf-8")
    source = TextSource(train=literal)
    assert source.list_shards("train") == source.list_shards("train") == [literal]
    assert [record.message for record in caplog.records] == [
        f"{literal} is read as the file of that name, not for {other}"
    ]


def test_hidden_files_and_folders_are_read_where_the_pattern_has_their_dot(write, tmp_path):
    for name in (".git", "news"):
        (tmp_path / name).mkdir()
    for name in ("._a.txt", "a.txt", ".b.txt.swp", ".git/c.txt", "news/c.txt", "news/.d.txt"):
        write(name, name)
    assert read(train=f"{tmp_path}/*.txt*") == ["a.txt"]
    assert read(train=f"{tmp_path}/._*.txt") == ["._a.txt"]
    assert read(train=f"{tmp_path}/*/*.txt") == ["news/c.txt"]
    assert read(train=f"{tmp_path}/.g*/*") == [".git/c.txt"]
    assert read(train=f"{tmp_path}/.b.txt.swp") == [".b.txt.swp"]
    with pytest.raises(
        PlugError, match=r"No text file matches .*swp, only directories or hidden files: .*\.b\."
    ):
        read(train=f"{tmp_path}/*.swp")


def test_directories_that_match_are_not_read(write, tmp_path, caplog):
    caplog.set_level(logging.WARNING)  # libraries may have set another
    for name in ("2023", "2024"):
        (tmp_path / name).mkdir()
    with pytest.raises(PlugError, match="No text file matches .*, only directories or hidden"):
        read(train=f"{tmp_path}/*")
    path = write("一")
    assert read(train=f"{tmp_path}/*") == read(train=f"{tmp_path}/*") == ["一"]
    [said] = [record.message for record in caplog.records]
    assert said.endswith(f"directories, which are not read: {tmp_path}/2023, {tmp_path}/2024")
    assert path == f"{tmp_path}/a.txt"


def test_a_pattern_for_all_folders(write, tmp_path):
    """TensorFlow would take ** for *."""
    (tmp_path / "news").mkdir()
    write("一", "news/a.txt")
    with pytest.raises(PlugError, match=r"\*\* does not search all folders .* for each level"):
        read(train=f"{tmp_path}/**/*.txt")
    (tmp_path / "**").mkdir()
    write("二", "**/a.txt")
    assert read(train=f"{tmp_path}/**/*.txt") == ["二"]


def test_a_file_whose_name_is_not_utf8(write, tmp_path):
    name = "中.txt".encode("gbk")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("天")
    with pytest.raises(PlugError, match=r"match of .*/\*\.txt is not UTF-8: .*xd6.xd0.*Rename"):
        read(train=f"{tmp_path}/*.txt")
    with pytest.raises(PlugError, match=r"name of a text file is not UTF-8: b'.xd6.xd0"):
        read(train=os.fsdecode(name))  # as the shell hands it over


def test_the_home_directory(write, tmp_path, monkeypatch):
    path = write("天\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TextSource(train="~/*.txt").list_shards("train") == [path]
