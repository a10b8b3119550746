"""Submissions in the leaderboards' layout, and every mistake found before sending."""

import json
import resource
import zipfile

import pytest

from plug_jax.clue.records import BlankRecord
from plug_jax.clue.submission import (
    FILE_NAMES,
    VERSIONS,
    check_new,
    predictions_file,
    validate_submission,
    write_submission,
)
from plug_jax.clue.tasks import CLUE
from plug_jax.errors import PlugError
from tests.clue import official
from tests.clue.official import constant_predictions, lines_of, value_of


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return official.write_clue(tmp_path_factory.mktemp("clue"), zipped=["cmnli", "c3", "tnews"])


def predictions_of(names, data_dir):
    return {
        name: constant_predictions(CLUE[name], CLUE[name].read(data_dir, "test").records)
        for name in names
    }


def contents(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name).decode() for name in file.namelist()}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_whole_submission_has_the_layout_of_the_board_and_is_valid(tmp_path, data_dir, version):
    path = tmp_path / "new" / "submit_team_20260101.zip"
    write_submission(predictions_of(VERSIONS[version], data_dir), data_dir, version, path)
    suffix = "11" if version == "1.1" else "10"
    names = ["afqmc", "iflytek", "csl", "ocnli_50k", "cmrc2018", "cluener", "diagnostics"]
    names += [f"{task}{suffix}" for task in ("tnews", "cluewsc", "chid", "c3")]
    names += ["cmnli"] if version == "1.0" else []
    files = contents(path)
    assert sorted(files) == sorted(f"{name}_predict.json" for name in names)
    assert list(path.parent.iterdir()) == [path]
    tests = 4 if version == "1.0" else 6  # of the small test sets
    lines = files[f"tnews{suffix}_predict.json"].splitlines()
    assert [json.loads(line) for line in lines] == [{"id": n, "label": "116"} for n in range(tests)]
    lines = files[f"cluewsc{suffix}_predict.json"].splitlines()
    assert json.loads(lines[0]) == {"id": 0, "label": "false"}
    lines = files[f"c3{suffix}_predict.json"].splitlines()
    assert [json.loads(line) for line in lines] == [{"id": n, "label": "1"} for n in range(tests)]
    questions = json.loads(files["cmrc2018_predict.json"])
    assert questions == {f"TEST_{n}_QUERY_0": "一米" for n in range(5, 11)}
    tag = "#idiom623377#" if version == "1.1" else "#idiom000398#"
    assert json.loads(files[f"chid{suffix}_predict.json"])[tag] == 0
    assert json.loads(files["cluener_predict.json"].splitlines()[-1]) == {"id": 5, "label": {}}
    found = validate_submission(path, data_dir)
    assert found.is_valid
    assert found.mistakes == ()
    assert found.predictions == {name: len(json_lines(text)) for name, text in files.items()}


def json_lines(text):
    lines = text.splitlines()
    return lines if len(lines) > 1 else json.loads(text)


@pytest.mark.parametrize(
    ("predictions", "version", "output", "message"),
    [
        ({"tnews": {}}, "1.0", "a.zip", "version 1.0 has the test set tnews10, not tnews"),
        ({"c310": {}}, "1.1", "a.zip", "version 1.1 has the test set c3, not c310"),
        ({"cmnli": {}}, "1.1", "a.zip", "a submission to CLUE 1.1 has no cmnli; it has afqmc"),
        ({"drcd": {}}, "1.0", "a.zip", "a submission to CLUE 1.0 has no drcd"),
        ({"ocnli_30k": {}}, "1.0", "a.zip", "a submission to CLUE 1.0 has no ocnli_30k"),
        ({"tnew": {}}, "1.0", "a.zip", "CLUE has no task 'tnew'"),
        ({"afqmc": {}}, "2.0", "a.zip", "CLUE has no version '2.0'; there are 1.0, 1.1"),
        ({"afqmc": {}}, "1.0", "a.tar", "a submission is a zip, .*, not a.tar"),
        ({}, "1.0", "a.zip", "there is nothing to submit"),
        ({"afqmc": {}}, "1.0", "a.zip", r"afqmc has no prediction for id 0 \(6 in all\)"),
        (
            {"afqmc": dict.fromkeys(range(7), "1")},
            "1.0",
            "a.zip",
            r"afqmc has a prediction for the unknown id 6 \(1 in all\)",
        ),
        (
            {"afqmc": dict.fromkeys(range(6), 1)},
            "1.0",
            "a.zip",
            'afqmc_predict.json, line 1: label 1 must be a string: "1"',
        ),
    ],
)
def test_what_is_not_written(tmp_path, data_dir, predictions, version, output, message):
    with pytest.raises(PlugError, match=message):
        write_submission(predictions, data_dir, version, tmp_path / output)
    assert list(tmp_path.iterdir()) == []


def test_a_zip_that_is_there_is_not_replaced(tmp_path, data_dir):
    path = tmp_path / "submit_team_1.zip"
    predictions = predictions_of(["afqmc"], data_dir)
    write_submission(predictions, data_dir, "1.0", path)
    with pytest.raises(PlugError, match="exists already"):
        write_submission(predictions_of(["csl"], data_dir), data_dir, "1.1", path)
    assert list(contents(path)) == ["afqmc_predict.json"]


def test_a_full_disk_is_named_and_leaves_no_half_of_a_zip(tmp_path, data_dir):
    path = tmp_path / "submit_team_1.zip"
    predictions = predictions_of(["afqmc", "csl"], data_dir)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{path}'$"):
            write_submission(predictions, data_dir, "1.0", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_the_work_grows_with_the_number_of_ids_not_with_its_square():
    looked_up = 0

    class Tag(str):
        def __hash__(self):
            nonlocal looked_up
            looked_up += 1
            return super().__hash__()

    tags = [Tag(f"#idiom{n}#") for n in range(200)]
    records = [BlankRecord(tag, 0, "", "", tuple("一二三四五六七八九十"), None) for tag in tags]
    content = predictions_file(CLUE["chid"], records, dict.fromkeys(tags, 3))
    assert json.loads(content) == dict.fromkeys(tags, 3)
    assert looked_up < 10 * len(tags)


def test_a_submission_in_the_home_directory(tmp_path, data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "CLUE").symlink_to(data_dir)
    path = "~/zips/submit_team_1.zip"
    write_submission(predictions_of(["afqmc"], "~/CLUE"), "~/CLUE", "1.0", path)
    assert list(contents(tmp_path / "zips" / "submit_team_1.zip")) == ["afqmc_predict.json"]
    with pytest.raises(PlugError, match="exists already"):
        check_new(path)
    assert validate_submission(path, "~/CLUE").is_valid


def zip_of(tmp_path, *files, name="submit_team_20260101.zip"):
    with zipfile.ZipFile(tmp_path / name, "w") as file:
        for member, content in files:
            file.writestr(member, content)
    return tmp_path / name


def good(task, data_dir):
    records = CLUE[task].read(data_dir, "test").records
    return predictions_file(CLUE[task], records, constant_predictions(CLUE[task], records))


def mistakes(path, data_dir):
    found = validate_submission(path, data_dir)
    assert found.is_valid == all(mistake.is_doubt for mistake in found.mistakes)
    return [str(mistake) for mistake in found.mistakes]


def test_all_mistakes_are_found_at_once(tmp_path, data_dir):
    wsc = lines_of(*({"id": n, "label": "true"} for n in range(4)))  # of the test set 1.0
    ocnli = good("ocnli", data_dir).splitlines(keepends=True)
    path = zip_of(
        tmp_path,
        ("tnews11_predict.json", lines_of(*({"id": n, "label": str(n)} for n in range(6)))),
        ("ocnli_predict.json", b"".join(ocnli[:-1])),
        ("c311_predict.json", value_of([{"id": 0, "label": 1}])),
        ("cluewsc11_predict.json", wsc),
        ("folder/afqmc_predict.json", b"".join(good("afqmc", data_dir).splitlines(True)[::-1])),
        ("cmrc2018_predict.json", value_of({"TEST_5_QUERY_0": ""})),
        ("iflytek_predict.json", lines_of(*({"id": n % 3, "label": "0"} for n in range(6)))),
        ("notes.txt", b""),
    )
    assert mistakes(path, data_dir) == [
        "ocnli_predict.json: it is not a file of a submission; it scores 0 unless it is called "
        "ocnli_50k_predict.json",
        "folder/afqmc_predict.json: it is in a folder; files must be at the root of the zip",
        "notes.txt: it is not a file of a submission; there are " + ", ".join(FILE_NAMES.values()),
        'tnews11_predict.json, line 1: label "0" looks like the index of a class; the labels of '
        'tnews are the strings "100", "101", "102", "103", ..., and anything else scores 0 (and 5 '
        "more like this)",
        "ocnli_predict.json: 1 of 6 have no prediction; the first is id 5",
        "c311_predict.json: it is one JSON list, which scores 0; expected lines of "
        '{"id": ..., "label": ...}',
        "cluewsc11_predict.json: 2 of 6 have no prediction; the first is id 4",
        "cluewsc11_predict.json: it has the ids of the other test set; its name is "
        "cluewsc10_predict.json",
        "afqmc_predict.json: the lines are not in the order of the test file; the board reads "
        "labels alone",
        "cmrc2018_predict.json: 5 of 6 have no prediction; the first is id TEST_6_QUERY_0",
        "iflytek_predict.json, line 4: id 0 was in iflytek_predict.json, line 1 already; ids "
        "must continue from one batch to the next (and 2 more like this)",
        "iflytek_predict.json: 3 of 6 have no prediction; the first is id 3",
    ]


def test_names_that_could_be_of_two_test_sets(tmp_path, data_dir):
    path = zip_of(tmp_path, ("tnews_predict.json", good("tnews", data_dir)))
    assert mistakes(path, data_dir) == [
        "tnews_predict.json: it is not a file of a submission; it is one of tnews11_predict.json "
        "and "
        "tnews10_predict.json",
        "submit_team_20260101.zip: it has no file of predictions, <task>_predict.json",
    ]


@pytest.mark.parametrize("name", ["AFQMC_predict.json", "afqmc.json", "afqmc_predictions.json"])
def test_a_name_that_is_nearly_right_is_looked_into(tmp_path, data_dir, name):
    path = zip_of(tmp_path, (name, good("afqmc", data_dir)))
    assert mistakes(path, data_dir) == [
        f"{name}: it is not a file of a submission; it scores 0 unless it is called "
        "afqmc_predict.json"
    ]


def test_what_the_zip_itself_may_have_wrong(tmp_path, data_dir):
    path = zip_of(tmp_path, ("afqmc_predict.json", good("afqmc", data_dir)), name="mine.zip")
    found = validate_submission(path, data_dir)
    assert found.is_valid
    assert [str(one) for one in found.mistakes] == [
        "mine.zip: zips are called submit_<team>_<date>.zip"
    ]
    twice = ("afqmc_predict.json", good("afqmc", data_dir))
    path = zip_of(tmp_path, twice, (f"a/{twice[0]}", twice[1]))
    assert "a/afqmc_predict.json: the zip has it more than once" in mistakes(path, data_dir)
    assert mistakes(zip_of(tmp_path), data_dir) == [
        "submit_team_20260101.zip: it has no file of predictions, <task>_predict.json"
    ]
    with pytest.raises(PlugError, match="there is no file .*none.zip"):
        validate_submission(tmp_path / "none.zip", data_dir)
    (tmp_path / "no.zip").write_bytes(b"{}")
    with pytest.raises(PlugError, match="no.zip is not a zip file, or is truncated"):
        validate_submission(tmp_path / "no.zip", data_dir)


def test_a_damaged_file_is_one_mistake_of_all(tmp_path, data_dir):
    path = zip_of(tmp_path, ("csl_predict.json", good("csl", data_dir)), ("notes.txt", b""))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"label": "1"', b'"label": "2"', 1))  # its checksum is wrong
    first, second = mistakes(path, data_dir)[:2]
    assert first.startswith("csl_predict.json: ")
    assert "cannot be read: Bad CRC-32" in first
    assert second.startswith("notes.txt: it is not a file of a submission")


def test_a_file_whose_test_split_is_not_there_cannot_be_checked(tmp_path, data_dir):
    only = official.write_clue(tmp_path / "only", ["afqmc"])
    path = zip_of(tmp_path, ("csl_predict.json", good("csl", data_dir)))
    (mistake,) = mistakes(path, only)
    assert mistake.startswith("csl_predict.json: it cannot be checked: ")
    assert "has no csl; looked for csl, csl_public and csl_public.zip in it" in mistake
