"""What noise leaves of each model: how sensitive it is where nobody attacks it."""

from collections.abc import Mapping

from rich.console import RenderableType
from rich.text import Text

from advjax.evaluation.attacker_knowledge import NOTHING
from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.report import ALL, Report, Row
from advjax.reporting.plain_table import plain_table
from advjax.reporting.summary import cell_text, model_name

EXPLANATION = (
    "Noise: accuracy on images with random noise, the same for every model. Nobody has searched for it, and it says "
    "nothing about robustness against attacks."
)


def noise_table(report: Report) -> dict[str, dict[str, Row]]:
    """Model -> "clean" or the name of a noise -> accuracy on all images; {} where no noise was measured."""
    found: dict[str, dict[str, Row]] = {}
    for row in report.rows:
        if row["subset"] == ALL and (row["attack"] == CLEAN or row["knowledge"] == NOTHING):
            found.setdefault(model_name(row["run"], row["defense"]), {})[row["attack"]] = row
    return found if any(len(cells) > 1 for cells in found.values()) else {}


def noises(found: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """The columns of a `noise_table`: "clean" and the names of the noises, in the order in which they were measured."""
    return list(dict.fromkeys(name for cells in found.values() for name in cells))


def render(report: Report) -> list[RenderableType]:
    """The table for the terminal, a line for each model and a column for each kind of noise."""
    found = noise_table(report)
    if not found:
        return []
    table = plain_table("noise, %", *noises(found), numbers=noises(found))
    for model, cells in found.items():
        table.add_row(Text(model), *(Text(cell_text(cells.get(name))) for name in noises(found)))  # type: ignore[arg-type]
    return [Text("Noise", style="bold"), table, Text(EXPLANATION, style="dim"), Text()]
