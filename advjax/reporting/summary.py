"""The four ways of attacking side by side, and the report card, for the terminal and for the page."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from advjax.evaluation.report import CheckRow, Report, Summary, SummaryCell
from advjax.reporting.plain_table import plain_table

WAYS = {
    # Before any number that could be taken for it, also where a narrow screen shows no other.
    "robust": "robust accuracy",
    "clean": "clean",
    "white_box": "white box",
    "queries": "queries",
    "transfer": "transfer",
    "oblivious": "oblivious",
}
"""Columns of the summary, and their heads."""
EXPLANATION = (
    "Each number is what all attacks of its kind leave together, image by image. Oblivious: made on the same run "
    "without its defence. Transfer: made on another run. White box: made on the model itself, gradients through its "
    "defence. Queries: made on the model itself by its answers alone. Robust accuracy: the minimum over white box and "
    "queries."
)


def ways_measured(summaries: Sequence[Summary]) -> list[str]:
    """The columns in which there is a number."""
    return [way for way in WAYS if any(entry[way] is not None for entry in summaries)]


def model_name(run: str, defense: str) -> str:
    """The run, and its defence if it has one."""
    return run if defense == "none" else f"{run} with {defense}"


def cell_text(cell: SummaryCell | None) -> str:
    """Percent and interval."""
    if cell is None or cell["accuracy"] is None:
        return "–"
    return f"{100 * cell['accuracy']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def by_model(checks: Sequence[CheckRow]) -> dict[str, list[CheckRow]]:
    """The checks of each model, in their order."""
    found: dict[str, list[CheckRow]] = {}
    for check in checks:
        found.setdefault(model_name(check["run"], check["defense"]), []).append(check)
    return found


ThreatName: TypeAlias = Callable[[str | None, float | None], str]


def render(report: Report, threat_name: ThreatName) -> list[RenderableType]:
    """The summary and the report card, as far as there is something to show."""
    parts: list[RenderableType] = []
    if report.summary:
        parts += [Text("Summary", style="bold"), _summary(report.summary, threat_name)]
        parts += [Text(EXPLANATION, style="dim"), Text()]
    for model, checks in by_model(report.checks).items():
        failed = sum(not check["passed"] for check in checks)
        verdict = (
            f"{failed} of {len(checks)} checks failed" if failed else f"{len(checks)} of {len(checks)} checks passed"
        )
        parts += [Text.assemble((f"Report card of {model}", "bold"), f"  {verdict}"), _checks(checks), Text()]
    return parts


def _summary(summaries: Sequence[Summary], threat_name: ThreatName) -> Table:
    ways = ways_measured(summaries)
    table = plain_table("model, %", "threat")
    for way in ways:
        table.add_column(WAYS[way], justify="right", style="bold" if way == "robust" else "", overflow="fold")
    for entry in summaries:
        cells = [model_name(entry["run"], entry["defense"]), threat_name(entry["norm"], entry["epsilon"])]
        table.add_row(*(Text(text) for text in cells + [cell_text(entry[way]) for way in ways]))
    return table


def _checks(checks: Sequence[CheckRow]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_edge=False, show_header=False)
    for check in checks:
        mark = Text("passed") if check["passed"] else Text("FAILED", style="bold red")
        table.add_row(mark, Text(check["name"]), Text(check["finding"], style="dim" if check["passed"] else ""))
    return table
