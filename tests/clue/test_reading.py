"""Every CLUE file format as records, including the irregularities of the real files."""

import subprocess
import sys
import tracemalloc
import zipfile

import pytest

from plug_jax.clue import archives
from plug_jax.clue.records import (
    BlankRecord,
    ChoiceRecord,
    Entity,
    EntityRecord,
    QuestionRecord,
    SpanAnswer,
    TextRecord,
)
from plug_jax.clue.tasks import CLUE, find_task, tasks_in
from plug_jax.errors import PlugError
from tests.clue import official
from tests.clue.official import lines_of, value_of

PAIR = {"sentence1": "天冷吗", "sentence2": "冷不冷"}


def read(tmp_path, task, split, **files):
    """The records of a task whose folder has these files (`dev=` is dev.json)."""
    return put(tmp_path, task, **files).read(tmp_path, split)


def put(tmp_path, task, **files):
    folder = tmp_path / f"{official.FOLDER_OF[task]}_public"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name.replace('__', '-')}.json").write_bytes(content)
    return CLUE[task]


@pytest.mark.parametrize("task", CLUE)
def test_every_split_of_every_task_reads_alike_from_folders_and_zips(tmp_path, task):
    folder = official.FOLDER_OF[task]
    folders = official.write_clue(tmp_path / "folders", [folder])
    zips = official.write_clue(tmp_path / "zips", [folder], zipped=[folder])
    for split in CLUE[task].splits:
        from_folder = CLUE[task].read(folders, split)
        assert from_folder.records
        assert len({record.id for record in from_folder.records}) == len(from_folder.records)
        assert CLUE[task].read(zips, split).records == from_folder.records
        assert CLUE[task].read(zips / f"{folder}_public.zip", split) == CLUE[task].read(zips, split)
        assert CLUE[task].read(folders / f"{folder}_public", split) == from_folder


@pytest.mark.parametrize("name", ["AFQMC", "afqmc", "afqmc_public", "AFQMC_public", "any"])
def test_a_folder_is_found_under_each_of_its_names(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "dev.json").write_bytes(lines_of({**PAIR, "label": "1"}))
    place = tmp_path / name if name == "any" else tmp_path
    assert CLUE["afqmc"].read(place, "dev").records == [TextRecord(0, ("天冷吗", "冷不冷"), "1")]


def test_a_folder_within_the_tasks_folder_is_looked_into(tmp_path):
    (tmp_path / "cmnli" / "cmnli_public").mkdir(parents=True)
    dev = tmp_path / "cmnli" / "cmnli_public" / "dev.json"
    dev.write_bytes(lines_of({**PAIR, "label": "neutral"}))
    split = CLUE["cmnli"].read(tmp_path, "validation")
    assert (len(split.records), split.path) == (1, str(dev))


@pytest.mark.parametrize("zipped", [[], ["afqmc"]])
def test_a_link_is_called_by_its_own_name(tmp_path, zipped):
    (folder,) = official.write_clue(tmp_path / "store", ["afqmc"], zipped=zipped).iterdir()
    kept = folder.rename(folder.with_name("AFQMC-2020-v1"))
    (tmp_path / "CLUE").mkdir()
    link = tmp_path / "CLUE" / folder.name
    link.symlink_to(kept)
    split = CLUE["afqmc"].read(tmp_path / "CLUE", "dev")
    assert split.records and split.path.startswith(str(link))
    assert [task.name for task in tasks_in(tmp_path / "CLUE")] == ["afqmc"]
    assert [task.name for task in tasks_in(link)] == ["afqmc"]


def test_the_current_folder_and_the_one_above_have_their_names(tmp_path, monkeypatch):
    folder = official.write_clue(tmp_path, ["afqmc"]) / "afqmc_public"
    (folder / "inner").mkdir()
    for place, name in ((folder, "."), (folder, ""), (folder / "inner", "..")):
        monkeypatch.chdir(place)
        assert [task.name for task in tasks_in(name)] == ["afqmc"]


def test_files_in_the_home_directory(tmp_path, monkeypatch):
    official.write_clue(tmp_path, ["afqmc"])
    monkeypatch.setenv("HOME", str(tmp_path))
    split = CLUE["afqmc"].read(tmp_path, "dev")
    assert [task.name for task in tasks_in("~")] == ["afqmc"]
    for place in ("~", "~/afqmc_public"):
        assert CLUE["afqmc"].read(place, "dev") == split
    assert CLUE["afqmc"].read_file("~/afqmc_public/dev.json") == split
    with pytest.raises(PlugError, match="holds the files of afqmc, not of csl"):
        CLUE["csl"].read("~/afqmc_public", "dev")


def test_what_macos_adds_to_a_zip_is_no_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "afqmc_public.zip", "w") as file:
        file.writestr("afqmc/dev.json", lines_of({**PAIR, "label": "1"}))
        file.writestr("__MACOSX/afqmc/._dev.json", b"\0\1")
        file.writestr("__MACOSX/afqmc/dev.json", b"\0\1")
    split = CLUE["afqmc"].read(tmp_path, "dev")
    assert split.path == f"{tmp_path}/afqmc_public.zip/afqmc/dev.json"


def test_the_label_lists_have_the_order_of_the_baselines():
    assert CLUE["ocnli"].labels == CLUE["cmnli"].labels
    assert CLUE["ocnli"].labels == ("contradiction", "entailment", "neutral")
    assert CLUE["cluewsc"].labels == ("true", "false")
    tnews = "100 101 102 103 104 106 107 108 109 110 112 113 114 115 116"
    assert " ".join(CLUE["tnews"].labels) == tnews
    assert CLUE["iflytek"].labels[:2] + CLUE["iflytek"].labels[-1:] == ("0", "1", "118")


def test_undecided_lines_are_dropped_where_answers_are_and_never_in_a_test(tmp_path):
    lines = lines_of(*({**PAIR, "label": label} for label in ("-", "neutral", "-")))
    split = read(tmp_path, "ocnli", "dev", dev=lines, test=lines)
    assert (split.records, split.dropped) == (
        [TextRecord(1, ("天冷吗", "冷不冷"), "neutral")],
        {"no_gold_label": 2},
    )
    test = CLUE["ocnli"].read(tmp_path, "test")
    assert [(one.id, one.label) for one in test.records] == [(0, None), (1, "neutral"), (2, None)]


def test_line_ends_blank_lines_and_a_byte_order_mark(tmp_path):
    rows = [
        {**PAIR, "label": "1"},
        {"sentence1": "\u2028甲\u0085", "sentence2": "乙", "label": "0"},
    ]
    content = b"\xef\xbb\xbf" + lines_of(*rows).replace(b"\n", b"\r\n\r\n").rstrip()
    assert read(tmp_path, "afqmc", "dev", dev=content).records == [
        TextRecord(0, ("天冷吗", "冷不冷"), "1"),
        TextRecord(1, ("\u2028甲\u0085", "乙"), "0"),
    ]


def test_ids_that_are_not_unique_are_numbers_in_train_and_an_error_in_a_test(tmp_path):
    rows = lines_of(*({"id": id_, "sentence": "好", "label": "100"} for id_ in (5, "5", 7)))
    split = read(tmp_path, "tnews", "train", train=rows, test=rows)
    assert [one.id for one in split.records] == [0, 1, 2]
    with pytest.raises(PlugError, match=r'test.json, line 2: id "5" was in .*test.json, line 1'):
        CLUE["tnews"].read(tmp_path, "test")


@pytest.mark.parametrize(
    ("spans", "text", "expected"),
    [
        # 小王走了，因为他累: 小王 at 0, 他 at 7.
        ((("小王", 0), ("他", 7)), "小王走了，因为他累", "_小王_走了，因为[他]累"),
        # The pronoun comes first.
        ((("小王", 4), ("他", 0)), "他累了，小王走了", "[他]累了，_小王_走了"),
        # A wrong index: the nearest 他, of those at 1 and 6, to 5 is the second.
        ((("小王", 2), ("他", 5)), "，他和小王，他走", "，他和_小王_，[他]走"),
        # Adjacent spans: the earlier one is first.
        ((("小王", 0), ("他", 2)), "小王他走", "_小王_[他]走"),
        ((("小王", 1), ("他", 0)), "他小王走", "[他]_小王_走"),
    ],
)
def test_wsc_marks_its_spans(tmp_path, spans, text, expected):
    (text1, index1), (text2, index2) = spans
    target = {"span1_text": text1, "span1_index": index1}
    target |= {"span2_text": text2, "span2_index": index2}
    line = lines_of({"target": target, "idx": 3, "label": "true", "text": text})
    split = read(tmp_path, "cluewsc", "dev", dev=line)
    assert split.records == [TextRecord(0, (expected,), "true")]


def test_a_span_that_is_nowhere_is_an_error(tmp_path):
    target = {"span1_text": "小李", "span1_index": 0, "span2_text": "他", "span2_index": 7}
    line = lines_of({"target": target, "label": "true", "text": "小王走了，因为他累"})
    with pytest.raises(PlugError, match='dev.json, line 1: span1_text "小李" is not in the text'):
        read(tmp_path, "cluewsc", "dev", dev=line)


def question(*answers, context="这座桥长三九米，有九米宽"):
    qas = [{"question": "多宽", "id": "Q", "answers": list(answers)}]
    data = [{"paragraphs": [{"id": "P", "context": context, "qas": qas}], "id": "P", "title": "桥"}]
    return value_of({"version": "v1.0", "data": data})


@pytest.mark.parametrize(
    ("given", "start"),
    [
        (9, 9),  # 这座桥长三九米，有九米: 九米 is at 5 and at 9
        (5, 5),
        (10, 9),
        (12, 9),
        (13, -1),
        (8, 5),  # three to the left
        (4, -1),  # nothing at 4, 3, 2, 1; positions to the right are not considered
        (-1, -1),
        (99, -1),
    ],
)
def test_the_start_of_an_answer_is_mended_up_to_three_to_the_left(tmp_path, given, start):
    answer = {"text": "九米", "answer_start": given}
    split = read(tmp_path, "cmrc2018", "dev", dev=question(answer))
    assert split.records[0].answers == (SpanAnswer("九米", start),)


def test_numbers_as_answers_are_the_text_of_the_context(tmp_path):
    answers = [{"text": 39764.0, "answer_start": 1}, {"text": 2.5, "answer_start": -1}]
    split = read(tmp_path, "cmrc2018", "dev", dev=question(*answers, context="有39764人"))
    assert split.records[0].answers == (SpanAnswer("39764", 1), SpanAnswer("2.5", -1))


def test_the_first_format_of_cmrc(tmp_path):
    qas = [
        {"query_id": "DEV_0_QUERY_0", "query_text": "多少", "answers": ["39764人", 39764.0, "无"]}
    ]
    context = {"context_id": "DEV_0", "context_text": "有39764人", "qas": qas, "title": "人"}
    split = read(tmp_path, "cmrc2018", "dev", dev=value_of([context]))
    answers = (SpanAnswer("39764人", 1), SpanAnswer("39764", 1), SpanAnswer("无", -1))
    assert split.records == [QuestionRecord("DEV_0_QUERY_0", "有39764人", "多少", answers)]


def test_placeholders_in_the_test_of_cmrc_are_not_read(tmp_path):
    split = read(tmp_path, "cmrc2018", "test", test=question({"nonsense": 0}))
    assert split.records == [QuestionRecord("Q", "这座桥长三九米，有九米宽", "多宽", ())]


def test_drcd_is_read_in_its_own_script_and_has_answers_in_the_test(tmp_path):
    record = CLUE["drcd"].read(official.write_clue(tmp_path, ["drcd"]), "test").records[0]
    # The sixth article: 五 + 1.
    assert record.context == "這座橋長六米，很有名。"
    assert record.answers == (SpanAnswer("六米", 4), SpanAnswer("六米", 4))


def test_blanks_of_a_line_share_candidates_and_keep_other_tags(tmp_path):
    candidates = list("一二三四五六七八九十")
    lines = [
        {"content": ["甲#idiom623377#乙#idiom000001#丙", "丁"], "candidates": candidates},
        {"content": ["#idiom9#"], "candidates": candidates[::-1]},
    ]
    answers = {"#idiom623377#": 3, "#idiom000001#": 0, "#idiom9#": 9, "#idiom5#": 1}
    split = read(tmp_path, "chid", "dev", dev=lines_of(*lines), dev_answer=value_of(answers))
    assert split.records == [
        BlankRecord("#idiom623377#", 0, "甲", "乙#idiom000001#丙", tuple(candidates), 3),
        BlankRecord("#idiom000001#", 0, "甲#idiom623377#乙", "丙", tuple(candidates), 0),
        BlankRecord("#idiom9#", 1, "", "", tuple(candidates[::-1]), 9),
    ]


def test_c3_reads_dialogues_before_texts_and_takes_the_last_equal_choice(tmp_path):
    def passage(line, *choices):
        return [[["甲", line], [{"question": "？", "choice": choices, "answer": "三"}], "7-1"]]

    files = {
        "m__dev": value_of(passage("文", "三", "四", "三"), indent=1).replace(b"\n", b"\r\n"),
        "d__dev": value_of(passage("话", "三", "四")),
    }
    assert read(tmp_path, "c3", "dev", **files).records == [
        ChoiceRecord(0, "甲\n话", "？", ("三", "四"), 0),
        ChoiceRecord(1, "甲\n文", "？", ("三", "四", "三"), 2),
    ]


def test_ends_of_entities_are_exclusive(tmp_path):
    label = {"name": {"王": [[0, 0], [5, 5]]}, "address": {"杭州": [[2, 3]]}}
    lines = lines_of({"text": "王在杭州，王", "label": label}, {"text": "无", "label": {}})
    assert read(tmp_path, "cluener", "dev", dev=lines).records == [
        EntityRecord(
            0,
            "王在杭州，王",
            (
                Entity("name", "王", 0, 1),
                Entity("name", "王", 5, 6),
                Entity("address", "杭州", 2, 4),
            ),
        ),
        EntityRecord(1, "无", ()),
    ]


CANDIDATES = [str(i) for i in range(10)]
BLANK = lines_of({"content": ["#idiom1#"], "candidates": CANDIDATES})
C3 = [[["甲"], [{"question": "？", "choice": ["三", "四"], "answer": "三"}], "7-1"]]


@pytest.mark.parametrize(
    ("task", "files", "message"),
    [
        ("afqmc", {}, "afqmc_public has no file dev.json; it has nothing"),
        ("afqmc", {"dev": b""}, "dev.json is empty; expected one JSON object per line"),
        (
            "afqmc",
            {"dev": lines_of({**PAIR, "label": "1"}, {"sentence1": "天", "label": "1"})},
            "dev.json, line 2 has no 'sentence2'; it has 'sentence1', 'label'",
        ),
        ("afqmc", {"dev": lines_of(PAIR)}, "dev.json, line 1 has no 'label'"),
        (
            "afqmc",
            {"dev": lines_of({**PAIR, "label": 1})},
            "dev.json, line 1: 'label' is 1; expected a string",
        ),
        (
            "afqmc",
            {"dev": lines_of({**PAIR, "label": "2"})},
            'dev.json, line 1: label "2" is not one of 0, 1',
        ),
        (
            "tnews",
            {"dev": lines_of({"sentence": "好", "label": "105"})},
            'dev.json, line 1: label "105" is not one of 100, 101',
        ),
        (
            "afqmc",
            {"dev": lines_of({**PAIR, "label": "1"}, PAIR)[:-9]},
            "dev.json, line 2 is cut off: .*; expected one JSON object per line",
        ),
        ("afqmc", {"dev": b'{"a": 1, "a": 2}'}, "line 1 is not JSON: the key 'a' comes twice"),
        ("afqmc", {"dev": b'{"a": NaN}'}, "line 1 is not JSON: NaN is not a JSON value"),
        ("afqmc", {"dev": b"[]\n"}, r"line 1: the line is \[\]; expected an object"),
        ("afqmc", {"dev": b'{"a": "\xb0\xa1"}'}, "dev.json, line 1 is not UTF-8"),
        ("afqmc", {"dev": "天冷".encode("utf-16")}, "dev.json, line 1 is not UTF-8"),
        ("cmrc2018", {"dev": question()[:-2]}, "dev.json is cut off: Expecting"),
        ("cmrc2018", {"dev": question()[:-4]}, "dev.json is cut off: Unterminated"),
        ("cmrc2018", {"dev": question()[:-6]}, "dev.json is cut off in a character"),
        ("csl", {"dev": lines_of({"abst": "", "keyword": "茶"})}, "has no 'label'"),
        (
            "csl",
            {"dev": lines_of({"abst": "文", "keyword": "茶", "label": "1"})},
            "'keyword' is \"茶\"; expected a list",
        ),
        ("cmrc2018", {"dev": b'{\n"a":\n}'}, "dev.json, line 3 is not JSON"),
        ("cmrc2018", {"dev": b'{\n"a": "\xb0\xa1"}'}, "dev.json, line 2 is not UTF-8"),
        ("cmrc2018", {"dev": question()}, "article 1, question Q has no answer"),
        ("cmrc2018", {"dev": question({"text": "", "answer_start": 0})}, "an answer is empty"),
        (
            "cmrc2018",
            {"dev": question({"text": "九米", "answer_start": "5"})},
            "question Q: 'answer_start' is \"5\"; expected an integer",
        ),
        ("cmrc2018", {"dev": value_of({"version": 1})}, "dev.json has no 'data'"),
        ("cmrc2018", {"dev": value_of({"data": []})}, "dev.json gives no record for cmrc2018"),
        ("cmrc2018", {"dev": b'"a"'}, "expected an object or a list"),
        ("chid", {"dev": BLANK}, "has no file dev_answer.json; it has dev.json"),
        (
            "chid",
            {"dev": BLANK, "dev_answer": b"{}"},
            "dev_answer.json: the answer to #idiom1# .*dev.json, line 1.* is not there",
        ),
        ("chid", {"dev": BLANK, "dev_answer": b'{"#idiom1#": 10}'}, "is 10; expected an integer"),
        ("chid", {"dev": BLANK, "dev_answer": b'{"#idiom1#": true}'}, "is true; expected an int"),
        (
            "chid",
            {"dev": BLANK * 2, "dev_answer": b'{"#idiom1#": 1}'},
            "line 2: the blank #idiom1# was in .*dev.json, line 1 already",
        ),
        (
            "chid",
            {"dev": lines_of({"content": [], "candidates": ["一"]}), "dev_answer": b"{}"},
            "line 1 has 1 candidates; expected 10",
        ),
        ("c3", {"d__dev": value_of(C3)}, "has no file m-dev.json; it has d-dev.json"),
        (
            "c3",
            {"d__dev": value_of(C3), "m__dev": value_of(C3)[:-3]},
            "m-dev.json is cut off",
        ),
        (
            "c3",
            {"d__dev": value_of(C3), "m__dev": value_of([[["甲"]]])},
            "m-dev.json, passage 1 is .*; expected .lines, questions, id., a list of three",
        ),
        (
            "cluener",
            {"dev": lines_of({"text": "王在", "label": {"person": {"王": [[0, 0]]}}})},
            'type "person" is not one of address, book',
        ),
        (
            "cluener",
            {"dev": lines_of({"text": "王在", "label": {"name": {"王": [[0, 1]]}}})},
            r'line 1: "王" is not at \[0, 1\] of the text, which has "王在" there',
        ),
        (
            "cluener",
            {"dev": lines_of({"text": "王在", "label": {"name": {"王": [0]}}})},
            r'"王" is at 0; expected \[first character, last character\]',
        ),
    ],
)
def test_what_is_not_as_it_should_be_is_named(tmp_path, task, files, message):
    with pytest.raises(PlugError, match=message):
        read(tmp_path, task, "dev", **files)


def test_an_answer_of_c3_is_among_its_two_to_four_choices(tmp_path):
    def passage(*choices):
        return value_of([[["甲"], [{"question": "？", "choice": choices, "answer": "三"}], "1"]])

    with pytest.raises(PlugError, match='the answer "三" is not one of .*"二", "四"'):
        read(tmp_path, "c3", "dev", d__dev=passage("二", "四"), m__dev=passage("三", "四"))
    with pytest.raises(PlugError, match='passage 1: "？" has 5 choices; expected 2 to 4'):
        read(tmp_path, "c3", "dev", d__dev=passage(*"三四五六七"))


def test_a_task_that_is_not_there(tmp_path):
    with pytest.raises(PlugError, match="has no afqmc; looked for afqmc, afqmc_public and afqmc_p"):
        CLUE["afqmc"].read(tmp_path, "dev")
    with pytest.raises(PlugError, match="there is no file or folder .*nowhere"):
        CLUE["afqmc"].read(tmp_path / "nowhere", "dev")
    for read in (lambda path: CLUE["afqmc"].read(path, "dev"), tasks_in):
        with pytest.raises(PlugError, match="folder gs://bucket/CLUE; CLUE is read from disks"):
            read("gs://bucket/CLUE")
    with pytest.raises(PlugError, match="afqmc has no split 'trial', only train, validation, test"):
        CLUE["afqmc"].read(tmp_path, "trial")
    with pytest.raises(PlugError, match="CLUE has no task 'TNEWS'; did you mean 'tnews'"):
        find_task("TNEWS")


def test_the_folder_of_another_task_is_not_read(tmp_path):
    official.write_clue(tmp_path, ["tnews"])
    with pytest.raises(PlugError, match="tnews_public holds the files of tnews, not of afqmc"):
        CLUE["afqmc"].read(tmp_path / "tnews_public", "dev")


def test_zips_that_are_damaged_or_bombs(tmp_path, monkeypatch):
    zip_path = tmp_path / "afqmc_public.zip"
    official.write_zip(zip_path, "afqmc", {"dev.json": lines_of({**PAIR, "label": "1"}) * 50})
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    with pytest.raises(PlugError, match="dev.json says that it has .* bytes; .* 1,000 at most"):
        CLUE["afqmc"].read(tmp_path, "dev")
    monkeypatch.undo()
    assert len(CLUE["afqmc"].read(tmp_path, "dev").records) == 50
    whole = zip_path.read_bytes()
    zip_path.write_bytes(whole[:50] + bytes([whole[50] ^ 0xFF]) + whole[51:])
    with pytest.raises(PlugError, match="afqmc_public.zip/dev.json cannot be read"):
        CLUE["afqmc"].read(tmp_path, "dev")
    zip_path.write_bytes(whole[:-30])
    with pytest.raises(PlugError, match="afqmc_public.zip is not a zip file, or is truncated"):
        CLUE["afqmc"].read(tmp_path, "dev")


@pytest.mark.parametrize("declared", [0, 1000])
def test_a_zip_that_declares_less_than_it_unpacks_to_costs_no_memory(tmp_path, declared):
    path = tmp_path / "afqmc_public.zip"
    official.write_zip(path, "afqmc", {"dev.json": b" " * 50_000_000})
    with zipfile.ZipFile(path) as file:
        entry = file.start_dir
    content = bytearray(path.read_bytes())
    content[entry + 24 : entry + 28] = declared.to_bytes(4, "little")
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(PlugError, match="dev.json (cannot be read: Bad CRC-32|is empty)"):
            CLUE["afqmc"].read(tmp_path, "dev")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_zip_that_is_not_unpacked_bit_by_bit_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "afqmc_public.zip", "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("dev.json", b" " * 1000)
    with pytest.raises(PlugError, match="dev.json is compressed in a rare way; unpack it"):
        CLUE["afqmc"].read(tmp_path, "dev")


def test_reading_scoring_and_submitting_import_neither_jax_nor_tensorflow():
    program = (
        "import sys, plug_jax.clue.scoring, plug_jax.clue.submission, plug_jax.clue.inspection, "
        "plug_jax.clue.blanks; print(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert {"jax", "tensorflow", "seqio", "numpy", "scipy"} & set(run.stdout.split()) == set()
