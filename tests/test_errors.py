"""Messages quote the faulty value, shortened if long."""

from __future__ import annotations

import dataclasses

import pytest

from plug_jax.cli.arguments import Parser
from plug_jax.errors import PlugError, shown
from plug_jax.field_types import FieldTypeError
from plug_jax.inference.parts import _differences
from plug_jax.inference.request_options import EmbeddingOptions, GenerationOptions, MaskOptions
from plug_jax.inference.rows import Row


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, "3"),
        ("a\n", "'a\\n'"),
        ("天" * 80, repr("天" * 80)),
        ("天" * 81, f"{'天' * 80!r}... (81 characters)"),
        (10**100, f"1{'0' * 79}... (101 characters)"),
        (10**10_000, "a number of thousands of digits"),
        ([10**10_000], "a number of thousands of digits"),
        ([0] * 100, f"[{'0, ' * 26}0... (300 characters)"),
    ],
    ids=["number", "text", "80", "81", "digits", "many digits", "within", "list"],
)
def test_what_is_shown_of_a_value(value: object, expected: str) -> None:
    assert shown(value) == expected


@pytest.mark.parametrize(
    "number",
    [10**4000, 10**10_000, -(10**10_000), "x" * 1_000_000],
    ids=["digits", "many digits", "negative", "text"],
)
@pytest.mark.parametrize(
    ("options", "field"),
    [
        *((GenerationOptions, field.name) for field in dataclasses.fields(GenerationOptions)),
        *((EmbeddingOptions, field.name) for field in dataclasses.fields(EmbeddingOptions)),
        *((MaskOptions, field.name) for field in dataclasses.fields(MaskOptions)),
    ],
)
def test_options_do_not_repeat_long_values(options: type, field: str, number: object) -> None:
    """Numbers for some, texts for others."""
    try:
        options(**{field: number})
    except PlugError as error:
        assert field in str(error) and len(str(error)) < 300
    else:
        assert (field, type(number)) in [
            ("top_k", int),
            ("max_length", int),  # the model's positions are its limit
            ("forced_text", str),
            ("forbidden_text", str),
        ]


def test_nor_do_other_messages() -> None:
    long = "x" * 1_000_000
    with pytest.raises(PlugError) as caught:
        Row({long: 1}).text(("text",))
    assert len(str(caught.value)) < 300
    with pytest.raises(PlugError) as caught:
        Row({"text": f"{long}\ud800"}).text(("text",))
    assert len(str(caught.value)) < 300
    [difference] = _differences({"forced_text": long}, {"forced_text": ""})
    assert len(difference) < 300
    with pytest.raises(FieldTypeError, match="1,000,000 characters"):
        GenerationOptions(seed=long)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "argument",
    [["--n", "9" * 10_000], ["--n", "x" * 10_000], [f"--{'x' * 10_000}"]],
    ids=["digits", "text", "option"],
)
def test_nor_does_the_command_line(argument: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="plug-jax try")
    parser.add_argument("--n", type=int)
    with pytest.raises((SystemExit, PlugError)) as caught:
        parser.parse_args(argument)
    said = capsys.readouterr().err + str(caught.value)
    assert "10,0" in said and len(said) < 400
