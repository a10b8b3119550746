"""The rows that `plug-jax debug-nans` shows."""

import numpy as np
import pytest

from plug_jax.cli.debug_nans import show_rows
from plug_jax.data.vocabularies.vocabulary import default_vocabulary


@pytest.mark.parametrize(
    ("size", "bad", "shown"),
    [(1, [], [0]), (2, [1], [1]), (5, [], [0, 1, 2]), (5, [0, 2, 3, 4], [0, 2, 3])],
)
def test_bad_rows_are_shown_or_the_first(size, bad, shown):
    tokens = np.full((size, 4), default_vocabulary().encode("天")[0])
    batch = {"encoder_input_tokens": tokens, "encoder_segment_ids": np.ones_like(tokens)}
    lines = list(show_rows(batch, bad, default_vocabulary()))
    assert lines == [f"row {row}, example 1, encoder: 天天天天 (4 tokens)" for row in shown]
