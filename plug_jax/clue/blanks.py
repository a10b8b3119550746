"""CHID: assigns idioms to blanks, each idiom of a line to at most one blank."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from plug_jax.errors import PlugError

if TYPE_CHECKING:
    import numpy as np

Assignment = Literal["greedy", "optimal"]


def decode_blanks(
    lines: Sequence[int], logits: np.ndarray, assignment: Assignment = "greedy"
) -> list[int]:
    """The candidate of each blank.

    Args:
        lines: the JSON line of each blank; all its passages share the candidates.
        logits: float [n, 10], for each blank and candidate.
        assignment: "greedy" is the official decoding: repeatedly take the best pair of a free blank
            and a free candidate of a line (of equal ones the first). "optimal" has the greatest sum
            (the Hungarian method, scipy's).

    Raises:
        PlugError: another shape, logits that are not finite, a line with more blanks than
            candidates, an unknown assignment.
    """
    import numpy as np

    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or len(logits) != len(lines):
        raise PlugError(f"logits of {len(lines)} blanks have the shape {logits.shape}")
    if not np.isfinite(logits).all():
        raise PlugError("the logits of blanks hold NaN or infinities")
    if assignment not in ("greedy", "optimal"):
        raise PlugError(f"no assignment {assignment!r} of idioms; there are greedy and optimal")
    assign = _greedy if assignment == "greedy" else _optimal
    blanks_of = collections.defaultdict(list)
    for blank, line in enumerate(lines):
        blanks_of[int(line)].append(blank)
    chosen = np.zeros(len(lines), np.int64)
    for line, blanks in blanks_of.items():
        if len(blanks) > logits.shape[1]:
            raise PlugError(
                f"line {line} has {len(blanks)} blanks, and {logits.shape[1]} candidates for them"
            )
        chosen[blanks] = assign(logits[blanks])
    return [int(candidate) for candidate in chosen]


def _greedy(logits: np.ndarray) -> list[int]:
    import numpy as np

    chosen: dict[int, int] = {}
    taken: set[int] = set()
    for place in np.argsort(-logits, axis=None, kind="stable").tolist():
        blank, candidate = divmod(place, logits.shape[1])
        if blank not in chosen and candidate not in taken:
            chosen[blank] = candidate
            taken.add(candidate)
    return [chosen[blank] for blank in range(len(logits))]


def _optimal(logits: np.ndarray) -> list[int]:
    from scipy.optimize import linear_sum_assignment

    _, candidates = linear_sum_assignment(logits, maximize=True)  # rows come in order
    return [int(candidate) for candidate in candidates]
