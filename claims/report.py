"""What was found: claims.json for programs, claims.md and a picture a claim for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims.intervals import Estimate, estimate, paired
from claims.table import Claim, Quantity
from plug_jax import strict_json
from plug_jax.atomic_files import write_whole

# By run, then by seed: its scores.
Scored = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class Found:
    """What the runs say of one quantity of a claim."""

    quantity: Quantity
    seeds: list[int]  # which all of its runs have
    values: dict[str, list[float]]  # by arm, in the order of the seeds
    means: dict[str, Estimate]  # by arm
    differences: dict[str, Estimate]  # of PLUG's way less the arm, by each other arm

    def better(self, arm: str) -> bool | None:
        """Whether PLUG's way is better than the arm; None where the interval holds 0."""
        difference = self.differences[arm]
        if not difference.excludes_zero:
            return None
        return (difference.mean < 0) == self.quantity.less_is_better


def find(claim: Claim, scored: Scored) -> list[Found]:
    """Each quantity of a claim, over the seeds of which all of its runs are scored.

    One without such a seed is left out.
    """
    found = (_find(claim, quantity, scored) for quantity in claim.quantities)
    return [one for one in found if one is not None]


def _find(claim: Claim, quantity: Quantity, scored: Scored) -> Found | None:
    runs = {arm: scored.get(quantity.scored_by(arm), {}) for arm in claim.arms}
    seeds = sorted(set.intersection(*map(set, runs.values())))
    if not seeds:
        return None
    factor = 100.0 if quantity.percent else 1.0
    values = {
        arm: [factor * run[seed][quantity.metric] for seed in seeds] for arm, run in runs.items()
    }
    ours, *others = claim.arms
    return Found(
        quantity,
        seeds,
        values,
        {arm: estimate(of_arm) for arm, of_arm in values.items()},
        {arm: paired(values[ours], values[arm]) for arm in others},
    )


def write_report(output: Path, claims: Mapping[str, Claim], scored: Scored) -> list[str]:
    """OUTPUT/claims.json, OUTPUT/claims.md, and OUTPUT/claim_X.png of each claim.

    Returns what is left out, because no seed has all of its runs yet.
    """
    every = {letter: find(claim, scored) for letter, claim in claims.items()}
    found = {letter: of_claim for letter, of_claim in every.items() if of_claim}
    told = {
        letter: {
            "title": claims[letter].title,
            "arms": dict(claims[letter].arms),
            "quantities": [_as_json(one) for one in of_claim],
        }
        for letter, of_claim in found.items()
    }
    write_whole(
        output / "claims.json", strict_json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    )
    sections = (markdown(letter, claims[letter], of_claim) for letter, of_claim in found.items())
    write_whole(output / "claims.md", "\n".join(sections))
    for letter, of_claim in found.items():
        draw(claims[letter], of_claim, output / f"claim_{letter}.png")
    return [
        f"({letter}) {quantity.name}"
        for letter, claim in claims.items()
        for quantity in claim.quantities
        if quantity not in [one.quantity for one in every[letter]]
    ]


def _as_json(found: Found) -> dict[str, Any]:
    return {
        "name": found.quantity.name,
        "less_is_better": found.quantity.less_is_better,
        "seeds": found.seeds,
        "values": found.values,
        "means": {arm: dataclasses.asdict(one) for arm, one in found.means.items()},
        "differences": {arm: dataclasses.asdict(one) for arm, one in found.differences.items()},
    }


def markdown(letter: str, claim: Claim, found: Sequence[Found]) -> str:
    """A heading and a table: a row for each arm, its means and its differences to PLUG's way."""
    names = [
        f"{one.quantity.name} {'↓' if one.quantity.less_is_better else '↑'}, n = {len(one.seeds)}"
        for one in found
    ]
    lines = [
        f"## ({letter}) {claim.title}",
        "",
        f"| | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for arm, name in claim.arms.items():
        lines.append(f"| {name} | {' | '.join(_shown(one.means[arm]) for one in found)} |")
    ours, *others = claim.arms
    for arm in others:
        cells = (_difference(one, arm) for one in found)
        lines.append(f"| {claim.arms[ours]} − {claim.arms[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(one: Estimate) -> str:
    if one.low is None or one.high is None:
        return f"{one.mean:.4g}"
    return f"{one.mean:.4g} ± {one.high - one.mean:.2g}"


def _difference(found: Found, arm: str) -> str:
    one, better = found.differences[arm], found.better(arm)
    shown = f"{one.mean:+.3g}"
    if one.low is None or one.high is None:
        return shown
    shown += f" [{one.low:+.3g}, {one.high:+.3g}]"
    return shown if better is None else f"**{shown}** {'better' if better else 'worse'}"


def draw(claim: Claim, found: Sequence[Found], path: Path) -> None:
    """A panel a quantity: each seed a dot, those of one seed joined, and each arm's interval."""
    import matplotlib.pyplot as plt

    arms = list(claim.arms)
    figure, axes = plt.subplots(
        1, len(found), figsize=(1.2 + 2.9 * len(found), 3.4), squeeze=False, layout="constrained"
    )
    places = range(len(arms))
    for axis, one in zip(axes[0], found, strict=True):
        for number in range(len(one.seeds)):
            of_seed = [one.values[arm][number] for arm in arms]
            axis.plot(places, of_seed, "o-", color="0.75", markersize=3, linewidth=0.8)
        for place, arm in enumerate(arms):
            mean = one.means[arm]
            reach = 0.0 if mean.high is None else mean.high - mean.mean
            color = "C0" if place == 0 else "C1"
            axis.errorbar(place, mean.mean, yerr=reach, fmt="s", color=color, capsize=4)
        axis.set_xticks(places, [claim.arms[arm] for arm in arms], rotation=30, ha="right")
        axis.tick_params(labelsize=8)
        better = "less is better" if one.quantity.less_is_better else "more is better"
        axis.set_title(f"{one.quantity.name}\n({better}; n = {len(one.seeds)})", fontsize=9)
        axis.margins(x=0.25)
    figure.savefig(path, dpi=110)
    plt.close(figure)
