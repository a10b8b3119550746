"""Configuration fields have their declared types."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import pytest

from plug_jax.cli.cache import CacheConfig
from plug_jax.cli.classify import ClassifyConfig
from plug_jax.cli.generate import GenerateConfig
from plug_jax.cli.infer import InferConfig
from plug_jax.cli.score import ScoreConfig
from plug_jax.cli.serve import ServeConfig
from plug_jax.config import PlugConfig
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.data.preprocessors.cleaning import ChineseRatio, MinLength
from plug_jax.errors import PlugError
from plug_jax.field_types import FieldTypeError, check_fields, parameter_types, typed
from plug_jax.inference.batch_generation import Generation
from plug_jax.inference.classification import Classification
from plug_jax.inference.jobs import Job
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.inference.rows import RowSource
from plug_jax.inference.scoring import Scoring
from plug_jax.partitioning import Partitioner
from plug_jax.training.checkpointing import CheckpointConfig
from plug_jax.training.evaluate import EvaluateConfig
from plug_jax.training.optimizer import OptimizerConfig
from plug_jax.training.program import TrainConfig
from plug_jax.training.step import StepConfig

CONFIGS = [
    CacheConfig,
    CheckpointConfig,
    ChineseRatio,
    Classification,
    ClassifyConfig,
    DatasetConfig,
    EvaluateConfig,
    GenerateConfig,
    Generation,
    GenerationOptions,
    InferConfig,
    Job,
    MinLength,
    OptimizerConfig,
    Partitioner,
    PlugConfig,
    RowSource,
    ScoreConfig,
    Scoring,
    ServeConfig,
    StepConfig,
    TrainConfig,
]


@dataclasses.dataclass(frozen=True)
class Config:
    count: int = 1
    rate: float = 0.5
    on: bool = True
    name: str | None = None
    kind: Literal["a", "b"] = "a"
    paths: Sequence[str] = ()
    one_or_more: str | Sequence[str] = ""
    steps: tuple[int, int] | None = None
    stops: Sequence[int] = ()
    lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    options: Mapping[str, str | bool | int] = dataclasses.field(default_factory=dict)
    rules: Sequence[tuple[str, str | tuple[str, ...] | None]] = ()
    anything: Any = None

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("count", 1e5, 100_000),
        ("count", -3, -3),
        ("rate", 1, 1.0),
        ("rate", 1e-30, 1e-30),
        ("on", False, False),
        ("name", None, None),
        ("name", "", ""),
        ("kind", "b", "b"),
        ("paths", "news/*.txt", ("news/*.txt",)),
        ("paths", ["a", "b"], ("a", "b")),
        ("paths", [], ()),
        ("one_or_more", "a.txt", "a.txt"),
        ("one_or_more", ["a", "b"], ("a", "b")),
        ("steps", [2e1, 25], (20, 25)),
        ("steps", None, None),
        ("lengths", {"encoder": 5.12e2}, {"encoder": 512}),
        ("options", {"a": True, "b": 1e6, "c": "x"}, {"a": True, "b": 1_000_000, "c": "x"}),
        ("stops", 3e0, (3,)),
        ("rules", [["mlp", ["data"]], ("kv", None)], (("mlp", ("data",)), ("kv", None))),
        ("anything", object, object),
    ],
)  # fmt: skip
def test_what_is_meant_is_understood(field: str, given: Any, kept: Any) -> None:
    found = getattr(Config(**{field: given}), field)
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("field", "given", "message"),
    [
        ("count", 1.5, "Config: count must be a whole number, not 1.5"),
        ("count", True, "count must be a whole number, not True"),
        ("count", "3", "count must be a whole number, not '3'"),
        ("count", None, "count must be a whole number, not None"),
        ("count", float("inf"), "count must be a whole number, not inf"),
        ("rate", "0.1", "rate must be a finite number, not '0.1'"),
        ("rate", False, "rate must be a finite number, not False"),
        ("rate", float("nan"), "rate must be a finite number, not nan"),
        ("rate", 10**400, "rate must be a finite number"),
        ("on", 1, "on must be True or False, not 1"),
        ("on", "False", "on must be True or False, not 'False'"),
        ("name", 3, "name must be a text in quotes or None, not 3"),
        ("kind", "c", "kind must be one of 'a', 'b', not 'c'"),
        ("paths", None, "paths must be a list, each item a text in quotes, not None"),
        ("paths", [1], "paths must be a list, each item a text in quotes, not [1]"),
        ("paths", {"a": 1}, "paths must be a list"),
        ("steps", 20, "steps must be (a whole number, a whole number) or None, not 20"),
        ("steps", (1, 2, 3), "steps must be (a whole number, a whole number) or None, not"),
        ("lengths", 512, "lengths must be a dict {...} from a text in quotes to a whole number"),
        ("lengths", {"encoder": 0.5}, "lengths must be a dict"),
        ("rules", [("mlp", 3)], "rules must be a list"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(field: str, given: Any, message: str) -> None:
    with pytest.raises(FieldTypeError) as raised:
        Config(**{field: given})
    assert message in str(raised.value)
    assert raised.value.fields == (field,)


def test_all_wrong_fields_are_named() -> None:
    with pytest.raises(PlugError, match="count must be .*; rate must be "):
        Config(count="a", rate="b")  # type: ignore[arg-type]


class Other:
    """A type that no field has."""


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_field_of_every_config_is_checked(config: type) -> None:
    fields = [f for f in dataclasses.fields(config) if f.init and f.type != "Any"]
    assert fields
    with pytest.raises(FieldTypeError) as raised:
        config(**{field.name: Other() for field in fields})
    assert set(raised.value.fields) == {field.name for field in fields}


def test_arguments_of_functions() -> None:
    @typed
    def join(paths: Sequence[str], *, count: int = 2) -> tuple[Sequence[str], int]:
        return paths, count

    assert join("a", count=3.0) == (("a",), 3)  # type: ignore[arg-type]
    assert join(["a"]) == (("a",), 2)
    with pytest.raises(PlugError, match="join: count must be a whole number, not 0.5"):
        join("a", count=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cuont"):
        join("a", cuont=3)  # type: ignore[call-arg]


class Options(TypedDict, total=False):
    rate: float
    count: int


def test_options_of_functions_by_name() -> None:
    @typed
    def options_of(*, name: str, **options: Unpack[Options]) -> Options:
        return options

    assert options_of(name="a", count=1e1) == {"count": 10}  # type: ignore[typeddict-item]
    with pytest.raises(PlugError, match="options_of: rate must be a finite number, not '0.1'"):
        options_of(name="a", rate="0.1")  # type: ignore[typeddict-item]
    assert list(parameter_types(options_of)) == ["name", "rate", "count"]


def test_a_path_may_be_a_path_object() -> None:
    source = RowSource(files=Path("a.jsonl"))
    assert source.files == Path("a.jsonl")
    assert typing.get_type_hints(RowSource)["files"]
