"""Common alternative spellings of options, and arguments that are not valid text."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from plug_jax.cli.arguments import Parser, decoded
from plug_jax.cli.main import COMMANDS, main
from plug_jax.errors import PlugError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def parser():
    parser = Parser(prog="plug-jax greet")
    parser.add_argument("--max_new_tokens", type=int)
    parser.add_argument("names", nargs="*")
    return parser


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--max-new-tokens", "3", "a-b"], {"max_new_tokens": 3, "names": ["a-b"]}),
        (["--max-new_tokens=-3"], {"max_new_tokens": -3, "names": []}),
        (
            ["--two words", "--", "--a-b"],
            {"max_new_tokens": None, "names": ["--two words", "--a-b"]},
        ),
    ],
)
def test_dashes_are_underscores_in_the_names_of_options_alone(parser, typed, expected):
    assert vars(parser.parse_args(typed)) == expected


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--max_token", "3"], "unknown argument '--max_token'; did you mean --max_new_tokens?"),
        (["--max", "3"], "unknown argument '--max'; see plug-jax greet --help"),
        (["--xyz=3"], "unknown argument '--xyz'; see plug-jax greet --help"),
    ],
)
def test_an_option_that_is_not_there_is_named_with_the_nearest(parser, typed, message):
    with pytest.raises(PlugError) as caught:
        parser.parse_args(typed)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--max_new_tokens", "3", "--max-new-tokens=3"], "--max_new_tokens is given twice; leave"),
        (["--input", "a", "--input", "b", "c"], "--input is given twice; write all its values aft"),
    ],
)
def test_an_option_given_twice_is_refused_unless_it_is_repeatable(parser, typed, message):
    parser.add_argument("--input", nargs="+")
    parser.add_argument("--grid", action="append")
    parser.add_argument("--json", action="store_true")
    assert parser.parse_args(["--grid", "a", "--grid", "b", "--json", "--json"]).grid == ["a", "b"]
    with pytest.raises(PlugError, match=message):
        parser.parse_args(typed)


def test_gin_overrides_are_left_to_the_command(parser):
    typed = ["--gin.a-b.C='d-e'", "--max-new-tokens=1"]
    assert parser.parse_known_args(typed) == (
        argparse.Namespace(max_new_tokens=1, names=[]),
        typed[:1],
    )


@pytest.mark.parametrize("name", ["generate", "serve", "infer", "score", "classify", "convert"])
def test_the_commands_say_which_option_was_meant(name, capsys):
    assert name in COMMANDS
    typed = ["import-hf", "--input", "a", "--output", "b"] if name == "convert" else []
    wrong, meant = ("--vocabulry", "--vocabulary") if typed else ("--gin_fil", "--gin_file")
    if name == "infer":
        typed = ["--gin_file=runs/infer.gin"]
    assert main([name, *typed, f"{wrong}=x"]) == 2
    expected = f"plug-jax: error: unknown argument '{wrong}'; did you mean {meant}?\n"
    assert capsys.readouterr().err == expected


def test_arguments_are_utf8_or_the_first_that_is_not_is_named():
    typed = ["--prompt", "天气\N{GRINNING FACE}"]
    assert decoded(typed) == typed
    # As Python decodes them in the C locale.
    assert decoded([t.encode().decode("ascii", "surrogateescape") for t in typed]) == typed
    with pytest.raises(PlugError, match=r"argument 2 is not UTF-8: '\\udccc\\udcec'"):
        decoded(["--prompt", "天气".encode("gbk")[:2].decode("utf-8", "surrogateescape")])
    with pytest.raises(PlugError, match="argument 1 is not UTF-8"):
        decoded(["\ud800"])


def test_bytes_of_another_encoding_end_a_command_with_one_line():
    arguments = [b"generate", b"--checkpoint", b"m", b"--prompt", "天气".encode("gbk")]
    run = subprocess.run(
        [sys.executable, "-m", "plug_jax", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("plug-jax: error: argument 4 is not UTF-8: ")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "utf-8"])
def test_a_terminal_without_a_character_gets_its_escape(encoding):
    program = "from plug_jax.cli.main import main; main([]); print('天气\\u0e01')"
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        env={"PYTHONIOENCODING": encoding},
    )
    assert (run.returncode, run.stderr) == (0, b"")
    last = run.stdout.splitlines()[-1]
    assert last == "天气\u0e01".encode(encoding, "backslashreplace")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "vocab --output x --gin.VOCAB_SIZE=80",
            "--gin.VOCAB_SIZE=80: plug-jax vocab takes options",
        ),
        ("vocab --output x --gin.VOCAB_SIZE=80", "not gin settings; did you mean --vocab_size?"),
        ("inspect --list --gin.a.B.split=3", "did you mean --split?"),
        (
            "convert import-hf --input a --output b --gin.X=3",
            "not gin settings; see plug-jax convert",
        ),
        ("bench data --gin.X=3", "--gin.X=3: plug-jax bench data takes options, not gin"),
    ],
)
def test_gin_settings_of_a_command_that_has_options_alone(command, message, capsys):
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--format=jsonl", "--text_key=content"])
def test_a_format_of_no_files(option, capsys):
    assert main(["bench", "data", option]) == 2
    assert f"{option.partition('=')[0]} goes with --input" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", str(2**31), "1.5", "9" * 5000])
@pytest.mark.parametrize(
    "command",
    [
        ["plan", "--gin_file=a.gin", "--topology=v5e:4x4", "--sweep", "--tensor"],
        ["plan", "--gin_file=a.gin", "--topology=v5e:4x4", "--sweep", "--fsdp"],
        ["convert", "export-plug", "--checkpoint=a", "--output=b", "--ranks"],
        ["convert", "import-hf", "--input=a", "--output=b", "--num_heads"],
    ],
)
def test_a_size_is_a_positive_whole_number(capsys, command, number):
    with pytest.raises(SystemExit) as ended:
        main([*command[:-1], f"{command[-1]}={number}"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {command[-1]}: " in said
    assert "is not a whole number from 1 to" in said or "invalid positive value" in said
