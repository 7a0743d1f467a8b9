"""Accuracy of each model under random noise."""

from collections.abc import Mapping

from rich.console import RenderableType
from rich.text import Text

from advjax.evaluation.attacker_knowledge import NOTHING
from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.report import ALL, Report, Row
from advjax.reporting import legend
from advjax.reporting.formatting import accuracy_text, model_name
from advjax.reporting.plain_table import plain_table


def noise_table(report: Report) -> dict[str, dict[str, Row]]:
    """Model -> "clean" or name of a noise -> accuracy on all images; empty if no noise was evaluated."""
    found: dict[str, dict[str, Row]] = {}
    for row in report.rows:
        if row["subset"] == ALL and (row["attack"] == CLEAN or row["knowledge"] == NOTHING):
            found.setdefault(model_name(row["run"], row["defense"]), {})[row["attack"]] = row
    return found if any(len(cells) > 1 for cells in found.values()) else {}


def noise_columns(found: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Columns of a `noise_table`: "clean" and the names of the noises, in the order of evaluation."""
    return list(dict.fromkeys(name for cells in found.values() for name in cells))


def render(report: Report) -> list[RenderableType]:
    """The table for the terminal, one row per model and one column per noise; empty without noise."""
    found = noise_table(report)
    if not found:
        return []
    columns = noise_columns(found)
    table = plain_table("model", *columns, numbers=columns)
    for model, cells in found.items():
        table.add_row(Text(model), *(Text(accuracy_text(cells.get(name))) for name in columns))
    heading = Text.assemble(("Random noise", "bold"), "  accuracy in % [95% Wilson interval]")
    return [heading, table, Text(legend.NOISE, style="dim"), Text()]
