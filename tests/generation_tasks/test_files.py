"""Official files as pairs, and errors for malformed files."""

import json
import re

import pytest

from plug_jax.errors import PlugError
from plug_jax.generation_tasks.formats import by_name, json_lines, kbqa, squad
from plug_jax.generation_tasks.records import Layout, Pair, Record
from plug_jax.generation_tasks.tasks import GENERATION_TASKS, find_file, find_task, read_pairs
from tests.generation_tasks.official_files import (
    QUESTIONS,
    SUMMARIES,
    WRITERS,
    kbqg,
    lcsts,
    write_lines,
)


def pairs(name, directory, split="train", layout="plug"):
    task = find_task(name)
    path = find_file(task, str(directory), split)
    return read_pairs(path, split, read=task.read, layout=task.layout(layout))


ANSWER, CONTEXT, QUESTION = QUESTIONS[0]
CONTENT, SUMMARY = SUMMARIES[0]
FIRST = {
    "lcsts": Pair("0", (CONTENT,), (SUMMARY,)),
    "dureader_qg": Pair("0", (ANSWER, CONTEXT), (QUESTION,)),
    "dureader_robust": Pair("q0", (ANSWER, CONTEXT), (QUESTION,)),
    "kbqg": Pair("1", (ANSWER, "中国 首都 北京"), (QUESTION,)),
    "advertisegen": Pair("0", ("类型#裙*颜色#红",), ("红裙很好看",)),
    "csl_title": Pair("0", (CONTENT,), (SUMMARY,)),
}


@pytest.mark.parametrize("name", GENERATION_TASKS)
def test_the_official_files(tmp_path, name):
    directory = WRITERS[name](tmp_path / name)
    for split in ("train", "validation"):
        read = pairs(name, directory, split)
        assert read[0] == FIRST[name]
        assert len({pair.id for pair in read}) == len(read) > 1


def test_paddlenlp_reads_questions_by_templates(tmp_path):
    for name in ("dureader_qg", "dureader_robust"):
        first = pairs(name, WRITERS[name](tmp_path / name), layout="paddlenlp")[0]
        assert first.source == (f"答案：{ANSWER}", f"上下文：{CONTEXT}")
        assert first.target == QUESTION  # the prefix is not part of a reference
        assert find_task(name).layout("paddlenlp").target_prefix == "问题："
    with pytest.raises(PlugError, match="no layout 'paddlenlp'; there are plug"):
        find_task("kbqg").layout("paddlenlp")
    with pytest.raises(PlugError, match="no generation task 'lcst'; there are lcsts, dureader_qg"):
        find_task("lcst")


def test_targets_that_are_withheld(tmp_path):
    for name in ("advertisegen", "csl_title"):
        directory = WRITERS[name](tmp_path / name)
        read = pairs(name, directory, "test")
        assert [pair.target for pair in read] == [None, None] and read[0].source
    robust = WRITERS["dureader_robust"](tmp_path / "robust")
    with pytest.raises(PlugError, match=r"test.json, data\[0\].paragraphs\[0\].qas\[0\]: there is"):
        pairs("dureader_robust", robust, "test")  # without an answer there is no question


def test_one_s_own_files(tmp_path):
    rows = [{"a": "甲", "q": ["乙", "丙"]}, {"a": "x\u2028y", "q": "z"}]
    write_lines(tmp_path / "own.jsonl", rows)
    (tmp_path / "own.tsv").write_bytes('\ufeffa\tq\r\n甲\t"乙\r\n'.encode())
    (tmp_path / "own.csv").write_text('a,q\n"甲,\n乙",丙\n', encoding="utf-8")
    layout = Layout(("{a}",), "q")

    def read(name):
        return read_pairs(str(tmp_path / name), "train", read=by_name, layout=layout)

    assert read("own.jsonl") == [
        Pair("0", ("甲",), ("乙", "丙")),
        Pair("1", ("x\u2028y",), ("z",)),
    ]
    assert read("own.tsv") == [Pair("0", ("甲",), ('"乙',))]
    assert read("own.csv") == [Pair("0", ("甲,\n乙",), ("丙",))]
    with pytest.raises(PlugError, match="own.xlsx: expected a file whose name ends in .jsonl"):
        by_name("own.xlsx")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"a": "甲", "q": "乙"}\n{"a": "甲',
            "a.jsonl, line 2 is not JSON .* cut short",
        ),
        ("a.jsonl", '[{"a": "甲"}]\n', "a.jsonl, line 1: expected a JSON object, not"),
        (
            "a.jsonl",
            '\n{"a": "甲", "Q": "乙"}\n',
            "line 2: there is no 'q'; the fields are 'a', 'Q'",
        ),
        ("a.jsonl", '{"a": null, "q": "乙"}\n', "line 1: 'a' must be a text, not None"),
        ("a.jsonl", '{"a": ["甲"], "q": "乙"}\n', "line 1: 'a' must be a text, not"),
        ("a.jsonl", '{"a": "甲", "q": []}\n', "line 1: 'q' is an empty list"),
        ("a.jsonl", '{"a": "甲", "q": [1]}\n', "line 1: 'q' must be a text, not 1"),
        ("a.jsonl", '{"a": "\\ud800", "q": "乙"}\n', "line 1: 'a' holds half of a surrogate pair"),
        ("a.jsonl", "\n \n", "a.jsonl has no record"),
        ("a.jsonl", "<html>", "is a web page"),
        ("a.tsv", "a\tq\n甲\n", "a.tsv, line 2: 1 columns; expected 2: a, q"),
        ("a.tsv", "a\ta\n", "line 1: expected a name for each column"),
        ("a.csv", 'a,q\n甲,"乙\n', "a.csv, line 2: unexpected end of data"),
    ],
)
def test_a_file_of_one_s_own_that_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(PlugError, match=message):
        read_pairs(str(tmp_path / name), "train", read=by_name, layout=Layout(("{a}",), "q"))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"a": "甲"}\n{"a": "'.encode() + b'\xff"}\n')
    with pytest.raises(PlugError, match="a.jsonl, line 2 is not UTF-8"):
        list(json_lines(str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "<answer id=3>",
            "<reply id=3>",
            r"line 11: expected <question id=N>, .* not '<reply id=3",
        ),
        ("<answer id=2>", "<answer id=3>", "line 7: <answer id=3> within the block of id 2"),
        ("<answer id=2>", "<question id=2>", "line 7: <question id=2> within the block of id 2"),
        (" ||| 北京", "", "line 1: expected <triple> of subject"),
        ("<answer id=3>\t三天\r\n", "", "line 9: the block that begins here has no <answer>"),
        ("<answer id=3>\t三天\r\n" + "=" * 50 + "\r\n", "", "line 9: the block .* is cut short"),
    ],
)
def test_blocks_of_kbqa_that_are_wrong(tmp_path, old, new, message):
    path = kbqg(tmp_path) / "nlpcc2016.kbqa.test"
    path.write_bytes(path.read_bytes().decode().replace(old, new).encode())
    with pytest.raises(PlugError, match=message):
        list(kbqa(str(path)))


def test_the_object_of_a_triple_may_hold_bars(tmp_path):
    path = kbqg(tmp_path) / "nlpcc2016.kbqa.test"
    path.write_bytes(path.read_bytes().replace("||| 北京".encode(), "||| 北京 ||| 燕京".encode()))
    assert next(kbqa(str(path))).fields["object"] == "北京 ||| 燕京"


def test_a_block_of_kbqa_without_a_triple_has_no_context(tmp_path):
    path = tmp_path / "nlpcc2017.kbqa.test"
    path.write_text(f"<question id=8>\t谁\n<answer id=8>\t我\n{'=' * 50}\n", encoding="utf-8")
    assert list(kbqa(str(path))) == [
        Record({"id": "8", "question": "谁", "answer": "我"}, f"{path}, line 1")
    ]
    with pytest.raises(PlugError, match="line 1: there is no 'subject'; the fields are 'id', "):
        pairs("kbqg", path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ([], [], r"expected an object with a list 'data'"),
        (["data"], {}, "dev.json: expected an object with a list 'data'; it has 'data'"),
        (["data", 0, "paragraphs", 1, "context"], None, r"\[1\]: expected .* a text 'context'"),
        (["data", 0, "paragraphs", 1, "qas", 0, "id"], 3, r"qas\[0\]: expected .* a text 'id'"),
        (["data", 0, "paragraphs", 0, "qas", 0, "answers"], [{}], r"answers\[0\]: .* 'text'"),
    ],
)
def test_nesting_of_squad_that_is_wrong(tmp_path, path, value, message):
    file = WRITERS["dureader_robust"](tmp_path) / "dev.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    place = content
    for key in path[:-1]:
        place = place[key]
    if path:
        place[path[-1]] = value
    else:
        content = value
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(PlugError, match=message):
        list(squad(str(file)))
    file.write_text(json.dumps(content)[:-3], encoding="utf-8")
    with pytest.raises(PlugError, match="dev.json is not JSON, or cut short"):
        list(squad(str(file)))


def test_where_the_files_are_looked_for(tmp_path):
    directory = lcsts(tmp_path / "lcsts")
    task = find_task("lcsts")
    assert find_file(task, str(directory), "validation") == str(directory / "dev.json")
    (directory / "dev.json").rename(directory / "val.json")
    assert find_file(task, str(directory), "validation") == str(directory / "val.json")
    assert find_file(task, str(directory / "val.json"), "test") == str(directory / "val.json")
    with pytest.raises(PlugError, match="the test split is not there: .* has no test.json"):
        find_file(task, str(directory), "test")
    with pytest.raises(PlugError, match="nothing does not exist; it must be the directory of"):
        find_file(task, str(tmp_path / "nothing"), "train")
    with pytest.raises(PlugError, match="no split 'dev'; there are train, validation, test"):
        find_file(task, str(directory), "dev")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{", "cannot be read: Single '{' encountered"),
        ("a}", "cannot be read: Single '}' encountered"),
        ("{a:d}", "formats the field 'a'; write {a} alone"),
        ("{a!x}", "formats the field 'a'"),
        ("{a:{c}}", "formats the field 'a'"),
    ],
)
def test_a_template_that_cannot_be_filled(template, message):
    with pytest.raises(PlugError, match=re.escape(message)):
        Layout(("{a}", template), "q")


def test_a_template_is_filled_literally():
    record = Record({"a": "{b}", "b.c": "乙", "q": "问"}, "f, line 1")
    assert Layout(("甲{{{a}}}{b.c}",), "q").pair(record, 0).source == ("甲{{b}}乙",)
