"""Prediction files against labelled data: scores, and every possible mistake."""

import json
import zipfile

import pytest

from plug_jax.clue.json_files import JsonFile
from plug_jax.clue.predictions import read_predictions
from plug_jax.clue.records import Entity
from plug_jax.clue.scoring import score_files
from plug_jax.clue.submission import predictions_file
from plug_jax.clue.tasks import CLUE
from plug_jax.errors import PlugError
from tests.clue import official
from tests.clue.official import lines_of, value_of

# Tasks with labels on the validation split.
SCORED = [task for task in CLUE if task != "diagnostics"]


def right(task, records):
    """Correct predictions."""
    if task.kind == "question":
        return {record.id: record.answers[0].text for record in records}
    if task.kind == "entity":
        return {record.id: record.entities for record in records}
    return {record.id: record.label for record in records}


@pytest.mark.parametrize("name", SCORED)
def test_right_predictions_get_all_points_in_every_task(tmp_path, name):
    official.write_clue(tmp_path, [official.FOLDER_OF[name]])
    task = CLUE[name]
    records = task.read(tmp_path, "dev").records
    path = tmp_path / "predictions.json"
    path.write_bytes(predictions_file(task, records, right(task, records)))
    (score,) = score_files([path], tmp_path, name).values()
    # Two of CLUENER's ten types occur; the macro mean counts the other eight as 0.
    expected = {
        "question": {"em": 100, "f1": 100},
        "entity": {"macro_f1": 20, "micro_f1": 100},
    }
    assert score == expected.get(task.kind, {"accuracy": 100})
    assert score.missing == ()


def put(path, content):
    path.write_bytes(content)
    return path


def predictions(*labels, first=0):
    return lines_of(*({"id": first + n, "label": label} for n, label in enumerate(labels)))


PAIR = {"sentence1": "灯关了", "sentence2": "灯亮着"}
OCNLI = lines_of(*({**PAIR, "label": label} for label in ("neutral", "-", "neutral", "entailment")))


def test_lines_that_are_dropped_may_have_predictions(tmp_path):
    data = put(tmp_path / "dev.json", OCNLI)
    # Correct of the three with labels: 0 and 3.
    whole = predictions("neutral", "neutral", "entailment", "entailment")
    path = put(tmp_path / "ocnli_50k_predict.json", whole)
    assert score_files([path], data) == {"ocnli": {"accuracy": pytest.approx(200 / 3)}}
    without = b"".join(whole.splitlines(keepends=True)[n] for n in (3, 0, 2))  # in any order
    path = put(tmp_path / "some.json", without)
    assert score_files([path], data, "ocnli")["ocnli"] == {"accuracy": pytest.approx(200 / 3)}


def test_ids_may_be_strings_and_choices_too(tmp_path):
    official.write_clue(tmp_path, ["c3"])
    records = CLUE["c3"].read(tmp_path, "dev").records
    labels = [record.label for record in records]
    lines = [{"id": str(n), "label": n % 2 and str(label)} for n, label in enumerate(labels)]
    lines = [{**line, "label": line["label"] or labels[n]} for n, line in enumerate(lines)]
    path = put(tmp_path / "c311_predict.json", lines_of(*lines))
    assert score_files([path], tmp_path) == {"c3": {"accuracy": 100}}


def test_unanswered_questions_count_nothing_and_are_reported(tmp_path):
    qas = [
        {"id": key, "question": "？", "answers": [{"text": text, "answer_start": -1}]}
        for key, text in (("A", "九米"), ("B", "甲乙丙丁"), ("C", "他"))
    ]
    document = {"version": "v1.0", "data": [{"paragraphs": [{"context": "文", "qas": qas}]}]}
    data = put(tmp_path / "dev.json", value_of(document))
    path = put(tmp_path / "cmrc2018_predict.json", value_of({"A": "九米。", "B": "甲丙丁"}))
    # A: 1 and 1. B: 0 and 4/7 (see test_metrics). C: 0. So 1/3, and (1 + 4/7) / 3 = 11/21.
    score = score_files([path], data)["cmrc2018"]
    assert score.to_json() == {"metrics": {"em": 33.333, "f1": 52.381}, "missing": ["C"]}


def test_a_zip_and_several_files_have_scores_by_task(tmp_path, monkeypatch):
    official.write_clue(tmp_path, ["afqmc", "tnews"])
    contents = {}
    for name, file in (("afqmc", "afqmc_predict.json"), ("tnews", "tnews11_predict.json")):
        records = CLUE[name].read(tmp_path, "dev").records
        contents[file] = predictions_file(CLUE[name], records, right(CLUE[name], records))
    with zipfile.ZipFile(tmp_path / "dev.zip", "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)
            put(tmp_path / name, content)
    both = {"afqmc": {"accuracy": 100}, "tnews": {"accuracy": 100}}
    assert score_files([tmp_path / "dev.zip"], tmp_path) == both
    monkeypatch.setenv("HOME", str(tmp_path))
    assert score_files(["~/dev.zip"], "~") == both
    assert score_files([tmp_path / name for name in contents], tmp_path) == both
    assert score_files([tmp_path / "dev.zip"], tmp_path, "tnews") == {"tnews": {"accuracy": 100}}
    with pytest.raises(PlugError, match="second file of predictions for afqmc"):
        score_files([tmp_path / "dev.zip", tmp_path / "afqmc_predict.json"], tmp_path)
    with pytest.raises(PlugError, match="there are 0 files of predictions for the one task csl"):
        score_files([tmp_path / "dev.zip"], tmp_path, "csl")
    with pytest.raises(PlugError, match="there are 2 files of predictions for the one task tnews"):
        score_files([tmp_path / name for name in contents], tmp_path, "tnews")


def test_files_that_say_no_task_or_are_not_there(tmp_path):
    path = put(tmp_path / "mine.json", b"")
    with pytest.raises(PlugError, match="mine.json does not tell its task"):
        score_files([path], tmp_path)
    with pytest.raises(PlugError, match="there is no file of predictions .*none.json"):
        score_files([tmp_path / "none.json"], tmp_path)
    with pytest.raises(PlugError, match="there is no file .*nodata.json"):
        score_files([path], tmp_path / "nodata.json", "afqmc")


def test_data_without_labels_are_no_data_to_score_on(tmp_path):
    data = put(tmp_path / "test.json", lines_of({"id": 0, **PAIR}))
    path = put(tmp_path / "p.json", predictions("0"))
    with pytest.raises(PlugError, match="test.json, line 1 has no 'label'"):
        score_files([path], data, "afqmc")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "p.json: it is empty; expected lines of"),
        (value_of([{"id": 0, "label": "103"}]), "it is one JSON list, which scores 0"),
        (predictions(*("103",) * 5), "p.json: 1 of 6 have no prediction; .* first is id 5"),
        (predictions(*("103",) * 7), "line 7: id 6 is not one of the 6 ids, 0 to 5"),
        (
            predictions(*("103",) * 3) * 2,
            r"line 4: id 0 was in .*p.json, line 1 already; ids must continue from one batch to "
            r"the next \(and 2 more like this\); and 1 mistakes of other kinds",
        ),
        (
            predictions(*("3",) * 6),
            r'line 1: label "3" looks like the index of a class; the labels of tnews are the '
            r'strings "100", "101", "102", "103", ..., and anything else scores 0 \(and 5 more',
        ),
        (predictions(*(3,) * 6), "line 1: label 3 looks like the index of a class"),
        (predictions(*(103,) * 6), 'line 1: label 103 must be a string: "103"'),
        (predictions(*("9" * 5000,) * 6), 'line 1: label "9{59}... is not one of the labels of'),
        (predictions(*("105",) * 6), 'line 1: label "105" is not one of the labels of tnews'),
        (
            predictions(*("news_sports",) * 6),
            'label "news_sports" is not one of the labels of tnews',
        ),
        (predictions(*(None,) * 6), "line 1: label null is not one of the labels of tnews"),
        (lines_of({"id": 0}), 'line 1: it is {"id": 0}; expected lines of {"id": ..., "label"'),
        (
            predictions("103") + lines_of([1, "103"]),
            r'line 2: it is \[1, "103"\]; expected lines of',
        ),
        (lines_of({"id": 0.5, "label": "103"}), "line 1: id 0.5 is neither a number nor a string"),
        (predictions("103")[:-3], "p.json, line 1: is cut off: Unterminated"),
        (b"\xef\xbb\xbf" + predictions(*("103",) * 6), "p.json: it begins with a byte order mark"),
    ],
)
def test_mistakes_of_lines(tmp_path, content, message):
    official.write_clue(tmp_path, ["tnews"])
    with pytest.raises(PlugError, match=message):
        score_files([put(tmp_path / "p.json", content)], tmp_path, "tnews")


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("cluewsc", lines_of({"id": 0, "label": True}), 'label true must be a string: "true"'),
        ("ocnli", lines_of({"id": 0, "label": "2"}), 'label "2" looks like the index of a class'),
        ("c3", lines_of({"id": 0, "label": "二点"}), 'label "二点" is not an index of the 2'),
        ("c3", lines_of({"id": 0, "label": 2}), "label 2 is not an index of the 2 choices, from 0"),
        ("c3", lines_of({"id": 0, "label": "9" * 5000}), 'label "9{59}... is not an index of'),
        ("c3", lines_of({"id": 0, "label": True}), "label true is not an index of the 2 choices"),
        ("cmrc2018", lines_of({"id": 0}, {"id": 1}), "p.json, line 2 is not JSON: Extra data"),
        ("cmrc2018", value_of([]), r"p.json: it is \[\]; expected one object for the whole file"),
        ("cmrc2018", value_of({"DEV_3_QUERY_0": 4}), "DEV_3_QUERY_0 is 4; expected a text"),
        (
            "cmrc2018",
            value_of({"DEV_9": "四"}),
            "id DEV_9 is not one of the 6 ids, DEV_3_QUERY_0 to",
        ),
        ("cmrc2018", b'{"a": "", "a": ""}', "p.json: is not JSON: the key 'a' comes twice"),
        ("chid", value_of({"#idiom000390#": "1"}), '#idiom000390# has "1"; expected a number'),
        ("chid", value_of({"#idiom000390#": 10}), "#idiom000390# 10 is not an index of the 10"),
        ("chid", value_of({"#idiom000390#": 1}), "7 of 8 have no prediction"),
        (
            "cluener",
            lines_of({"id": 0, "label": "name"}),
            'label "name" is not an object of entities',
        ),
        (
            "cluener",
            lines_of({"id": 0, "label": {"name": {"王小明": [[0, 3]]}}}),
            r'its label: "王小明" is not at \[0, 3\] of the text, .*\(the end is inclusive\)',
        ),
    ],
)
def test_mistakes_of_other_kinds_of_answers(tmp_path, task, content, message):
    official.write_clue(tmp_path, [official.FOLDER_OF[task]])
    with pytest.raises(PlugError, match=message.replace("p.json, line 2 is", "p.json.*is")):
        score_files([put(tmp_path / "p.json", content)], tmp_path, task)


def test_entities_are_read_with_exclusive_ends(tmp_path):
    official.write_clue(tmp_path, ["cluener"])
    records = CLUE["cluener"].read(tmp_path, "dev").records[:1]
    content = lines_of({"id": 0, "label": {"name": {"王小明": [[0, 2]]}}})
    found = read_predictions(CLUE["cluener"], JsonFile("p.json", content), records)
    assert found.values == {0: (Entity("name", "王小明", 0, 3),)}
    assert found.mistakes == ()
    again = predictions_file(CLUE["cluener"], records, found.values)
    assert json.loads(again) == json.loads(content)


def test_two_blanks_of_a_line_with_one_idiom_are_a_doubt_that_is_scored(tmp_path):
    official.write_clue(tmp_path, ["chid"])
    records = CLUE["chid"].read(tmp_path, "dev").records
    values = {record.id: record.label for record in records}
    values[records[1].id] = values[records[0].id]  # of the same line
    content = predictions_file(CLUE["chid"], records, values)
    found = read_predictions(CLUE["chid"], JsonFile("p.json", content), records)
    assert [(one.is_doubt, one.count) for one in found.mistakes] == [(True, 1)]
    path = put(tmp_path / "chid11_predict.json", content)
    assert score_files([path], tmp_path) == {"chid": {"accuracy": 87.5}}
