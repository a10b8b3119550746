"""CLUE without training: templates, prediction files, and their scores."""

import json
from pathlib import Path

import pytest

from plug_jax.cli import gin_config
from plug_jax.cli.main import main
from plug_jax.clue.scoring import score_files
from plug_jax.clue.submission import FILE_NAMES
from plug_jax.clue.tasks import CLUE
from plug_jax.errors import PlugError
from plug_jax.inference.model import InferenceModel
from plug_jax.inference.zero_shot import ZeroShot, clue_rows, published_words
from tests.clue import official
from tests.stored_model import write_stored_model

GIN = Path(gin_config.__file__).parents[2] / "gin_configs" / "zero_shot"
TASKS = sorted(path.stem for path in GIN.glob("*.gin") if path.stem != "common")


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_PROCESSES", "1")
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """CLUE's files, and a name for each of IFLYTEK's labels."""
    directory = official.write_clue(tmp_path_factory.mktemp("clue"), zipped=["chid"])
    names = [{"label": label, "label_des": app(int(label))} for label in CLUE["iflytek"].labels]
    (directory / "iflytek_public" / "labels.json").write_bytes(official.lines_of(*names))
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, data_dir):
    """A model with the characters of the files and the templates, and 48 positions."""
    texts = [content.decode() for name in official.FOLDERS for content in files(name)]
    texts += [path.read_text(encoding="utf-8") for path in GIN.glob("*.gin")]
    characters = sorted({one for text in texts for one in text.lower() if not one.isspace()})
    return write_stored_model(tmp_path_factory.mktemp("model"), characters=characters)


def app(number):
    return "天气手机花园电影书店汽"[number // 11] + "天气手机花园电影书店汽"[number % 11]


def files(folder):
    return official.files_of(folder).values()


def configured(task, data_dir, *bindings):
    given = [f"CLUE_DIR = {str(data_dir)!r}", "CHECKPOINT = 'run2'", *bindings]
    return gin_config.configured(ZeroShot, files=[f"zero_shot/{task}.gin"], bindings=given)


def run(capsys, *arguments):
    status = main(["zero-shot", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_there_are_templates_for_every_task_of_labels_and_choices():
    asks = {task.folders: task.name for task in reversed(CLUE.values())}  # the first of each
    kinds = ("text", "choice", "blank")
    assert set(TASKS) == {name for name in asks.values() if CLUE[name].kind in kinds}


@pytest.mark.parametrize("task", TASKS)
def test_templates_have_the_labels_of_the_task_and_fields_of_its_rows(task, data_dir):
    config = configured(task, data_dir)
    assert config.task == task
    labels = config.work.labels
    for row in config.job.rows:
        words = row.fields[labels] if isinstance(labels, str) else list(labels.values())
        assert all(words)
        assert len(set(words)) == len(words)
        for template in (config.work.template, config.work.prompt_template):
            template.format(**{**row.fields, "label": ""})
    if not isinstance(labels, str):
        assert labels.keys() == set(CLUE[task].labels)


@pytest.mark.parametrize(
    "task",
    ["ocnli", "chid"]
    + [
        pytest.param(task, marks=pytest.mark.slow)
        for task in TASKS
        if task not in ("ocnli", "chid", "diagnostics")  # diagnostics have no dev file
    ],
)
def test_the_file_is_one_that_clue_score_takes_and_its_score_is_what_was_printed(
    task, data_dir, checkpoint, tmp_path, capsys
):
    output, kept = tmp_path / "out" / FILE_NAMES[task], tmp_path / "rows.jsonl"
    given = ("--task", task, "--checkpoint", checkpoint, "--data_dir", data_dir, "--json")
    status, out, _ = run(capsys, *given, "--output", output, "--rows", kept)
    found = json.loads(out)
    assert status == 0
    assert found["metrics"] == score_files([str(output)], data_dir)[task].to_json()["metrics"]
    assert found["records"] == len(CLUE[task].read(data_dir, "dev").records)
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    if task == "chid":  # greedily, the best of all pairs first: no idiom twice on a line
        predicted = json.loads(output.read_bytes())
        assert list(predicted) == [row["id"] for row in rows]
        for line in {row["line"] for row in rows}:
            of_line = [row for row in rows if row["line"] == line]
            best = max(of_line, key=lambda row: max(row["scores"].values()))
            assert predicted[best["id"]] == int(best["prediction"])
            assert len({predicted[row["id"]] for row in of_line}) == len(of_line)
    else:
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert lines == [{"id": row["id"], "label": row["prediction"]} for row in rows]


def test_what_is_compared_is_what_the_templates_say(data_dir, checkpoint, tmp_path, capsys):
    output = tmp_path / "predictions.json"
    given = ("--checkpoint", checkpoint, "--data_dir", data_dir, "--output", output)
    settings = ("--gin.TEMPLATE='{label}新闻'", "--gin.PROMPT_TEMPLATE='{text}吗'")
    kept = tmp_path / "rows.jsonl"
    status, out, _ = run(
        capsys, "--task", "tnews10", *given, *settings, "--split", "test", "--rows", kept
    )
    assert (status, out) == (0, f"tnews10 test: 4 predictions in {output}\n")
    model, words = InferenceModel.load(checkpoint), configured("tnews", data_dir).work.labels
    encode = model.vocabulary.encode
    targets = tuple((*encode(f"{label}新闻"), model.vocabulary.sep_id) for label in words.values())
    [without] = model.log_likelihoods([model.prompt_ids("吗")], [targets])
    predicted = [json.loads(line)["label"] for line in output.read_text().splitlines()]
    for row, label in zip(
        clue_rows(task="tnews10", data_dir=str(data_dir), split="test"), predicted, strict=True
    ):
        [scored] = model.log_likelihoods([model.prompt_ids(row.fields["text"] + "吗")], [targets])
        pmi = [sum(one) - sum(other) for one, other in zip(scored, without, strict=True)]
        assert label == list(words)[pmi.index(max(pmi))]


def test_the_same_command_again_takes_the_rows_that_are_there(
    data_dir, checkpoint, tmp_path, capsys, monkeypatch
):
    output, kept = tmp_path / "afqmc_predict.json", tmp_path / "rows.jsonl"
    given = ("--task", "afqmc", "--checkpoint", checkpoint, "--data_dir", data_dir)
    given += ("--output", output, "--rows", kept, "--normalize", "mean")
    status, first, _ = run(capsys, *given)
    content = output.read_bytes()
    assert "accuracy" in first and "(mean)" in first
    output.unlink()
    monkeypatch.setattr(InferenceModel, "load", None)
    assert run(capsys, *given)[:2] == (status, first)
    assert output.read_bytes() == content
    status, _, err = run(capsys, *given[:-1], "sum")
    assert status == 2
    assert "normalize" in err


def test_without_an_answer_for_each_record_no_file_is_written(
    data_dir, checkpoint, tmp_path, capsys
):
    output = tmp_path / "eprstmt_predict.json"
    given = ("--task", "eprstmt", "--checkpoint", checkpoint, "--data_dir", data_dir)
    long = f"--gin.TEMPLATE='{{label}}{'好' * 50}'"
    status, out, err = run(capsys, *given, "--output", output, long)
    assert (status, out) == (3, "")
    assert f"6 of 6 records have no answer, and {output} is not written" in err
    assert "a target has 53 tokens" in err
    assert not output.exists()


def test_long_prompts_are_cut_and_counted(data_dir, checkpoint, tmp_path, capsys):
    output = tmp_path / "eprstmt_predict.json"
    given = ("--task", "eprstmt", "--checkpoint", checkpoint, "--data_dir", data_dir)
    given += ("--output", output, "--gin.MAX_PROMPT_TOKENS=5", "--split", "test_public")
    status, out, _ = run(capsys, *given)
    assert status == 0
    assert "6 prompts were truncated: longer than MAX_PROMPT_TOKENS or" in out


@pytest.mark.parametrize(
    ("task", "bindings", "message"),
    [
        ("afqmc", ["LABEL_WORDS = {'0': '不同', '2': '相同'}"], "it has no '2'; '1' has none"),
        ("afqmc", ["LABEL_WORDS = 'choices'"], "cannot be 'choices': a row of it has no list"),
        ("c3", ["LABEL_WORDS = {'0': '一', '1': '二'}"], "a row of it lists them under 'choices'"),
        ("tnews", ["SPLIT = 'trial'"], "tnews has no split 'trial'"),
        ("tnews", ["NORMALIZE = 'max'"], r"normalize must be one of .* \(set by NORMALIZE\)"),
        ("tnews", ["CLUE_TASK = 'cmrc2018'"], "cmrc2018 has no labels or choices"),
    ],
)
def test_what_cannot_be_is_said(task, bindings, message, data_dir):
    with pytest.raises(PlugError, match=message):
        configured(task, data_dir, *bindings)


def test_names_of_labels_come_from_the_archive(data_dir, tmp_path):
    found = published_words(task="iflytek", data_dir=str(data_dir), key="label_des")
    assert found == {str(number): app(number) for number in range(119)}
    with pytest.raises(PlugError, match=r"labels\.json, line 1 has no 'label_name'"):
        published_words(task="iflytek", data_dir=str(data_dir), key="label_name")
    with pytest.raises(PlugError, match=r"afqmc_public has no file labels\.json"):
        published_words(task="afqmc", data_dir=str(data_dir), key="label_des")
    official.write_clue(tmp_path, ["iflytek"])  # with only three labels
    with pytest.raises(PlugError, match="words for the labels of iflytek: '1' has none; '2' has"):
        configured("iflytek", tmp_path)


def test_rows_have_what_stands_beside_a_blank(tmp_path):
    (tmp_path / "chid").mkdir()
    content = f"{'前' * 120}#idiom000001#中#idiom000002#{'后' * 120}"
    line = {"content": [content], "candidates": [f"{n}心{n}意" for n in "一二三四五六七八九十"]}
    (tmp_path / "chid" / "dev.json").write_bytes(official.lines_of(line))
    answers = official.value_of({"#idiom000001#": 3, "#idiom000002#": 0})
    (tmp_path / "chid" / "dev_answer.json").write_bytes(answers)
    first, second = clue_rows(task="chid", data_dir=str(tmp_path), split="dev")
    assert first.fields == {
        "id": "#idiom000001#",
        "line": 0,
        "left": "前" * 100,
        "right": f"中____{'后' * 95}",
        "choices": line["candidates"],
        "label": 3,
    }
    assert second.fields["left"] == f"{'前' * 95}____中"


def test_commands_with_mistakes(data_dir, checkpoint, tmp_path, capsys):
    given = ("--checkpoint", checkpoint, "--data_dir", data_dir, "--output", tmp_path / "out.json")
    for arguments, message in (
        (("--task", "cmrc2018", *given), "cmrc2018 has no labels or choices"),
        (("--task", "tnew", *given), "CLUE has no task 'tnew'; did you mean 'tnews'?"),
        (("--task", "tnews", *given[:-1], tmp_path), "is a directory; name a file"),
        (("--task", "tnews", *given[:2], *given[4:]), "CLUE_DIR"),
    ):
        status, _, err = run(capsys, *arguments)
        assert status == 2
        assert message in err
