"""Every setting is used, or the run ends with a message that names it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from plug_jax.cli import gin_config, plan
from plug_jax.cli.gin_reading import Settings
from plug_jax.cli.gin_statements import MACRO, read_bindings, read_files
from plug_jax.errors import PlugError
from plug_jax.training.program import TrainConfig

MODULE = """
import dataclasses
from collections.abc import Sequence
from typing import Any
import gin
from plug_jax.field_types import check_fields

@dataclasses.dataclass(frozen=True)
class Part:
    size: int = 1
    names: Sequence[str] = ()

    def __post_init__(self):
        check_fields(self)

@dataclasses.dataclass(frozen=True)
class Run:
    first: Part
    second: Part | None = None
    steps: int = 1
    note: Any = None

    def __post_init__(self):
        check_fields(self)

def unused(size=1):
    return size

def unused(size=1):
    return size

def late():
    return ["late"]

def named(name="a"):
    return [name]

def options(name: "OnlyForTypeCheckers" = "", **others):
    return Part(**others)

@gin.configurable
def decorated(size=1):
    return size
"""
HEAD = "from __gin__ import dynamic_registration\nimport toy\n"
RUN = (
    HEAD
    + """
STEPS = %gin.REQUIRED
SIZE = 2
SPARE = 3
SECOND = @second/toy.Part()
toy.Run:
  first = @first/toy.Part()
  second = %SECOND
  steps = %STEPS
toy.Part.size = %SIZE
second/toy.Part.size = 5
toy.unused.size = %SPARE
"""
)


@pytest.fixture(scope="module")
def toy_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A module to configure; gin registers decorated functions only once."""
    directory = tmp_path_factory.mktemp("toy")
    (directory / "toy.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(directory)
        yield importlib.import_module("toy")
    del sys.modules["toy"]


@pytest.fixture
def toy(toy_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, and a run.gin that counts as one of ours."""
    ships = tmp_path / "ships"
    ships.mkdir()
    (ships / "run.gin").write_text(RUN)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(gin_config, "search_paths", lambda: [Path.cwd(), ships])
    return toy_module


def built(
    toy: Any, *bindings: str, mine: str | bytes | None = None, first: bool = False, **options: Any
) -> Any:
    """The objects configured by run.gin, mine.gin and the command line."""
    files = ["run.gin"]
    if mine is not None:
        Path("mine.gin").write_bytes(mine if isinstance(mine, bytes) else mine.encode())
        files.insert(0 if first else 1, "mine.gin")
    return gin_config.configured(toy.Run, files=files, bindings=list(bindings), **options)


def test_files_and_command_line_are_read_as_gin_reads_them(toy: Any) -> None:
    run = built(toy, "STEPS = 1e2", mine=f"{HEAD}SIZE = 7\ntoy.Part.names = 'a'\n")
    assert run == toy.Run(toy.Part(7, ("a",)), toy.Part(5, ("a",)), 100)
    assert built(toy, "STEPS = 3", "toy.Run.second = @toy.Part()").second == toy.Part(2)
    # A call without a scope inherits its caller's.
    names = f"{HEAD}toy.Part.names = @toy.named()\nsecond/toy.named.name = 'b'\n"
    run = built(toy, "STEPS = 3", mine=names)
    assert (run.first.names, run.second.names) == (("a",), ("b",))
    alias = HEAD.replace("import toy", "import toy as mine") + "mine.Part.size = 6\n"
    assert built(toy, "STEPS = 3", mine=alias).first.size == 6


def test_a_macro_that_nothing_sets(toy: Any) -> None:
    with pytest.raises(PlugError, match=r"^required, but not set: COUNT \(--gin.COUNT=...\)$"):
        built(toy, mine=f"{HEAD}toy.Run.steps = %COUNT\n")


def test_a_parameter_that_nothing_gives(toy: Any) -> None:
    Path("own.gin").write_text(f"{HEAD}toy.Run.steps = 3\n")
    with pytest.raises(PlugError, match=r"^required, but not set: Run\(first\)"):
        gin_config.configured(toy.Run, files=["own.gin"], bindings=[])
    kept = built(toy, "STEPS = 1", mine=f"{HEAD}toy.Run.note = @toy.Run\n")
    assert callable(kept.note)  # is not called here, and may be given what it needs later


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("steps = 3", "--gin.steps=3: nothing in this run reads steps; did you mean STEPS?"),
        ("Steps = 3", "; did you mean STEPS?"),
        ("SPARE = 4", "SPARE: it is for toy.unused.size, which this run does not use"),
        ("first/SIZE = 3", "nothing in this run reads first/SIZE; did you mean SIZE?"),
        ("toy.Part.sise = 3", "reads toy.Part.sise; did you mean toy.Part.size?"),
        ("toy.unused.size = 3", "nothing in this run reads toy.unused.size"),
        ("toy.part.size = 3", "toy.part: toy has no part; did you mean Part?"),
        ("tay.Part.size = 3", "there is no tay.Part; did you mean toy.Part.size?"),
        ("toy.Run.second = @tay.Part()", "there is no tay.Part; did you mean toy.Part?"),
        ("toy.Run.second = @mine.Own()", "there is no mine.Own; its module must be imported, by"),
        ("third/toy.Part.size = 3", "reads third/toy.Part.size; did you mean "),
        ("first/second/toy.Part.size = 3", "reads first/second/toy.Part.size"),
        ("toy.Run.second = @other/toy.Prat()", "toy.Prat: toy has no Prat; did you mean Part?"),
    ],
)
def test_a_setting_that_nothing_reads(toy: Any, binding: str, message: str) -> None:
    name, _, value = binding.partition(" = ")
    with pytest.raises(PlugError) as raised:
        built(toy, "STEPS = 1", binding)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"--gin.{name}={value}: ")
    with pytest.raises(PlugError) as raised:
        built(toy, "STEPS = 1", mine=f"{HEAD}\n{binding}\n")
    assert message.removeprefix(f"--gin.{name}={value}: ") in str(raised.value)
    assert str(raised.value).startswith("mine.gin:4: ")


def test_every_setting_that_nothing_reads_is_named_with_what_is_missing(toy: Any) -> None:
    with pytest.raises(PlugError) as raised:
        built(toy, "STPES = 3", mine="SISE = 3\n")
    unread, misspelt, missing = str(raised.value).split("\n")
    assert unread.startswith("mine.gin:1: nothing in this run reads SISE; did you mean SIZE")
    assert misspelt.startswith("--gin.STPES=3: nothing in this run reads STPES; did you mean STEPS")
    assert missing == "required, but not set: STEPS (--gin.STEPS=...)"


def test_a_later_origin_may_replace_what_reads_an_earlier_ones_setting(toy: Any) -> None:
    mine = f"{HEAD}second/toy.Part.names = ('a',)\n"
    assert built(toy, "STEPS = 1", "SECOND = None", mine=mine).second is None
    replaced = built(
        toy, "STEPS = 1", "second/toy.Part.size = 6", replacing={"SECOND": "None", "OTHER": "None"}
    )
    assert replaced.second is None
    with pytest.raises(PlugError, match="nothing in this run reads second/toy.Part.size"):
        built(toy, "STEPS = 1", "SECOND = None", "second/toy.Part.size = 6")
    with pytest.raises(PlugError, match="mine.gin:4: nothing in this run reads second/toy.Part.n"):
        built(toy, "STEPS = 1", mine=f"{mine[:-1]}\nsecond/toy.Part.names = ()\n".replace(
            "second/toy.Part.names = ('a',)", "SECOND = None"
        ))  # fmt: skip


def test_what_files_replace_is_no_mistake(toy: Any) -> None:
    run = built(toy, "STEPS = 1", mine=f"{HEAD}SIZE = 9\nsecond/toy.Part.size = 4\n", first=True)
    assert (run.first.size, run.second.size) == (2, 5)


@pytest.mark.parametrize("origin", ["file", "command line"])
def test_what_is_set_twice_in_one_place(toy: Any, origin: str) -> None:
    mine, bindings = "SIZE = 3\n\nSIZE = 3\n", ["SIZE = 3", "SIZE = 4"]
    if origin == "file":
        with pytest.raises(PlugError, match="SIZE is set twice: mine.gin:1 and mine.gin:3"):
            built(toy, "STEPS = 1", mine=mine)
    else:
        with pytest.raises(PlugError, match="SIZE is set twice: --gin.SIZE=3 and --gin.SIZE=4"):
            built(toy, "STEPS = 1", *bindings)
    assert built(toy, "STEPS = 1", "SIZE = 4", mine="SIZE = 3\n").first.size == 4


def test_code_may_call_what_it_made_configurable_itself(toy: Any) -> None:
    built(toy, "STEPS = 1", "toy.decorated.size = 3")
    built(toy, "STEPS = 1", mine="decorated.size = 3\n")  # found as gin finds it, without importing
    assert toy.decorated() == 3
    assert built(toy, "STEPS = 1", mine="Part.size = 3\n").first.size == 3


@pytest.mark.parametrize(
    ("binding", "in_file", "on_command_line"),
    [
        ("N = voc", "strings need quotes: N = 'voc'", "strings need quotes: --gin.N=\"'voc'\""),
        ("N = /data/voc", "strings need quotes: N = '/data/voc'", "--gin.N=\"'/data/voc'\""),
        ("N = gs://b/*.txt", "strings need quotes: N = 'gs://b/*.txt'", "--gin.N=\"'gs://b/*.txt'\""),
        ("N = 语料.txt", "strings need quotes: N = '语料.txt'", "--gin.N=\"'语料.txt'\""),
        ("N = “voc”", "strings need quotes: N = 'voc'", "--gin.N=\"'voc'\""),
        ("N = {encoder: 5}", "strings need quotes: 'encoder'", "strings need quotes: 'encoder'"),
        ("N = [a.txt, b.txt]", "strings need quotes: 'a'", "strings need quotes: 'a'"),
        ("N = true", "did you mean True?", "did you mean True?"),
        ("N = (none,)", "none: did you mean None?", "none: did you mean None?"),
        ("N = 'voc", "the quotes do not close", "the quotes do not close"),
        ("N =", "the value is missing", "the value is missing"),
        ("N = (1, 2", "mine.gin: a bracket or", "--gin.N=(1, 2: a bracket or"),
        ("N-1 = 3", "this is not NAME = VALUE", "this is not NAME = VALUE"),
    ],
)  # fmt: skip
def test_what_gin_cannot_read(toy: Any, binding: str, in_file: str, on_command_line: str) -> None:
    with pytest.raises(PlugError) as raised:
        built(toy, "STEPS = 1", mine=f"SIZE = 3\n{binding}\n")
    assert in_file in str(raised.value)
    assert str(raised.value).startswith("mine.gin:")
    with pytest.raises(PlugError) as raised:
        built(toy, "STEPS = 1", binding)
    assert on_command_line in str(raised.value)
    assert str(raised.value).startswith("--gin.N")


def test_functions_of_any_signature(toy: Any) -> None:
    run = built(toy, "STEPS = 1", "SECOND = @toy.options()", "toy.options.size = 8")
    assert run.second.size == 8
    mine = HEAD + "import builtins\ntoy.Run.steps = @builtins.min()\nSPARE = 3\n"
    with pytest.raises(PlugError, match="nothing in this run reads SPARE"):
        built(toy, "STEPS = 1", mine=mine)  # `min` has no signature


def test_a_value_of_the_wrong_type_names_its_macro(toy: Any) -> None:
    message = r"^Run: steps must be a whole number, not 1\.5 \(set by STEPS\)$"
    with pytest.raises(PlugError, match=message):
        built(toy, "STEPS = 1.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SIZE = 3\n# 大小\n".encode("gbk"), "mine.gin:2: byte 12 of the file, 0xb4, is not UTF-8"),
        ("SIZE = 3\n".encode("utf-16"), "mine.gin:1: byte 1 of the file, 0xff, is not UTF-8"),
    ],
)  # fmt: skip
def test_files_in_another_encoding(toy: Any, text: bytes, message: str) -> None:
    with pytest.raises(PlugError, match=message):
        built(toy, "STEPS = 1", mine=text)
    Path("outer.gin").write_text("include 'mine.gin'\n")
    with pytest.raises(PlugError, match=message):
        gin_config.configured(toy.Run, files=["run.gin", "outer.gin"], bindings=["STEPS = 1"])


def test_a_byte_order_mark_and_text_outside_of_ascii(toy: Any) -> None:
    mine = f"{HEAD}# 名字\ntoy.Part.names = ('天', '地')\n".encode("utf-8-sig")
    assert built(toy, "STEPS = 1", mine=mine).first.names == ("天", "地")


def test_includes(toy: Any) -> None:
    Path("inner.gin").write_text("SIZE = 3\nSISE = 4\n")
    mine = "SIZE = 2\ninclude 'inner.gin'\nSTEPS = 8\n"
    with pytest.raises(PlugError, match="^inner.gin:2: nothing in this run reads SISE; .* SIZE"):
        built(toy, mine=mine)
    Path("inner.gin").write_text("SIZE = 3\n")
    run = built(toy, mine=mine)
    assert (run.first.size, run.steps) == (3, 8)
    assert built(toy, mine=f"{mine}SECOND = @toy.Part()\n").second.size == 3
    ours = gin_config.search_paths()[-1]
    (ours / "more.gin").write_text("SIZE = 4\n")
    mine = f"{HEAD}SIZE = 2\nSTEPS = 8\ninclude 'more.gin'\ntoy.Part.names = @toy.late()\n"
    run = built(toy, mine=mine)
    assert (run.first.size, run.second.names) == (4, ("late",))
    Path("inner.gin").write_text("include 'mine.gin'\n")
    mine = "include 'inner.gin'\n"
    with pytest.raises(PlugError, match="the gin file mine.gin includes itself"):
        built(toy, mine=mine)


STAGE1 = ["runs/structbert_pretrain.gin", "models/tiny.gin", "mesh/v4_128.gin"]
STAGE2 = ["runs/palm_pretrain.gin", "models/tiny.gin", "mesh/cpu8.gin"]


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("天地人。你我他。\n", encoding="utf-8")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "。", *"天地人你我他"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    text = str(tmp_path / "text.txt")
    return [
        f"MODEL_DIR = {str(tmp_path / 'run')!r}",
        f"TRAIN_FILES = {text!r}",
        f"VALIDATION_FILES = {text!r}",
        f"VOCABULARY = {str(tmp_path / 'vocab.txt')!r}",
        "TRAIN_STEPS = 1e1",
    ]


@pytest.mark.parametrize(
    ("files", "own"),
    [(STAGE1, []), (STAGE1, ["EVAL_DATA = None"]), (STAGE2, ["INITIAL_CHECKPOINT = None"])],
)
def test_what_is_read_is_what_gin_used(
    files: list[str], own: list[str], data: list[str], tmp_path: Path
) -> None:
    config = gin_config.configured(TrainConfig, files=files, bindings=[*data, *own])
    assert config.train_steps == 10
    used = {
        statement.setting
        for statement in _statements(gin_config.operative_config(), tmp_path)
        if not statement.setting.startswith(("structbert_text", "palm_text"))
    }
    pieces = read_files(files, gin_config.search_paths())
    imports = {name: s for piece in pieces for name, s in piece.origin.imports.items()}
    pieces.append(read_bindings([*data, *own], imports, rank=1))
    statements = [s for piece in pieces for s in piece.statements]
    read, _, _ = Settings(statements, TrainConfig)._walk(statements)
    macros = {"/".join(scope) for scope, target, _ in read if target == id(MACRO)}
    assert macros == {name for name in used if "." not in name}


def _statements(text: str, directory: Path) -> Sequence[Any]:
    (directory / "operative.gin").write_text(text)
    pieces = read_files(["operative.gin"], [directory])
    return [s for piece in pieces for s in piece.statements]


@pytest.mark.parametrize(
    ("files", "binding", "message"),
    [
        (STAGE1, "train_steps = 3", "did you mean TRAIN_STEPS"),
        (STAGE1, "DECODER_LAYERS = 3", "reads DECODER_LAYERS"),
        (
            STAGE1,
            "pretrain.structbert_text.mask_rat = 0.3",
            "mean pretrain.structbert_text.mask_rate",
        ),
        (
            STAGE1,
            "MASK_RATE = '0.3'",
            "mask_rate must be a finite number, not '0.3' .set by MASK_RATE",
        ),
        (STAGE1, "stages.structbert_task.mask_rate = 0.3", "there is no stages.structbert_task"),
        (STAGE2, "pretrain.structbert_text.max_length = 64", "did you mean pretrain.palm_text.max"),
        (STAGE2, "MIXTURE_OR_TASK_NAME = 'x'", "it is for pretrain.structbert_text.train_files"),
        (STAGE1, "BATCH_SIZE = True", r"must be a whole number, not True \(set by BATCH_SIZE\)"),
        (STAGE1, "TASK_FEATURE_LENGTHS = {'encoder': 0.5}", "feature_lengths must be a dict"),
        (STAGE1, "VOCAB_SIZE = '8000'", r"vocab_size must be .*, not '8000' \(set by VOCAB_SIZE\)"),
    ],
)
def test_runs_that_ship(files: list[str], binding: str, message: str, data: list[str]) -> None:
    own = [binding, *(["INITIAL_CHECKPOINT = None"] if files is STAGE2 else [])]
    with pytest.raises(PlugError, match=message):
        gin_config.configured(TrainConfig, files=files, bindings=[*data, *own])


def test_a_plan_takes_the_settings_of_its_run(data: list[str]) -> None:
    config = plan.configure(STAGE2, [*data, "INITIAL_CHECKPOINT = 'run1'", "BATCH_SIZE = 8e0"])
    assert (config.train_data.batch_size, config.initial_checkpoint) == (8, None)
    with pytest.raises(PlugError, match="nothing in this run reads BATCHSIZE; .* BATCH_SIZE"):
        plan.configure(STAGE2, [*data, "BATCHSIZE = 8"])
