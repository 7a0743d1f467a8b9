"""The report as a table for the terminal, and the arrangement (runs, lines, columns) that table, plot and page share.

A transfer result and a robust accuracy never share a column: `blocks` sorts every row by `is_robust_accuracy`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.text import Text

from advjax.evaluation import card, noise
from advjax.evaluation.outcomes import CLEAN, NOTHING
from advjax.evaluation.report import ALL, BASE_CORRECT, Report, Row, is_robust_accuracy
from advjax.evaluation.terminal import plain_table

WIDTH = 100
"""Columns that the table needs; less than that wraps lines, nothing is ever cut off."""

LEGEND = (
    "Robust accuracy: the attack was made on the very model that is scored (adaptive, white box). It is an upper "
    "bound: a stronger attack can only lower it.",
    "Transfer: the attack was made on another model and knows nothing of the one that is scored. It is no robust "
    "accuracy. Oblivious: it was made on the same run without its test-time defence, which is none either.",
    "[low, high]: 95 % Wilson interval. ±: standard deviation over the five fifths of the test images. Both are about "
    "the choice of test images, not about training seeds.",
)


TERMS = {
    "faithful": "Faithful: by the protocol of a paper, so that its numbers can be compared.",
    "predicted labels": "Predicted labels: the attack aims at the model's own predictions, so what the model gets "
    "wrong may be pushed into the right class.",
}


class Line(NamedTuple):
    """One attack on one run."""

    attack: str
    """Name and whatever is unusual about it: faithful protocol of a robust accuracy, EOT samples, seed."""
    threat: str
    """Norm and epsilon, such as "linf 8/255"."""
    transfer: dict[str, Row]
    """Subset -> accuracy on images made on the block's source; empty if there is none."""
    robust: Row | None
    """Accuracy on all images attacked on the scored model itself; None if that was not measured."""


class Block(NamedTuple):
    """One run (with its defence) beside one source of transferred attacks."""

    run: str
    split: str
    defense: str
    source: str | None
    """The run the transferred attacks were made on, None if there are only adaptive ones."""
    terms: str
    """What is unusual about how they were made, such as "faithful, predicted labels"; usually ""."""
    clean: dict[str, Row]
    """Subset -> accuracy without attack; the subsets are those of ``transfer``, at least "all"."""
    lines: list[Line]

    @property
    def name(self) -> str:
        return card.model_name(self.run, self.defense)

    @property
    def column(self) -> str:
        """What the numbers beside robust accuracy are, for the head of their column."""
        made = f"{self.kind.capitalize()}, attack made on {self.source}" if self.kind else f"Attack made on {self.run}"
        if self.kind == "oblivious":
            made += " without its defence"
        return f"{made} ({self.terms})" if self.terms else made

    @property
    def kind(self) -> str:
        """ "transfer" or "oblivious"; "" for an attack on the model itself that is no robust accuracy."""
        if self.source != self.run:
            return "transfer"
        return "" if self.defense == "none" else "oblivious"

    @property
    def subsets(self) -> list[str]:
        """Columns under transfer."""
        return list(dict.fromkeys(subset for line in self.lines for subset in line.transfer))

    @property
    def sizes(self) -> dict[str, str]:
        """Number of images in each of ``subsets``; "200–1000" if the attacks differ in it."""
        counts = {
            subset: sorted({line.transfer[subset]["n"] for line in self.lines if subset in line.transfer})
            for subset in self.subsets
        }
        return {subset: "–".join(str(n) for n in (*n[:1], *n[1:][-1:])) for subset, n in counts.items()}

    @property
    def is_unmeasured(self) -> bool:
        """Attacks were transferred to this run, but none was made on it."""
        return bool(self.lines) and all(line.robust is None for line in self.lines)


def blocks(report: Report) -> list[Block]:
    """Arrange the rows, in their order: a block per run, defence and transfer source; a line per attack.

    Noise is no attack, and has a table of its own (``noise``).
    """
    rows = [row for row in report.rows if row["knowledge"] != NOTHING]
    models = dict.fromkeys((row["run"], row["split"], row["defense"]) for row in rows)
    return [block for model in models for block in _blocks_of(*model, rows)]


def explained_terms(arranged: Sequence[Block]) -> list[str]:
    """What the words of ``Block.terms`` mean, for those that occur."""
    return [text for term, text in TERMS.items() if any(term in block.terms for block in arranged)]


def threat_name(norm: str | None, epsilon: float | None) -> str:
    """Norm and epsilon for people: ``linf 8/255``, ``l2 0.5``, ``l2 minimum`` for a minimum-norm attack."""
    if norm is None:
        return ""
    if epsilon is None:
        return f"{norm} minimum"
    levels = epsilon * 255
    is_decimal = math.isclose(epsilon, round(epsilon, 2), rel_tol=1e-6)
    if not is_decimal and math.isclose(levels, round(levels), rel_tol=1e-5):
        return f"{norm} {round(levels)}/255"
    return f"{norm} {epsilon:.6g}"


def subset_name(subset: str) -> str:
    """The subset as words that a number can stand before: "images", "base-correct"."""
    return "images" if subset == ALL else subset.replace("_", "-")


def percent(fraction: float | None) -> str:
    """One decimal, without the sign: ``97.5``."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def render(report: Report) -> RenderableType:
    """The report as something rich can print: a table per block, then how to read it, then the notes."""
    arranged = blocks(report)
    parts: list[RenderableType] = [Text(report.title, style="bold"), Text()]
    parts += card.render(report, threat_name)
    for block in arranged:
        parts += [_heading(block), Text(), _table(block), Text()]
    parts += noise.render(report)
    legend: list[str] = list(LEGEND)
    if any(BASE_CORRECT in block.subsets for block in arranged):
        legend.append("Base-correct: the images that the base run classifies correctly before any attack.")
    legend += explained_terms(arranged)
    parts += [Text(line, style="dim") for line in legend]
    parts += [Text(f"Note: {note}") for note in report.notes]
    return Group(*parts)


def print_report(report: Report, console: Console) -> None:
    """Print the table.  A pipe or a file has no width of its own and gets as many columns as the table needs."""
    width = console.width
    try:
        if not console.is_terminal:
            console.width = max(WIDTH, width)
        console.print(render(report))
    finally:
        console.width = width


def _blocks_of(run: str, split: str, defense: str, every_row: Sequence[Row]) -> list[Block]:
    rows = [row for row in every_row if (row["run"], row["split"], row["defense"]) == (run, split, defense)]
    clean = {row["subset"]: row for row in rows if row["attack"] == CLEAN}
    attacked = [row for row in rows if row["attack"] != CLEAN]
    robust = [row for row in attacked if is_robust_accuracy(row)]
    transfer = [row for row in attacked if not is_robust_accuracy(row)]
    columns = list(dict.fromkeys((row["made_on"], _terms(row)) for row in transfer)) or [(None, "")]
    arranged = []
    for source, terms in columns:
        lines = _lines(robust, [row for row in transfer if (row["made_on"], _terms(row)) == (source, terms)])
        shown = {ALL, *(subset for line in lines for subset in line.transfer)}
        clean_shown = {subset: row for subset, row in clean.items() if subset in shown}
        arranged.append(Block(run, split, defense, source, terms, clean_shown, lines))
    return arranged


def _terms(row: Row) -> str:
    unusual = {"faithful": row["protocol"] == "faithful", "predicted labels": row["labels"] == "predicted"}
    return ", ".join(word for word, applies in unusual.items() if applies)


def _lines(robust: Sequence[Row], transfer: Sequence[Row]) -> list[Line]:
    several_seeds = len({row["seed"] for row in (*robust, *transfer)}) > 1
    lines: dict[tuple, Line] = {}
    for row in (*transfer, *robust):
        name = _attack_name(row, several_seeds)
        threat = threat_name(row["norm"], row["epsilon"])
        line = lines.setdefault((name, threat), Line(name, threat, {}, None))
        if not is_robust_accuracy(row):
            line.transfer[row["subset"]] = row
        elif row["subset"] == ALL:
            lines[name, threat] = line._replace(robust=row)
    return _with_sizes(list(lines.values()))


def _with_sizes(lines: list[Line]) -> list[Line]:
    """Say in the name how many images an attack was given, if that is not the same for all."""
    counts = [[row["n"] for row in (line.transfer.get(ALL), line.robust) if row] for line in lines]
    if len({n for line in counts for n in line}) < 2:
        return lines
    sizes = [" and ".join(str(n) for n in dict.fromkeys(line)) for line in counts]
    return [line._replace(attack=f"{line.attack}, {n} images") for line, n in zip(lines, sizes, strict=True)]


def _attack_name(row: Row, with_seed: bool) -> str:
    unusual = {
        row["attack"]: True,
        # Those of a transfer result stand over its column.
        _terms(row): is_robust_accuracy(row) and bool(_terms(row)),
        f"EOT {row['eot_samples']}": row["eot_samples"] > 1,
        f"seed {row['seed']}": with_seed,
    }
    return ", ".join(word for word, applies in unusual.items() if applies)


def _heading(block: Block) -> Text:
    text = Text.assemble((block.name, "bold"), f"  {block.split} split")
    for subset, row in block.clean.items():
        interval = f"[{percent(row['low'])}, {percent(row['high'])}] ±{percent(row['sd_fifths'])}"
        text.append(f"\nclean accuracy {percent(row['accuracy'])} % {interval}, {row['n']} {subset_name(subset)}")
    if block.terms:
        text.append(f"\n{block.column}")
    return text


def _table(block: Block) -> RenderableType:
    if not block.lines:
        return Text()
    table = plain_table("attack", "threat")
    for subset in block.subsets:
        kind = f"{block.kind} from {block.source}" if block.kind else "predicted labels"
        title = f"{kind}, %\n{block.sizes[subset]} {subset_name(subset)}"
        table.add_column(Text(title), justify="right", overflow="fold")
    table.add_column("robust accuracy, %\nadaptive", justify="right", style="bold", overflow="fold")
    for line in block.lines:
        transferred = [_cell(line.transfer.get(subset), spread=True) for subset in block.subsets]
        cells = [line.attack, line.threat, *transferred, _cell(line.robust, spread=False)]
        # As Text: a name in brackets is a name, not markup.
        table.add_row(*map(Text, cells))
    if not block.is_unmeasured:
        return table
    warning = f"No attack was made on {block.name} itself: nothing here says that it is robust."
    return Group(table, Text(warning, style="bold"))


def _cell(row: Row | None, spread: bool) -> str:
    if row is None:
        return "not measured"
    text = f"{percent(row['accuracy'])} [{percent(row['low']):>4},{percent(row['high']):>5}]"
    return f"{text} ±{percent(row['sd_fifths']):<4}" if spread else text
