"""`plug-jax plan`: what a run needs and how fast it can be, from gin files, without a TPU."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plug_jax.cli import gin_config
from plug_jax.cli.arguments import positive
from plug_jax.errors import PlugError
from plug_jax.standard_error import say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from plug_jax.planning.calibration import Calibration
    from plug_jax.planning.compile import Memory
    from plug_jax.planning.cost import Cost
    from plug_jax.planning.decode import DecodePlan
    from plug_jax.planning.plan import Plan, Speed
    from plug_jax.training.program import TrainConfig

SUMMARY = (
    "Tell from gin files whether a run fits a TPU slice, and how fast it can be. Needs no TPU."
)
EXAMPLE = """examples:
  plug-jax plan --gin_file=runs/palm_pretrain.gin --gin_file=models/plug_27b.gin \\
    --gin_file=mesh/v5p_128.gin --topology=v5p:4x4x4
  plug-jax plan --gin_file=runs/structbert_pretrain.gin --gin_file=models/large.gin \\
    --gin_file=mesh/v5e_16.gin --topology=v5e:4x4 --sweep --tensor 1 --remat full names=qkv,wi

The TPU compiler (pip install 'plug-jax[tpu]') compiles the train step that `plug-jax train` runs;
a model of 26B parameters takes it one to several minutes. Data are not read: MODEL_DIR, TRAIN_FILES
and the like need not be set. The exit status is 1 when the run does not fit.
"""
UNKNOWN_ARGUMENTS = True
_DOES_NOT_FIT = 1
_SWEPT = ("fsdp", "tensor", "batch", "micro_batches")

# No task is registered, which would look for its files.
_UNREAD = {**gin_config.STEP_ALONE, "MIXTURE_OR_TASK_NAME": "'plan'"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax plan`."""
    gin_config.add_arguments(parser)
    add = parser.add_argument
    add(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="v4, v5e, v5p, v6e or v7x, with the chips of a slice: v5p:4x4x4, v5e:16x16; "
        "2*v5p:4x4x8 is two slices",
    )
    add(
        "--calibration",
        action=_Calibration,
        nargs="?",
        const="table",
        choices=("table", "json"),
        help="print the published runs that the expected MFU rests on, how far off it is, and end",
    )
    add("--json", action="store_true", help="one JSON object on standard output")
    add("--find_batch", action="store_true", help="find the largest BATCH_SIZE that fits")
    add("--sweep", action="store_true", help="compare meshes, batches and remat policies")
    add(
        "--decode",
        action="store_true",
        help="plan cached generation in place of training: BATCH_SIZE prompts, and texts, of "
        "TASK_FEATURE_LENGTHS at most",
    )
    for name in _SWEPT:
        add(f"--{name}", nargs="+", type=positive, metavar="N", help=f"values of {name} to --sweep")
    add(
        "--remat",
        nargs="+",
        metavar="POLICY",
        help="remat policies to --sweep: none, dots, full, names, names=qkv,out,wi",
    )


class _Calibration(argparse.Action):
    """As `--help`, it asks for no other option."""

    def __call__(
        self, parser: argparse.ArgumentParser, _args: Any, form: Any, _option: Any = None
    ) -> None:
        _print_calibration(as_json=form == "json")
        parser.exit()


def run(args: argparse.Namespace) -> int:
    """Compile, and print a report."""
    from plug_jax.planning.topologies import parse_topology, set_environment

    topology = parse_topology(args.topology)
    if args.sweep + args.find_batch + args.decode > 1:
        raise PlugError(
            "--sweep, --find_batch and --decode do not go together; --sweep takes --batch values"
        )
    swept = {name: getattr(args, name) for name in (*_SWEPT, "remat")}
    if not args.sweep and any(swept.values()):
        raise PlugError(f"{', '.join(f'--{name}' for name in swept)} are for --sweep")
    set_environment()
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.planning.decode import make_decode_plan
    from plug_jax.planning.plan import find_batch, make_plan
    from plug_jax.planning.sweep import Grid, sweep

    config = configure(args.gin_file, gin_config.overrides(args.unknown))
    longest, positions = max(config.train_data.feature_lengths.values()), config.model.max_positions
    if longest > positions and not args.decode:
        say(
            f"rows of {longest:,} tokens hold several examples, each of at most {positions:,}: "
            "positions begin anew with each, and the model has no more"
        )
    if args.sweep:
        grid = Grid.of(config, topology, **swept)
        plans = sweep(config, topology, grid, say)
        _print_plans(plans, as_json=args.json)
        return 0 if plans and plans[0].fits else _DOES_NOT_FIT
    if args.decode:
        decode_plan = make_decode_plan(config, topology)
        if args.json:
            print(json.dumps(decode_plan.to_dict(), indent=2))
        else:
            _print_decode_plan(decode_plan)
        return 0 if decode_plan.fits else _DOES_NOT_FIT
    if args.find_batch:
        plan = find_batch(config, topology, lambda plan: say(plan.outcome))
    else:
        plan = make_plan(config, topology)
    if args.json:
        print(json.dumps(plan.to_dict(), indent=2))
    else:
        _print_plan(plan)
    return 0 if plan.fits else _DOES_NOT_FIT


def configure(files: list[str], bindings: list[str]) -> TrainConfig:
    """The run that gin files and bindings describe, without what only a run itself needs."""
    from plug_jax.training.program import TrainConfig

    return gin_config.configured(TrainConfig, files=files, bindings=bindings, replacing=_UNREAD)


def _print_plans(plans: Sequence[Plan], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([plan.to_dict() for plan in plans], indent=2))
        return
    table = _table("data", "fsdp", "tensor", "batch", "micro-batches", "remat", "HBM")
    for column in ("MFU at most", "as compiled", "expected", "bound by", "interconnect / compute"):
        table.add_column(column)
    for plan in plans:
        row = [*(str(plan.mesh[axis]) for axis in ("data", "fsdp", "tensor"))]
        row += [str(plan.batch_size), str(plan.micro_batches), plan.remat]
        if plan.speed is None:
            row.append("does not fit")
        else:
            roofline = plan.speed.roofline
            row += [_bytes(plan.hbm_needed), f"{plan.speed.mfu_bound:.1%}"]
            row += [f"{plan.speed.mfu_scheduled:.1%}", _expected(plan.speed), roofline.bound_by]
            row.append(f"{roofline.interconnect / roofline.compute:.2f}")
        table.add_row(*row)
    _console().print(table)


def _print_plan(plan: Plan) -> None:
    console = _console()
    lengths = " + ".join(str(n) for n in plan.lengths.values())
    console.print(
        f"{_what(plan)}: {plan.parameters:,} parameters, rows of {lengths} tokens, "
        f"micro-batches {plan.micro_batches}, remat {plan.remat}, attention "
        f"{plan.attention}\n{plan.verdict}"
    )
    if plan.memory is not None:
        console.print(_memory_table(plan.memory))
    if plan.speed is not None:
        _print_speed(console, plan, plan.speed)


def _print_decode_plan(plan: DecodePlan) -> None:
    console = _console()
    console.print(
        f"decoding, a token for each row: prompts of {plan.encoder_length} tokens, up to "
        f"{plan.max_length} new ones\n{plan.verdict}\n"
        f"parameters {_bytes(plan.parameters)}, keys and values {_bytes(plan.cache)} a device"
    )
    if plan.cost is not None:
        _print_cost(console, plan.cost, "a token")
        console.print(
            f"At most {plan.tokens_per_second:,.0f} tokens/s over all rows. Bounds from published "
            "peaks, not predictions."
        )


def _memory_table(memory: Memory) -> Table:
    table = _table("HBM of a device", "size", "from")
    rows: list[tuple[str, int | None, str]] = [
        ("arguments", memory.arguments, "compiler"),
        ("  parameters", memory.parameters, "shardings"),
        ("  optimizer", memory.optimizer, "shardings"),
        ("outputs that are no arguments", memory.outputs - memory.aliased, "compiler"),
        ("temporaries", memory.temporaries, "compiler"),
        ("  kept by layers for the backward pass, at most", memory.activations, "traced shapes"),
        ("code", memory.code, "compiler"),
        ("needed at one time", memory.peak, "compiler"),
        ("on the host", memory.host or None, "compiler"),
    ]
    for name, size, source in rows:
        if size is not None:
            table.add_row(name, _bytes(size), source)
    return table


def _print_cost(console: Console, cost: Cost, what: str) -> None:
    table = _table("collective", "over", "type", "times", "bytes", "largest", "at least", "waits")
    for row in cost.collectives:
        moved = [f"{row.times:,}", _bytes(row.bytes), row.largest, _time(row.seconds)]
        table.add_row(row.kind, row.axes, row.dtype, *moved, "" if row.is_async else "yes")
    console.print(table)
    roofline = cost.roofline
    table = _table(what, "at least", "from")
    for name, seconds, source in (
        ("compute", roofline.compute, f"{cost.executed_flops:.4g} FLOPs as traced"),
        ("HBM", roofline.hbm, f"{_bytes(cost.hbm_traffic)} a device in the compiled program"),
        ("interconnect", roofline.interconnect, "its collectives, one after another"),
        ("all at the same time", roofline.overlapped, f"bound by {roofline.bound_by}"),
        ("as compiled", roofline.scheduled, f"waits for {_time(roofline.synchronous)} of it"),
    ):
        table.add_row(name, _time(seconds), source)
    console.print(table)
    if cost.uncounted_loops:
        console.print(f"Loops of unknown length, which count once: {cost.uncounted_loops}")


def _print_speed(console: Console, plan: Plan, speed: Speed) -> None:
    _print_cost(console, speed, "a step")
    roofline = speed.roofline
    hidden = "hide" if roofline.hides_interconnect else "not hide"
    console.print(
        f"MFU at most {speed.mfu_bound:.1%}, as compiled {speed.mfu_scheduled:.1%}: "
        f"{speed.model_flops:.4g} model FLOPs a step. Compute can "
        f"{hidden} the interconnect ({roofline.interconnect / roofline.compute:.2f} of it).\n"
        f"At most {speed.tokens_per_second:,.0f} tokens/s, padding included{_days(plan, speed)}.\n"
        f"Bounds from published peaks, not predictions. Traced in {plan.trace_seconds:.1f} s, "
        f"compiled in {plan.compile_seconds:.1f} s.\n{_expectation(plan, speed)}"
    )


def _expectation(plan: Plan, speed: Speed) -> str:
    """What published runs let one expect, and how many there are."""
    expected, chip = speed.expected, plan.topology.split("*")[-1].partition(":")[0]
    if expected is None:
        return (
            f"No MFU to expect: there is no published run on {chip} to hold these bounds against."
        )
    days = ""
    if speed.expected_days is not None:
        days = ", {:,.1f}-{:,.1f} days".format(*speed.expected_days)
    runs = f"{expected.chip_rows} published run{'s' if expected.chip_rows > 1 else ''}"
    others = f"{expected.rows - expected.chip_rows} on other chips"
    longer = ", ".join(expected.outside)
    return (
        f"Expected MFU {_expected(speed)}{days}: what {runs} on {chip} and {others} would have of "
        "these times (plug-jax plan --calibration)."
        + (f" Longer than in any of them: {longer}." if longer else "")
    )


def _expected(speed: Speed) -> str:
    """68% (61-73%)."""
    expected = speed.expected
    if expected is None:
        return "unknown"
    return f"{expected.mfu:.0%} ({100 * expected.low:.0f}-{expected.high:.0%})"


def _print_calibration(*, as_json: bool) -> None:
    from plug_jax.planning.calibration import published

    calibration = published()
    if as_json:
        print(json.dumps(calibration.to_dict(), indent=2))
        return
    table = _table("published run", "compute", "HBM", "waits", "MFU at most", "as compiled")
    for column in ("published", "ratio", "from others", "off by"):
        table.add_column(column)
    for row, left_out, error in zip(
        calibration.rows, calibration.left_out, calibration.errors, strict=True
    ):
        times = row.times
        table.add_row(
            row.name,
            *(f"{time:.2f}" for time in (times.compute, times.hbm, times.synchronous)),
            *(f"{mfu:.1%}" for mfu in (row.mfu_bound, row.mfu_scheduled, row.mfu)),
            f"{row.mfu / row.mfu_scheduled:.2f}",
            f"{left_out:.1%}",
            f"{error:+.1%}",
        )
    _console().print(table)
    print(_how_far_off(calibration))


def _how_far_off(calibration: Calibration) -> str:
    values = calibration.to_dict()
    terms = " + ".join(f"{value:.2f} {name}" for name, value in values["coefficients"].items())
    return (
        "Times at published peaks, over what the model's FLOPs take at the peak. "
        f"1 / MFU = {terms}: {len(values['coefficients'])} coefficients, {len(values['rows'])} "
        f"runs. Each one, left out of the fit, is missed by {calibration.median_error:.1%} "
        f"(median), {calibration.largest_error:.1%} at most."
    )


def _what(plan: Plan) -> str:
    return " + ".join(plan.objectives) if plan.stage is None else f"stage {plan.stage}"


def _days(plan: Plan, speed: Speed) -> str:
    if speed.days is None or speed.stage_tokens is None:
        return ""
    billions = speed.stage_tokens / 1e9
    return f": {speed.days:,.1f} days for the {billions:.0f}B tokens of stage {plan.stage}"


def _console() -> Console:
    from rich.console import Console

    # Piped, rich would fold everything to 80 columns.
    width = None if sys.stdout.isatty() else 120
    return Console(highlight=False, soft_wrap=True, width=width)


def _table(*columns: str) -> Table:
    from rich.table import Table

    return Table(*columns)


def _bytes(size: int | None) -> str:
    """1.50 GiB, 20.3 MiB, 512 B."""
    number = float(size or 0)
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.2f} GiB"


def _time(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"
