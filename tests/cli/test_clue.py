"""`plug-jax clue`: output and exit status."""

import json
import shutil
import zipfile

import pytest

from plug_jax.cli.main import main
from plug_jax.clue.submission import predictions_file, write_submission
from plug_jax.clue.tasks import CLUE
from tests.clue import official
from tests.clue.official import constant_predictions, lines_of, value_of


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return official.write_clue(tmp_path_factory.mktemp("clue"), zipped=["chid"])


def run(capsys, *arguments):
    status = main(["clue", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def run_json(capsys, *arguments):
    status, out, err = run(capsys, *arguments, "--json")
    assert err == ""
    return status, json.loads(out)


def test_inspect_has_this_form(tmp_path, capsys):
    (tmp_path / "OCNLI_public").mkdir()
    pair = {"sentence1": "灯关了", "sentence2": "灯亮着"}
    labels = ("neutral", "-", "neutral", "entailment", "contradiction")
    lines = lines_of(*({**pair, "label": label} for label in labels))
    (tmp_path / "OCNLI_public" / "dev.json").write_bytes(lines)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n灯\n关\n了\n")
    arguments = ("inspect", "--data_dir", tmp_path, "--vocabulary", vocabulary)
    assert run_json(capsys, *arguments) == (
        0,
        {
            "tasks": {
                "ocnli": {
                    "labels": ["contradiction", "entailment", "neutral"],
                    "splits": {
                        "dev": {
                            "records": 5,
                            "usable": 4,
                            "dropped": {"no_gold_label": 1},
                            "label_counts": {"contradiction": 1, "entailment": 1, "neutral": 2},
                            # [CLS] 3 [SEP] 3 [SEP]
                            "token_lengths": {"min": 9, "median": 9, "p95": 9, "max": 9},
                            "cut": 0,
                            "max_length": 128,
                        }
                    },
                }
            }
        },
    )


def test_inspect_looks_at_every_file_of_every_task_once(data_dir, capsys):
    status, found = run_json(capsys, "inspect", "--data_dir", data_dir)
    splits = {name: list(task["splits"]) for name, task in found["tasks"].items()}
    assert status == 0
    assert list(splits) == list(CLUE)
    assert splits["tnews"] == ["train", "dev", "test"]
    assert (splits["tnews10"], splits["ocnli_3k"]) == (["test"], ["train"])
    assert splits["cmrc2018"] == ["train", "dev", "test", "trial"]
    assert splits["eprstmt"][:4] == ["train", "dev", "test", "test_public"]
    assert splits["diagnostics"] == ["test"]
    assert found["tasks"]["chid"]["splits"]["dev"]["records"] == 8
    _, one = run_json(capsys, "inspect", "--data_dir", data_dir, "--task", "tnews10")
    assert list(one["tasks"]) == ["tnews10"]
    assert list(one["tasks"]["tnews10"]["splits"]) == ["train", "dev", "test"]


def test_inspect_prints_tables(data_dir, capsys):
    status, out, _ = run(capsys, "inspect", "--data_dir", data_dir, "--task", "ocnli")
    assert status == 0
    assert "tokens: min/median/p95/max" in out
    assert "dev, dropped: no_gold_label (1)" in out
    assert "dev, labels: contradiction (2), entailment (2), neutral (2)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data_dir", "{empty}"], "holds no task of CLUE; looked for folders and zips in it"),
        (["--data_dir", "{empty}/none"], "there is no file or folder"),
        (["--data_dir", "{empty}", "--task", "csl"], "has no csl; looked for csl, csl_public and"),
        (["--data_dir", "{empty}", "--task", "cls"], "CLUE has no task 'cls'; did you mean 'csl'?"),
        (["--data_dir", "{data}/chid_public.zip", "--task", "csl"], "holds the files of chid, not"),
    ],
)
def test_inspect_says_what_it_looked_for(tmp_path, data_dir, capsys, arguments, message):
    arguments = [one.format(empty=tmp_path, data=data_dir) for one in arguments]
    status, out, err = run(capsys, "inspect", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("plug-jax: error: ")
    assert message in err


def test_half_of_a_split_is_an_error(tmp_path, data_dir, capsys):
    shutil.copytree(data_dir / "c3_public", tmp_path / "c3")
    (tmp_path / "c3" / "m-dev.json").unlink()
    status, _, err = run(capsys, "inspect", "--data_dir", tmp_path)
    assert status == 2
    assert "c3 has no file m-dev.json; it has d-dev.json, d-train.json" in err


def test_score_has_this_form(tmp_path, capsys):
    # EM: only A, of three. F1: A has 1; B 4/7 (see test_metrics); C shares 九米, two of three
    # tokens of both, which is 2/3. Their mean is (1 + 4/7 + 2/3) / 3 = 47/63 = 0.746032.
    answers = {"A": ("九米", "九米。"), "B": ("甲乙丙丁", "甲丙丁"), "C": ("有九米", "九米长")}
    qas = [
        {"id": key, "question": "？", "answers": [{"text": answer, "answer_start": 0}]}
        for key, (answer, _) in answers.items()
    ]
    document = {"version": "v1.0", "data": [{"paragraphs": [{"context": "文", "qas": qas}]}]}
    data, path = tmp_path / "dev.json", tmp_path / "p.json"
    data.write_bytes(value_of(document))
    path.write_bytes(value_of({key: predicted for key, (_, predicted) in answers.items()}))
    arguments = ("score", "--task", "cmrc2018", "--data", data, "--predictions", path)
    expected = {"task": "cmrc2018", "metrics": {"em": 33.333, "f1": 74.603}}
    assert run_json(capsys, *arguments) == (0, expected)
    path.write_bytes(value_of({"A": "九米"}))
    expected = {"task": "cmrc2018", "metrics": {"em": 33.333, "f1": 33.333}, "missing": ["B", "C"]}
    assert run_json(capsys, *arguments) == (0, expected)
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "without a prediction" in out


def test_scores_of_a_zip_have_the_means_of_the_boards(tmp_path, data_dir, capsys):
    with zipfile.ZipFile(tmp_path / "dev.zip", "w") as file:
        for name in ("afqmc", "csl", "cmrc2018"):
            task = CLUE[name]
            records = task.read(data_dir, "dev").records
            values = constant_predictions(task, records)
            file.writestr(f"{name}_predict.json", predictions_file(task, records, values))
    arguments = ("score", "--data", data_dir, "--predictions", tmp_path / "dev.zip")
    status, found = run_json(capsys, *arguments)
    assert status == 0
    shutil.copy(tmp_path / "dev.zip", tmp_path / "OTHER.ZIP")
    assert run_json(capsys, *arguments[:-1], tmp_path / "OTHER.ZIP") == (0, found)
    # Always "1": half of the six rows of each. 一米 is no answer, and of the two characters of one
    # answer to each question it shares 米: precision and recall 1/2.
    assert found["tasks"]["afqmc"] == found["tasks"]["csl"] == {"metrics": {"accuracy": 50.0}}
    others = ["tnews10", "iflytek", "cmnli", "ocnli", "cluewsc10"]
    assert found["boards"]["1.0"] == {"mean": 50.0, "missing": others}
    assert found["tasks"]["cmrc2018"] == {"metrics": {"em": 0.0, "f1": 50.0}}
    assert found["boards"]["1.0-reading"] == {"mean": 0.0, "missing": ["chid10", "c310"]}
    status, out, _ = run(capsys, *arguments)
    assert "CLUE 1.0, classification: 50.000, without tnews10, iflytek, cmnli" in out
    assert "is not published; this is the plain mean" in out


def test_submit_does_no_work_for_a_file_that_is_there(tmp_path, data_dir, capsys):
    path = tmp_path / "submit_team_20260101.zip"
    path.write_bytes(b"")
    arguments = ("--runs", tmp_path / "run", "--data_dir", data_dir, "--output", path)
    status, _, err = run(capsys, "submit", *arguments)
    assert status == 2
    assert f"{path} exists already; remove it, or name another file\n" in err


def test_validate_has_status_1_for_mistakes(tmp_path, data_dir, capsys):
    path = tmp_path / "submit_team_20260101.zip"
    records = CLUE["tnews"].read(data_dir, "test").records
    values = {"tnews": constant_predictions(CLUE["tnews"], records)}
    write_submission(values, data_dir, "1.1", path)
    arguments = ("validate", path, "--data_dir", data_dir)
    expected = {"valid": True, "predictions": {"tnews11_predict.json": 6}, "mistakes": []}
    assert run_json(capsys, *arguments) == (0, expected)
    status, out, _ = run(capsys, *arguments)
    assert (status, out) == (0, "tnews11_predict.json: 6 predictions\nno mistakes were found\n")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/ocnli_predict.json", b"")
    status, found = run_json(capsys, *arguments)
    assert (status, found["valid"]) == (1, False)
    assert [one["where"] for one in found["mistakes"]] == [
        "a/ocnli_predict.json",
        "a/ocnli_predict.json",
        "ocnli_predict.json",
    ]
    status, out, _ = run(capsys, *arguments)
    assert status == 1
    assert "mistake: a/ocnli_predict.json: it is in a folder" in out
    assert out.endswith("do not upload it as it is\n")
