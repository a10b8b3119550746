"""What MFU to expect of a plan: its times at published peaks, held against published runs.

`calibration.json` has a row for each published run of which an equivalent of ours was compiled;
`make calibration` makes them anew (`benchmarks/calibration.py`). One model goes through all rows:

    1 / MFU = the chip's coefficient x compute + sum of coefficient x time, of the times in SHARED,

all in units of the time that the model's FLOPs take at the chip's peak. The coefficients are fitted
to the rows, by least squares of the relative error; none is negative. How far off it is, leaving
each row out of the fit in turn says.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plug_jax.planning.roofline import Roofline

_WITHIN = 0.9  # of the left-out rows, were the chip's own as many as all, are in the interval


@dataclasses.dataclass(frozen=True)
class Times:
    """Of a plan, at published peaks, over the time of the model's FLOPs at the peak."""

    compute: float  # 1, and what is computed again
    hbm: float
    interconnect: float
    synchronous: float  # of `interconnect`, what the compiled program waits for

    @classmethod
    def of(cls, roofline: Roofline, at_peak: float) -> Times:
        """`at_peak`: seconds."""
        return cls(*(value / at_peak for value in dataclasses.astuple(roofline)))

    @property
    def roofline(self) -> Roofline:
        """The same, for what follows from the times."""
        return Roofline(*dataclasses.astuple(self))


# What a step takes besides what it computes; a coefficient each, for all chips.
SHARED = ("hbm", "synchronous")


@dataclasses.dataclass(frozen=True)
class Row:
    """A published run, and the plan of ours."""

    name: str
    topology: str
    mfu: float  # published; of matmuls, and causal attention by half
    times: Times
    source: str
    differs: str  # ours from theirs

    @property
    def chip(self) -> str:
        """Its name in `topologies.CHIPS`."""
        return self.topology.partition(":")[0].rpartition("*")[2]

    @property
    def mfu_bound(self) -> float:
        """As `Speed` has it."""
        return 1 / self.times.roofline.overlapped

    @property
    def mfu_scheduled(self) -> float:
        """As `Speed` has it."""
        return 1 / self.times.roofline.scheduled


@dataclasses.dataclass(frozen=True)
class Expectation:
    """The MFU that published runs let one expect."""

    mfu: float
    low: float
    high: float
    chip_rows: int  # rows that it rests on, of the same chip
    rows: int  # and of all chips
    outside: tuple[str, ...]  # terms of the plan that are longer than in any row


@dataclasses.dataclass(frozen=True)
class Model:
    """Seconds of a step for each second of what it is made of."""

    compute: Mapping[str, float]  # by chip
    shared: Mapping[str, float]  # SHARED

    def mfu(self, chip: str, times: Times) -> float:
        """A chip without a coefficient of its own has the mean of the others'."""
        compute = self.compute.get(chip, float(np.mean(list(self.compute.values()))))
        rest = (value * getattr(times, name) for name, value in self.shared.items())
        return 1 / (compute * times.compute + sum(rest))

    @property
    def coefficients(self) -> dict[str, float]:
        """All of them."""
        compute = {f"compute on {chip}": value for chip, value in self.compute.items()}
        return {**compute, **self.shared}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The rows, and what leaving each of them out says of the model."""

    rows: tuple[Row, ...]
    model: Model  # fitted to all
    left_out: np.ndarray  # [rows], the MFU expected of each from all the others

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Calibration:
        """Fit to all rows, and to all but one as often as there are rows."""
        left_out = [
            fit([*rows[:i], *rows[i + 1 :]]).mfu(row.chip, row.times) for i, row in enumerate(rows)
        ]
        return cls(tuple(rows), fit(rows), np.array(left_out))

    @property
    def errors(self) -> np.ndarray:
        """[rows]: of the MFU expected of each row from the others, relative to the published."""
        return self.left_out / np.array([row.mfu for row in self.rows]) - 1

    @property
    def median_error(self) -> float:
        """Without its sign."""
        return float(np.median(np.abs(self.errors)))

    @property
    def largest_error(self) -> float:
        """Without its sign."""
        return float(np.max(np.abs(self.errors)))

    def expect(self, chip: str, times: Times) -> Expectation | None:
        """None where no row is of this chip."""
        of_chip = sum(row.chip == chip for row in self.rows)
        if not of_chip:
            return None
        bound = 1 / times.roofline.overlapped
        mfu = min(self.model.mfu(chip, times), bound)
        # The fewer rows a chip has, the more may be its own that they do not show.
        error = np.quantile(np.abs(self.errors), _WITHIN) * np.sqrt(1 + 1 / of_chip)
        longer = [
            name
            for name in ("compute", *SHARED)
            if getattr(times, name) > max(getattr(row.times, name) for row in self.rows)
        ]
        return Expectation(
            mfu=mfu,
            low=float(mfu / (1 + error)),
            high=float(min(mfu * (1 + error), bound)),
            chip_rows=of_chip,
            rows=len(self.rows),
            outside=tuple(longer),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with those that follow from others."""
        rows = [
            dataclasses.asdict(row)
            | {"mfu_bound": row.mfu_bound, "mfu_scheduled": row.mfu_scheduled}
            | {"left_out": float(left_out), "error": float(error)}
            for row, left_out, error in zip(self.rows, self.left_out, self.errors, strict=True)
        ]
        return {
            "coefficients": self.model.coefficients,
            "median_error": self.median_error,
            "largest_error": self.largest_error,
            "rows": rows,
        }


def fit(rows: Sequence[Row]) -> Model:
    """The model with the least sum of squared relative errors of which no part is negative.

    With so few shared terms every subset of them is tried.
    """
    chips = sorted({row.chip for row in rows})
    best, best_error = None, np.inf
    for count in range(len(SHARED) + 1):
        for names in itertools.combinations(SHARED, count):
            # Of each row what the terms are of its 1 / MFU: with the coefficients, 1 in all.
            parts = np.array(
                [
                    [row.mfu * row.times.compute * (row.chip == chip) for chip in chips]
                    + [row.mfu * getattr(row.times, name) for name in names]
                    for row in rows
                ]
            )
            values = np.linalg.lstsq(parts, np.ones(len(rows)))[0]
            error = np.sum((parts @ values - 1) ** 2)
            if error < best_error and values.min() >= 0:
                compute = dict(zip(chips, values.tolist(), strict=False))
                shared = dict(zip(names, values.tolist()[len(chips) :], strict=True))
                best, best_error = Model(compute, dict.fromkeys(SHARED, 0.0) | shared), error
    assert best is not None  # without shared terms nothing is negative
    return best


@functools.cache
def published() -> Calibration:
    """That of the rows in `calibration.json`."""
    text = importlib.resources.files(__package__).joinpath("calibration.json").read_text("utf-8")
    return Calibration.of([read_row(values) for values in json.loads(text)])


def read_row(values: dict[str, Any]) -> Row:
    """A row of the file."""
    return Row(**{**values, "times": Times(**values["times"])})
