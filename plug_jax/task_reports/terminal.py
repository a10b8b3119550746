"""The terminal output of `plug-jax inspect`: examples and statistics."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from plug_jax.objectives.examples import Fate, Section, TextSpan
from plug_jax.objectives.shares import Share, Verdict
from plug_jax.task_reports.decoded_examples import DecodedExample
from plug_jax.task_reports.statistics import Fill, Lengths, TaskStatistics, VocabularyUse

# Marks of tokens; {0} is the original, {1} what the model sees.
_MARKS = {
    Fate.MASKED: "{{{0}}}",
    Fate.REPLACED: "{{{0}>{1}}}",
    Fate.KEPT: "{{{0}=}}",
    Fate.SHUFFLED: "{{{0}~{1}}}",
    Fate.STRAY: "!{0}>{1}!",
}
_STYLES = {
    Fate.MASKED: "bold red",
    Fate.REPLACED: "bold magenta",
    Fate.KEPT: "bold yellow",
    Fate.SHUFFLED: "bold cyan",
    Fate.STRAY: "bold white on red",
}
_VERDICT_STYLES = {
    Verdict.WITHIN: "green",
    Verdict.DOUBTFUL: "bold yellow",
    Verdict.OUTSIDE: "bold red",
}
_FACT_STYLES = {"label": "bold green"}
_SPECIAL_STYLE = "dim"
_UNKNOWN_STYLE = "underline"
_TOP_PIECES = 10

_Row = tuple[Text, Text, Text, Text, Text]  # name, found, bounds, asked, verdict


def legend(fates: Collection[Fate]) -> RenderableType:
    """The legend of these fates' marks."""
    meanings = {
        Fate.MASKED: (TextSpan("天", "", Fate.MASKED), "masked, the model sees [MASK]"),
        Fate.REPLACED: (TextSpan("天", "地", Fate.REPLACED), "replaced, it sees 地"),
        Fate.KEPT: (TextSpan("天", "", Fate.KEPT), "kept, it sees 天"),
        Fate.SHUFFLED: (TextSpan("天地人", "人天地", Fate.SHUFFLED), "shuffled, it sees 人天地"),
    }
    grid = Table.grid(padding=(0, 2))
    for fate, (span, meaning) in meanings.items():
        if fate in fates:
            grid.add_row("", _marked(span), meaning)
    return Group("The model predicts what is in braces:", grid, Text())


def show_example(example: DecodedExample, title: str) -> RenderableType:
    """An example: its facts, and its text with marks."""
    rows = [(name, Text(text, _FACT_STYLES.get(name, ""))) for name, text in example.facts]
    rows += [(section.name, _section_text(section)) for section in example.sections]
    return Group(Rule(title, style="dim", align="left"), _two_columns(rows), Text())


def show_statistics(statistics: TaskStatistics) -> RenderableType:
    """All statistics: found values, bounds, requested values, and verdicts."""
    grid = Table.grid(padding=(0, 2))
    for style in ("dim", "", "", "", ""):
        grid.add_column(style=style)
    if statistics.compared:
        grid.add_row("", "", *(Text(name, "dim") for name in ("95% bounds", "asked", "")))
    for lengths in statistics.lengths:
        for row in _length_rows(lengths):
            grid.add_row(*row)
    for share in statistics.shares:
        grid.add_row(*_share_row(share))
    rows: list[tuple[str, Text]] = []
    if statistics.fill is not None:
        rows += _fill_rows(statistics.fill)
    if statistics.vocabulary_use is not None:
        rows += _vocabulary_rows(statistics.vocabulary_use)
    for verb, counts in (("dropped", statistics.drops), ("changed", statistics.changes)):
        rows += [(f"{verb}: {reason}", Text(f"{n:,}")) for reason, n in sorted(counts.items())]
    number = statistics.examples
    rule = Rule(f"{number:,} example{'s' * (number > 1)}", style="dim", align="left")
    return Group(rule, grid, _two_columns(rows), Text(), *_conclusions(statistics))


def _conclusions(statistics: TaskStatistics) -> list[RenderableType]:
    """How many statistics agree with the task, and advice on those that do not."""
    total, wrong = len(statistics.compared), statistics.disagreeing
    if not total:
        return []
    lines = [Text(f"{total - len(wrong)} of {total} statistics agree with the task's settings.")]
    for item in wrong:
        verdict = _verdict_text(item.verdict)
        lines.append(Text.assemble(verdict, f": {item.label}. Assumed: {item.assumes}."))
    if any(item.verdict is Verdict.DOUBTFUL for item in wrong):
        lines.append(
            Text(
                "Doubtful means outside the 95% but within the 99.9% bounds: count more "
                "examples, or try another seed."
            )
        )
    return [*lines, Text()]


def _two_columns(rows: Sequence[tuple[str, Text]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), value)
    return grid


def _section_text(section: Section) -> Text:
    text = Text()
    for span in section.spans:
        text.append_text(_marked(span))
    return text


def _marked(span: TextSpan) -> Text:
    if span.unknown:
        return Text(span.text, _UNKNOWN_STYLE)
    if span.special:
        return Text(span.text, _SPECIAL_STYLE)
    if span.fate is Fate.PLAIN:
        return Text(span.text)
    return Text(_MARKS[span.fate].format(span.text, span.seen), _STYLES[span.fate])


def _length_rows(lengths: Lengths) -> Iterator[_Row]:
    """The mean, the range, and the distance to the uniform distribution if requested."""
    bounds = "{:.1f} to {:.1f}".format(*lengths.mean_bounds) if lengths.mean_bounds else ""
    asked = "" if lengths.mean_asked is None else f"{lengths.mean_asked:.1f}"
    yield Text(lengths.label), Text(f"mean {lengths.mean:.1f}"), Text(bounds), Text(asked), Text()
    found = "{:,} to {:,}".format(*lengths.extremes)
    if lengths.beyond:
        found += f", {lengths.beyond:,} of them beyond"
    asked = "" if lengths.longest_asked is None else f"{lengths.longest_asked:,}"
    asked = f"{lengths.shortest_asked or 'up'} to {asked}" if asked else ""
    verdict = _verdict_text(lengths.verdict)
    if lengths.distance is None or lengths.distance_bound is None:
        yield Text("  range"), Text(found), Text(), Text(asked), verdict
    else:
        yield Text("  range"), Text(found), Text(), Text(asked), Text()
        found, bound = f"{lengths.distance:.3f}", f"up to {lengths.distance_bound:.3f}"
        yield Text("  off uniform"), Text(found), Text(bound), Text("0"), verdict


def _share_row(share: Share) -> _Row:
    name = Text("  " * share.key.endswith("_share") + share.label)
    verdict = _verdict_text(share.verdict)
    if share.is_exact:
        found = Text(f"{share.count:,} of {share.total:,} {share.of}")
        return name, found, Text(), Text("0"), verdict
    found = Text(f"{share.value:.2%} of {share.total:,} {share.of}")
    if share.target is None or not share.total:
        return name, found, Text(), Text(), verdict
    bounds = "{:.2%} to {:.2%}".format(*share.bounds)
    return name, found, Text(bounds), Text(f"{share.target:.2%}"), verdict


def _verdict_text(verdict: Verdict | None) -> Text:
    if verdict is None:
        return Text()
    return Text(f"{verdict.mark} {verdict.value}", _VERDICT_STYLES[verdict])


def _fill_rows(fill: Fill) -> Iterator[tuple[str, Text]]:
    yield "examples per row", Text(f"{fill.examples_a_row:.1f} ({fill.examples:,} packed)")
    for side, fraction in fill.pad_fraction.items():
        yield f"{side} padding", Text(f"{fraction:.2%} of rows of {fill.row_lengths[side]:,}")


def _vocabulary_rows(use: VocabularyUse) -> Iterator[tuple[str, Text]]:
    yield "pieces used", Text(f"{use.coverage:.2%} of {use.size:,} regular ones")
    top = "  ".join(f"{piece} {count:,}" for piece, count in use.top[:_TOP_PIECES])
    yield "most frequent", Text(top)
