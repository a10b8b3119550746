"""Tests the announcement's claims on a very small PLUG.

    python -m claims --output claims_output

Interrupted, the same command goes on where it was. The report is OUTPUT/claims.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from claims.table import CLAIMS, Claim
from plug_jax.cli import gin_config, task_modules
from plug_jax.cli.main import import_tensorflow, report
from plug_jax.cli.sweep import interrupt_on_termination
from plug_jax.errors import PlugError

SEEDS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Train and score what is left of the claims asked for, one after another."""
    parser = argparse.ArgumentParser("python -m claims", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("claims_output"))
    parser.add_argument("--claims", default="".join(CLAIMS), help="letters, in order (%(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each run (%(default)s)")
    parser.add_argument(
        "--scale", type=int, default=1, help="how many times the steps of each run (%(default)s)"
    )
    parser.add_argument(
        "--report", action="store_true", help="train nothing: report on the seeds that are done"
    )
    args, settings = parser.parse_known_args(argv)
    try:
        wanted = _wanted(args.claims)
        for option in ("seeds", "scale"):
            if getattr(args, option) < 1:
                raise PlugError(f"--{option} must be 1 or more, got {getattr(args, option)}")
        overrides = gin_config.overrides(settings)
        args.output = args.output.absolute()
        os.chdir(Path(__file__).parents[1])  # where the gin files include each other from
        task_modules.allow_short_name()
        _test(args, wanted, overrides)
    except (PlugError, KeyboardInterrupt) as error:
        return report(error)
    return 0


def _wanted(letters: str) -> dict[str, Claim]:
    if unknown := sorted(set(letters) - set(CLAIMS)):
        raise PlugError(
            f"--claims {letters}: there is no {unknown[0]!r}; there are {''.join(CLAIMS)}"
        )
    return {letter: CLAIMS[letter] for letter in letters}


def _test(args: argparse.Namespace, claims: dict[str, Claim], overrides: Sequence[str]) -> None:
    import_tensorflow()
    from claims.report import write_report
    from claims.runs import Runs

    output = args.output
    runs = Runs(output, scale=args.scale, overrides=overrides)
    scored: dict[str, dict[int, dict[str, float]]] = {}
    left_out: list[str] = []
    for claim in claims.values():
        for seed in range(args.seeds):
            for name in claim.runs:
                if not args.report or runs.is_done(name, seed):
                    scored.setdefault(name, {})[seed] = runs.scores(name, seed)
        left_out = write_report(output, claims, scored)
    if left_out:
        print(f"left out, no seed has all of its runs: {', '.join(left_out)}", file=sys.stderr)
    print(f"\nThe report is {output / 'claims.md'}", file=sys.stderr)


if __name__ == "__main__":
    interrupt_on_termination()
    raise SystemExit(main())
