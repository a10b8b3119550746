"""All JSON written is valid for strict parsers."""

from __future__ import annotations

import json
import math

import numpy as np

from plug_jax import strict_json


def test_what_is_no_number_is_null() -> None:
    values = {"loss": math.nan, "rows": [{"score": -math.inf}, (np.float64("inf"), 1.5, 2)]}
    text = strict_json.dumps(values)
    assert text == '{"loss": null, "rows": [{"score": null}, [null, 1.5, 2]]}'

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(text, parse_constant=refuse)


def test_everything_else_is_as_json_has_it() -> None:
    values = {"a": [1, "天", None, True, 1e-300], "b": {}}
    for options in ({}, {"indent": 2}, {"ensure_ascii": False}):
        assert strict_json.dumps(values, **options) == json.dumps(values, **options)
