"""The terminal output of `plug-jax inspect`: examples and statistics.

It is for a console without markup, which would take the brackets of [CLS] for its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from plug_jax.objectives.examples import Fate, TextSpan
from plug_jax.objectives.shares import Share, Verdict
from plug_jax.task_reports.decoded_examples import DecodedExample
from plug_jax.task_reports.statistics import Lengths, TaskStatistics

# The mark of a token ({0} is the original, {1} what the model sees) and its style.
_MARKS = {
    Fate.MASKED: ("{{{0}}}", "bold red"),
    Fate.REPLACED: ("{{{0}>{1}}}", "bold magenta"),
    Fate.KEPT: ("{{{0}=}}", "bold yellow"),
    Fate.SHUFFLED: ("{{{0}~{1}}}", "bold cyan"),
    Fate.STRAY: ("!{0}>{1}!", "bold white on red"),
}
_LEGEND = {
    TextSpan("天", "[MASK]", Fate.MASKED): "masked, the model sees [MASK]",
    TextSpan("天", "地", Fate.REPLACED): "replaced, it sees 地",
    TextSpan("天", "天", Fate.KEPT): "kept, it sees 天",
    TextSpan("天地人", "人天地", Fate.SHUFFLED): "shuffled, it sees 人天地",
}
_VERDICT_STYLES = {"within": "green", "doubtful": "bold yellow", "outside": "bold red"}
_FACT_STYLES = {"label": "bold green"}
_TOP_PIECES = 10

_Row = tuple[RenderableType, ...]


def legend(fates: Collection[Fate]) -> RenderableType:
    """The legend of these fates' marks."""
    rows = [("", _marked(span), what) for span, what in _LEGEND.items() if span.fate in fates]
    return Group("The model predicts what is in braces:", _table(rows, "", "", ""), "")


def show_example(example: DecodedExample, title: str) -> RenderableType:
    """An example: its facts, and its text with marks."""
    rows = [(name, Text(text, _FACT_STYLES.get(name, ""))) for name, text in example.facts]
    rows += [(part.name, Text.assemble(*map(_marked, part.spans))) for part in example.sections]
    return Group(Rule(title, style="dim", align="left"), _table(rows, "dim", ""), "")


def show_statistics(statistics: TaskStatistics) -> RenderableType:
    """All statistics: found values, bounds, requested values, and verdicts."""
    rows: list[_Row] = []
    if statistics.compared:
        rows.append(("", "", Text("95% bounds", "dim"), Text("asked", "dim")))
    for lengths in statistics.lengths:
        rows += _length_rows(lengths)
    rows += map(_share_row, statistics.shares)
    title = f"{statistics.examples:,} example{'s' * (statistics.examples > 1)}"
    return Group(
        Rule(title, style="dim", align="left"),
        _table(rows, "dim", "", "", "", ""),
        _table(_other_rows(statistics), "dim", ""),
        "",
        *_conclusions(statistics),
    )


def _conclusions(statistics: TaskStatistics) -> Iterator[RenderableType]:
    """How many statistics agree with the task, and advice on those that do not."""
    total, wrong = len(statistics.compared), statistics.disagreeing
    if not total:
        return
    yield f"{total - len(wrong)} of {total} statistics agree with the task's settings."
    for item in wrong:
        yield Text.assemble(_verdict(item), f": {item.label}. Assumed: {item.assumes}.")
    if any(item.verdict is Verdict.DOUBTFUL for item in wrong):
        yield (
            "Doubtful means outside the 95% but within the 99.9% bounds: count more "
            "examples, or try another seed."
        )
    yield ""


def _table(rows: Iterable[_Row], *styles: str) -> Table:
    """Rows with a style for each column."""
    columns = [Column(style=style, overflow="fold") for style in styles]
    table = Table.grid(*columns, padding=(0, 2))
    for row in rows:
        table.add_row(*row)
    return table


def _marked(span: TextSpan) -> Text:
    if span.special or span.unknown:
        return Text(span.text, "underline" if span.unknown else "dim")
    if span.fate is Fate.PLAIN:
        return Text(span.text)
    mark, style = _MARKS[span.fate]
    return Text(mark.format(span.text, span.seen), style)


def _length_rows(lengths: Lengths) -> Iterator[_Row]:
    """The mean, the range, and the distance to the uniform distribution if requested."""
    bounds = "{:.1f} to {:.1f}".format(*lengths.mean_bounds) if lengths.mean_bounds else ""
    asked = "" if lengths.mean_asked is None else f"{lengths.mean_asked:.1f}"
    yield lengths.label, f"mean {lengths.mean:.1f}", bounds, asked
    found = "{:,} to {:,}".format(*lengths.extremes)
    if lengths.beyond:
        found += f", {lengths.beyond:,} of them beyond"
    asked = ""
    if lengths.longest_asked is not None:
        asked = f"{lengths.shortest_asked or 'up'} to {lengths.longest_asked:,}"
    if lengths.distance is None:
        yield "  range", found, "", asked, _verdict(lengths)
    else:
        yield "  range", found, "", asked
        distance, bound = f"{lengths.distance:.3f}", f"up to {lengths.distance_bound:.3f}"
        yield "  off uniform", distance, bound, "0", _verdict(lengths)


def _share_row(share: Share) -> _Row:
    name = "  " * share.key.endswith("_share") + share.label
    found, bounds, asked = f"{share.value:.2%} of {share.total:,} {share.of}", "", ""
    if share.is_exact:
        found, asked = f"{share.count:,} of {share.total:,} {share.of}", "0"
    elif share.target is not None and share.total:
        bounds, asked = "{:.2%} to {:.2%}".format(*share.bounds), f"{share.target:.2%}"
    return name, found, bounds, asked, _verdict(share)


def _verdict(item: Lengths | Share) -> Text:
    verdict = item.verdict
    return Text(f"{verdict.mark} {verdict.value}", _VERDICT_STYLES[verdict]) if verdict else Text()


def _other_rows(statistics: TaskStatistics) -> Iterator[_Row]:
    """What is not compared with the task: how full rows are, the vocabulary's use, and drops."""
    if fill := statistics.fill:
        yield "examples per row", f"{fill.examples_a_row:.1f} ({fill.examples:,} packed)"
        for side, fraction in fill.pad_fraction.items():
            yield f"{side} padding", f"{fraction:.2%} of rows of {fill.row_lengths[side]:,}"
    if use := statistics.vocabulary_use:
        yield "pieces used", f"{use.coverage:.2%} of {use.size:,} regular ones"
        top = "  ".join(f"{piece} {count:,}" for piece, count in use.top[:_TOP_PIECES])
        yield "most frequent", top
    for verb, counts in (("dropped", statistics.drops), ("changed", statistics.changes)):
        for reason, n in sorted(counts.items()):
            yield f"{verb}: {reason}", f"{n:,}"
