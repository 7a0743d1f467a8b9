"""Prints a report as tables in the terminal."""

from rich.console import Console, Group, RenderableType
from rich.text import Text

from advjax.evaluation.report import BASE_CORRECT, Report, Row
from advjax.reporting import legend, noise_table, summary, verdict
from advjax.reporting.formatting import MISSING, percent, subset_name
from advjax.reporting.layout import Block, blocks, explained_terms, sources
from advjax.reporting.plain_table import plain_table

WIDTH = 100
"""Columns that the tables need.  Narrower terminals wrap lines; nothing is ever cut off."""


def print_report(report: Report, console: Console) -> None:
    """Prints the report.  Output to a pipe or a file, which has no width, gets at least ``WIDTH`` columns."""
    print_wide(render(report), console)


def print_wide(content: RenderableType, console: Console) -> None:
    """Prints ``content``, at least ``WIDTH`` columns wide unless the console is a terminal."""
    width = console.width
    try:
        if not console.is_terminal:
            console.width = max(WIDTH, width)
        console.print(content)
    finally:
        console.width = width


def render(report: Report) -> RenderableType:
    """The whole report for rich: summary, one table per model and attack source, noise, legend and notes."""
    arranged = blocks(report)
    parts: list[RenderableType] = [Text(report.title, style="bold"), *_head(report), Text(), *summary.render(report)]
    for block in arranged:
        parts += [_heading(block), Text()]
        # Side by side, the columns of several sources would be wider than most terminals.
        for number in range(max(1, len(block.sources))):
            parts += [_table(block, number), Text()]
        if block.is_unmeasured:
            parts += [Text(legend.no_adaptive_attack(block.name), style="bold"), Text()]
    parts += noise_table.render(report)
    parts += [Text(line, style="dim") for line in _legend(arranged)]
    parts += [Text(f"Note: {note}") for note in report.notes]
    return Group(*parts)


def _head(report: Report) -> list[RenderableType]:
    """The result in a sentence per model, and what it was measured on, with what and where."""
    facts = [Text(f"{heading}: {text}", style="dim") for heading, text in verdict.head(report)]
    return [*(Text(sentence, style="bold") for sentence in report.verdict), *facts]


def _legend(arranged: list[Block]) -> list[str]:
    lines = [legend.ROBUST_ACCURACY, legend.NOT_ROBUST_ACCURACY, legend.INTERVALS]
    if any(BASE_CORRECT in source.sizes for source in sources(arranged)):
        lines.append(legend.BASE_CORRECT)
    if any(block.has_minimum for block in arranged):
        lines.append(legend.MEDIAN_DISTANCE)
    return lines + explained_terms(arranged)


def _heading(block: Block) -> Text:
    text = Text.assemble((block.name, "bold"), f"  {block.split} split")
    for subset, row in block.clean.items():
        interval = f"[{percent(row['low'])}, {percent(row['high'])}] ±{percent(row['sd_fifths'])}"
        text.append(f"\nclean accuracy {percent(row['accuracy'])}% {interval}, {row['n']} {subset_name(subset)}")
    return text


def _table(block: Block, number: int) -> RenderableType:
    """Robust accuracy beside the results of source ``number``, if the block has any source."""
    if not block.lines:
        return Text()
    table = plain_table("attack", "threat\nmodel")
    source = block.sources[number] if block.sources else None
    kind, sizes = (source.kind or "predicted labels", source.sizes) if source else ("", {})
    for subset, size in sizes.items():
        title = f"{kind} (%)\n{size} {subset_name(subset)}"
        table.add_column(Text(title), justify="right", overflow="fold")
    table.add_column(f"robust accuracy (%)\n{block.adaptive}", justify="right", style="bold", overflow="fold")
    if block.has_minimum:
        table.add_column("median\ndistance", justify="right")
    for line in block.lines:
        shown = [_cell(line.transfer[number].get(subset), spread=True) for subset in sizes]
        robust = "" if line.minimum else _cell(line.robust, spread=False)
        cells = [line.attack, line.threat, *shown, robust, *([line.median] if block.has_minimum else [])]
        # As Text, so that brackets in a name are not read as markup.
        table.add_row(*map(Text, cells))
    return Group(Text(source.heading), table) if source else table


def _cell(row: Row | None, spread: bool) -> str:
    if row is None:
        return MISSING if spread else "not measured"
    text = f"{percent(row['accuracy'])} [{percent(row['low']):>4},{percent(row['high']):>5}]"
    return f"{text} ±{percent(row['sd_fifths']):<4}" if spread else text
