"""`plug-jax generate`: a prompt, lines from standard input, and a terminal."""

import argparse
import dataclasses
import io

import pytest

from plug_jax.cli import embed, fill_mask, gin_config
from plug_jax.cli import generate as generate_command
from plug_jax.cli.generate import _print_growing
from plug_jax.cli.main import main
from plug_jax.inference import model as inference_model
from plug_jax.inference import request_options
from plug_jax.inference.generator import GeneratedText, generate, generate_long
from plug_jax.inference.request_options import GenerationOptions
from tests.inference_model import broken_model, lively_model

LIMIT = ["--max_new_tokens", "6"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command on `lively_model`: (status, stdout, stderr)."""
    loaded = []

    def load(checkpoint, partitioner, dtype, *, int8):
        loaded.append((checkpoint, partitioner, dtype, int8))
        return lively_model()

    monkeypatch.setattr(inference_model.InferenceModel, "load", load)

    def call(*arguments):
        status = main(["generate", "--checkpoint", "run", *arguments])
        return status, *capsys.readouterr()

    call.loaded = loaded
    return call


def expected(prompt, **options):
    (texts,) = generate(
        lively_model(), [prompt], GenerationOptions(**{"max_new_tokens": 6, **options})
    )
    return [text.text for text in texts]


def test_texts_go_to_stdout_and_speed_to_stderr(run):
    status, out, err = run("--prompt", "HELLO", "--num_samples", "3", "--seed", "7", *LIMIT)
    texts = expected("HELLO", num_samples=3, seed=7)
    assert (status, out.splitlines()) == (0, texts)
    assert f"{sum(map(len, texts))} tokens in" in err and "tokens/s" in err
    assert run.loaded == [("run", None, None, False)]


def test_options_of_every_kind_reach_generation(run):
    options = {"num_beams": 2, "length_penalty": 0.5, "forced_text": "AB", "no_repeat_ngram": 2}
    options["length_offset"] = 5.0
    arguments = [f"--{name}={value}" for name, value in options.items()]
    _, out, err = run("--prompt", "HELLO", *arguments, "--verbose", *LIMIT)
    assert out.splitlines() == expected("HELLO", **options)
    assert "log-probability -" in err and "score -" in err


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_each_line_of_standard_input_is_a_prompt(run, monkeypatch, mark):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(mark + b"ABC\n\nHELLO\r\n")))
    status, out, _ = run("--temperature", "0", *LIMIT)
    assert status == 0
    assert out.splitlines() == [expected(p, temperature=0)[0] for p in ("ABC", "", "HELLO")]


def test_a_line_of_standard_input_that_is_not_utf8_ends_it_after_those_before(run, monkeypatch):
    content = "ABC\n天气\n".encode("gbk")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    status, out, err = run("--temperature", "0", *LIMIT)
    assert status == 2
    assert out.splitlines() == expected("ABC", temperature=0)
    assert err.splitlines()[-1] == "plug-jax: error: standard input, line 2 is not UTF-8"


@pytest.mark.parametrize(
    "arguments", [[], ["--verbose"], ["--num_samples=2"], ["--num_beams=2"], ["--long"]]
)
def test_a_model_without_numbers_is_said_and_nothing_written(run, monkeypatch, arguments):
    load = lambda *args, **kwargs: broken_model()  # noqa: E731
    monkeypatch.setattr(inference_model.InferenceModel, "load", load)
    status, out, err = run("--prompt", "ABC", *arguments, *LIMIT)
    assert (status, out) == (2, "")
    assert err.startswith("plug-jax: error: the model gives no numbers")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--gin.TEMPERATURE=1e400"],
            "temperature must be a finite number, not inf (set by TEMPERATURE)",
        ),
        (["--top_p", "1e-400"], "top_p is 0.0; it must be above 0"),
        (["--repetition_penalty", "1e39"], "repetition_penalty is 1e+39"),
        (["--length_penalty=-1e30"], "length_penalty is -1e+30"),
        (["--seed", "-1"], "seed is -1"),
        (["--num_samples", "9999999999"], "num_samples is 9999999999"),
        (["--gin.TOP_K=2.5"], "top_k must be a whole number, not 2.5"),
        (["--gin.MAX_NEW_TOKENS=True"], "max_new_tokens must be a whole number, not True"),
        (["--gin.TEMPERATURE='hot'"], "temperature must be a finite number, not 'hot'"),
    ],
)
def test_a_number_that_cannot_be_is_named(run, arguments, message):
    status, out, err = run("--prompt", "A", *arguments)
    assert (status, out) == (2, "")
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("value", ["inf", "nan", "1e400"])
def test_an_option_that_is_no_finite_number_is_named(run, capsys, value):
    with pytest.raises(SystemExit) as exit_info:
        run("--prompt", "A", "--temperature", value)
    assert exit_info.value.code == 2
    expected = f"error: argument --temperature: {value} is not a finite number\n"
    assert capsys.readouterr().err.endswith(expected)


def test_a_huge_top_k_is_every_token(run):
    _, out, _ = run("--prompt", "HELLO", "--top_k", str(2**63), *LIMIT)
    assert out.splitlines() == expected("HELLO", top_k=0)


def test_a_terminal_is_asked_until_it_ends_and_mistakes_do_not_end_it(run, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("ABC\n" + "Z" * 60 + "\nHELLO\n"))
    status, out, err = run("--temperature", "0", *LIMIT)
    assert status == 0
    for prompt in ("ABC", "HELLO"):
        assert expected(prompt, temperature=0)[0] in out
    assert "a prompt has 60 tokens" in err


def test_long_texts_by_the_released_scheme(run):
    arguments = ["--prompt", "ABC", "--long", "--temperature", "0", "--max_new_tokens", "5"]
    options = GenerationOptions(temperature=0, max_new_tokens=5)
    assert run(*arguments)[:2] == (0, generate_long(lively_model(), ["ABC"], options)[0] + "\n")
    status, _, err = run("--prompt", "A", "--long", "--num_samples", "2")
    assert status == 2 and "--long has no num_samples; it has max_new_tokens, temp" in err
    more = ["--verbose", "--no_repeat_ngram=2", "--forced_text=B", "--top_k=3"]
    status, _, err = run("--prompt", "A", "--long", *more)
    assert status == 2 and "--long has no forced_text, no_repeat_ngram, verbose;" in err


def test_a_mistake_is_said_without_loading_anything(run):
    status, _, err = run("--prompt", "A", "--top_p", "2")
    assert status == 2 and "top_p is 2.0; it must be above 0 and at most 1" in err
    status, _, err = run("--prompt", "A", "--gin.TEMPRATURE=1")
    assert status == 2 and "did you mean TEMPERATURE?" in err
    assert run.loaded == []


def test_a_stream_waits_for_whole_characters(capsys):
    def text(s, stopped=False):
        return GeneratedText([], s, [], 0.0, 0.0, stopped)

    last = text("好的,是", stopped=True)
    grown = [text("好"), text("好\N{REPLACEMENT CHARACTER}"), text("好的,"), last]
    assert _print_growing(grown) is last
    assert capsys.readouterr().out == "好的,是\n"


@pytest.mark.parametrize(
    ("command", "file", "declared"),
    [
        (generate_command, "generation_options", request_options.GenerationOptions),
        (embed, "embed", request_options.EmbeddingOptions),
        (fill_mask, "fill_mask", request_options.MaskOptions),
    ],
)
def test_options_are_those_that_are_declared(command, file, declared):
    """The gin file has each option with its default; so has the command, in its help."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    helps = {action.dest: action.help for action in parser._actions}
    for field in dataclasses.fields(declared):
        macro = {"seed": "RANDOM_SEED"}.get(field.name, field.name.upper())
        found = gin_config.macro(macro, files=[f"runs/{file}.gin"], bindings=[])
        assert (found, type(found)) == (field.default, type(field.default)), macro
        assert helps[field.name].startswith(field.metadata["help"])
        if field.default:
            assert helps[field.name].endswith(f"({field.default})")
