"""`plug-jax score-generation`, as a command."""

import json

import pytest

from plug_jax.cli.main import main
from tests.generation_tasks.official_files import QUESTIONS, WRITERS, write_lines

RIGHT = [question for _, _, question in QUESTIONS]


def generated(text, **fields):
    return {**fields, "generated": [{"text": text, "tokens": 3}, {"text": "别的", "tokens": 2}]}


def rows(**fields):
    """Rows as infer writes them: two correct texts, and one without 天气."""
    texts = [RIGHT[0], "今日？", RIGHT[2]]
    return [
        generated(text, id=n, references=[right], **fields)
        for n, (text, right) in enumerate(zip(texts, RIGHT, strict=True))
    ]


def scored(capsys, path, *options, status=0):
    """Its JSON output."""
    assert main(["score-generation", "--predictions", str(path), "--json", *options]) == status
    return json.loads(capsys.readouterr().out)


def refused(capsys, path, *options):
    """Its error message."""
    assert main(["score-generation", "--predictions", str(path), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_the_rows_of_infer_with_their_own_references(tmp_path, capsys):
    path = write_lines(tmp_path / "texts.jsonl", rows())
    got = scored(capsys, path)
    metrics = got.pop("metrics")
    assert got == {
        "convention": "plug", "rows": 3, "scored": 3, "errors": 0, "empty": 0,
        "short_references": 0, "without_prediction": 0,
    }  # fmt: skip
    # 5 + 3 + 6 characters, all correct, of 5 + 5 + 6: exp(1 - 16/14).
    assert metrics["bleu_1"] == pytest.approx(86.6878, abs=1e-4)
    # Pairs: 4 + 1 (今日) + 5 of 4 + 2 + 5.
    assert metrics["bleu_2"] == pytest.approx(86.6878 * (10 / 11) ** 0.5, abs=1e-4)
    # 今日？ has P 1 and R 3/5: 2.44 * 0.6 / (0.6 + 1.44).
    assert metrics["rouge_l"] == pytest.approx(100 * (2 + 2.44 * 0.6 / 2.04) / 3)
    assert metrics["distinct_1"] == pytest.approx(100 * 12 / 14)  # ？ three times, others once
    assert main(["score-generation", "--predictions", str(path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("rows 3  scored 3  errors 0  empty 0")
    assert shown[1].startswith("bleu_1 86.69  bleu_2 82.65")


def test_references_of_the_official_files_are_found_by_id(tmp_path, capsys):
    data = str(WRITERS["dureader_qg"](tmp_path / "qg"))
    expected = scored(capsys, write_lines(tmp_path / "own.jsonl", rows()))["metrics"]
    bare = [{k: v for k, v in row.items() if k != "references"} for row in rows()]
    path = write_lines(tmp_path / "bare.jsonl", bare[::-1])
    official = ["--task", "dureader_qg", "--data", data]
    assert scored(capsys, path, *official)["metrics"] == pytest.approx(expected)
    assert scored(capsys, path, *official, "--split", "dev")["metrics"] == pytest.approx(expected)
    file = ["--task", "dureader_qg", "--data", f"{data}/train.json", "--split", "train"]
    assert scored(capsys, path, *file)["metrics"] == pytest.approx(expected)
    write_lines(path, bare[:2])
    got = scored(capsys, path, *official)
    assert (got["rows"], got["without_prediction"]) == (2, 1)
    write_lines(path, [generated("好", id=9)])
    assert "bare.jsonl, line 1: there is no reference of the id 9" in refused(
        capsys, path, *official
    )
    assert "have no reference" in refused(capsys, path)
    assert "--task and --data go together" in refused(capsys, path, "--task", "dureader_qg")
    assert "no generation task 'x'" in refused(capsys, path, "--task", "x", "--data", data)


@pytest.mark.parametrize("name", ["references.tsv", "references.csv", "references.jsonl"])
def test_references_of_a_file_by_their_order(tmp_path, capsys, name):
    path = write_lines(tmp_path / "texts.jsonl", [{"prediction": t} for t in RIGHT])
    references = tmp_path / name
    if name.endswith("jsonl"):
        write_lines(references, [{"references": [t, "好"]} for t in RIGHT])
    else:
        references.write_text("target\n" + "".join(f"{t}\n" for t in RIGHT), encoding="utf-8")
    got = scored(capsys, path, "--references", str(references))
    assert got["metrics"]["bleu_4"] == pytest.approx(100)
    write_lines(path, [{"prediction": "好"}])
    message = refused(capsys, path, "--references", str(references))
    assert "There are 1 predictions and 3 references" in message
    official = ["--references", str(references), "--task", "lcsts", "--data", "x"]
    assert "give either --references or --task" in refused(capsys, path, *official)


def test_ids_that_do_not_tell_rows_apart(tmp_path, capsys):
    path = write_lines(tmp_path / "texts.jsonl", rows())
    references = [{"id": n, "target": text} for n, text in enumerate(RIGHT)]
    file = tmp_path / "references.jsonl"
    options = ["--references", str(file)]
    write_lines(file, [*references, references[1]])
    assert "The id '1' occurs more than once among the ref" in refused(capsys, path, *options)
    write_lines(file, [*references[1:], {"target": "好"}])
    assert "Of 3 references only 2 have an `id`" in refused(capsys, path, *options)
    write_lines(file, references)
    write_lines(path, [*rows()[:2], rows()[1]])
    assert "The id '1' occurs more than once among the pred" in refused(capsys, path, *options)
    write_lines(path, [*rows()[:2], generated("好")])
    assert "Of 3 predictions only 2 have an `id`" in refused(capsys, path, *options)
    write_lines(file, [{"id": [1], "target": "好"}])
    assert "references.jsonl, line 1: 'id' must be a text, not [1]" in refused(
        capsys, path, *options
    )
    write_lines(file, [{"id": 0}])
    message = "references.jsonl, line 1: no references, targets, target; the fields are 'id'"
    assert message in refused(capsys, path, *options)


def test_errors_and_empty_texts_count(tmp_path, capsys):
    failed = {"id": 3, "references": ["你我他"], "error": "the prompt is too long"}
    more = [failed, generated(" ", id=4, references=["你我他"]), {**rows()[0], "id": 5}]
    more.append(generated("你我他", id=6, references=["你"]))  # too short for PLUG
    path = write_lines(tmp_path / "texts.jsonl", more)
    output = tmp_path / "new" / "scored.jsonl"
    got = scored(capsys, path, "--output", str(output), status=3)
    counts = {"rows": 4, "scored": 3, "errors": 1, "empty": 1, "short_references": 1}
    assert got.items() >= counts.items()
    assert got["metrics"]["rouge_1"] == pytest.approx(100 / 3)
    written = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    for row, given in zip(written, more, strict=True):
        assert row.items() >= given.items()
    assert [row["prediction"] for row in written] == ["", " ", RIGHT[0], "你我他"]
    assert written[3]["scores"] is None
    assert written[2]["scores"] == pytest.approx({"rouge_1": 100, "rouge_2": 100, "rouge_l": 100})
    got = scored(capsys, path, "--convention", "clge", "--output", str(output), status=3)
    assert got["scored"] == 4
    written = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert written[2]["scores"]["bleu_4"] == pytest.approx(100)


def test_the_prefix_of_a_template_is_taken_off(tmp_path, capsys):
    with_prefix = [
        # The prefix as given, as normalised by a vocabulary, and absent. A text that begins with
        # only some characters of the prefix keeps them.
        generated("问题：" + RIGHT[0], target_prefix="问题：", references=[RIGHT[0]]),
        generated("问题:" + RIGHT[1], target_prefix="问题：", references=[RIGHT[1]]),
        generated("题问" + RIGHT[2], target_prefix="问题：", references=["题问" + RIGHT[2]]),
    ]
    path = write_lines(tmp_path / "texts.jsonl", with_prefix)
    assert scored(capsys, path)["metrics"]["bleu_4"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"target": "天"}, "line 2: expected `generated`, the list of texts of `plug-jax infer`"),
        ({"generated": [{"txt": "天"}], "target": "天"}, "line 2: expected `generated`"),
        ({"prediction": "天", "references": [1]}, "line 2: 'references' must be a text or a list"),
        ({"prediction": "\ud83d", "target": "天"}, "line 2: 'prediction' holds half of a surr"),
        ({"generated": ["\ud83d"], "target": "天"}, "line 2: 'generated' holds half of a surr"),
        ({"prediction": "天", "target": "\ud83d"}, "line 2: 'target' holds half of a surrogate"),
        ({**rows()[0], "target_prefix": 5}, "line 2: 'target_prefix' must be a text, not 5"),
        ({"prediction": "天", "references": []}, "1 of 2 rows have no reference; the first is "),
    ],
)
def test_rows_that_cannot_be_scored(tmp_path, capsys, row, message):
    path = write_lines(tmp_path / "texts.jsonl", [rows()[0], row])
    assert message in refused(capsys, path)


def test_files_that_cannot_be_scored(tmp_path, capsys):
    assert "cannot read nothing.jsonl" in refused(capsys, "nothing.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert "empty.jsonl has no row" in refused(capsys, empty)
    path = write_lines(tmp_path / "texts.jsonl", rows())
    assert "would replace what is read" in refused(capsys, path, "--output", str(path))
    assert path.stat().st_size
    message = "no convention 'bleu'; there are plug, paddlenlp, t5_pegasus, clge, cpt"
    assert message in refused(capsys, path, "--convention", "bleu")
    path.write_bytes(path.read_bytes()[:-9])
    assert "texts.jsonl, line 3 is not JSON" in refused(capsys, path)
