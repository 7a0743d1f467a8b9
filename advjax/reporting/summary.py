"""The summary table, with one column per kind of attack, and the report card."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from advjax.evaluation.report import CheckRow, Report, Summary
from advjax.reporting import legend
from advjax.reporting.formatting import accuracy_text, model_name, threat_name
from advjax.reporting.plain_table import plain_table

COLUMNS = {
    # First, so that even the narrowest screen shows it before any number that could be mistaken for it.
    "robust": "robust accuracy",
    "clean": "clean",
    "white_box": "white-box",
    "queries": "query",
    "transfer": "transfer",
    "oblivious": "oblivious",
}
"""Key of a `Summary` -> column heading."""


def measured_columns(summaries: Sequence[Summary]) -> list[str]:
    """The keys of ``COLUMNS`` that at least one summary has a number for, and that say more than robust accuracy."""
    found = [key for key in COLUMNS if any(entry[key] is not None for entry in summaries)]
    repeated = {key for key in ("white_box", "queries") if all(entry[key] == entry["robust"] for entry in summaries)}
    return [key for key in found if key not in repeated]


def checks_by_model(checks: Sequence[CheckRow]) -> dict[str, list[CheckRow]]:
    """Model name -> its checks, in their order."""
    found: dict[str, list[CheckRow]] = {}
    for check in checks:
        found.setdefault(model_name(check["run"], check["defense"]), []).append(check)
    return found


def checks_in_words(checks: Sequence[CheckRow]) -> str:
    """Result of a report card in one line: ``2 of 14 checks failed``, or ``14 of 14 checks passed``."""
    failed, total = sum(not check["passed"] for check in checks), len(checks)
    return f"{failed} of {total} checks failed" if failed else f"{total} of {total} checks passed"


def render(report: Report) -> list[RenderableType]:
    """The summary and the report cards for the terminal; either is left out if the report has none."""
    parts: list[RenderableType] = []
    if report.summary:
        heading = Text.assemble(("Summary", "bold"), "  accuracy in % [95% Wilson interval]")
        explanation = Text(legend.summary(measured_columns(report.summary)), style="dim")
        parts += [heading, _summary_table(report.summary), explanation, Text()]
    for model, checks in checks_by_model(report.checks).items():
        heading = Text.assemble((f"Report card of {model}", "bold"), f"  {checks_in_words(checks)}")
        parts += [heading, _check_table(checks), Text()]
    return parts


def _summary_table(summaries: Sequence[Summary]) -> Table:
    keys = measured_columns(summaries)
    table = plain_table("model", "threat model")
    for key in keys:
        table.add_column(COLUMNS[key], justify="right", style="bold" if key == "robust" else "", overflow="fold")
    for entry in summaries:
        cells = [model_name(entry["run"], entry["defense"]), threat_name(entry["norm"], entry["epsilon"])]
        table.add_row(*(Text(text) for text in cells + [accuracy_text(entry[key]) for key in keys]))
    return table


def _check_table(checks: Sequence[CheckRow]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_edge=False, show_header=False)
    for check in checks:
        mark = Text("passed") if check["passed"] else Text("FAILED", style="bold red")
        table.add_row(mark, Text(check["name"]), Text(check["finding"], style="dim" if check["passed"] else ""))
    return table
