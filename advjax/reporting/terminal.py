"""The report as a table for the terminal, and the arrangement (runs, lines, columns) that table, plot and page share.

A transfer result and a robust accuracy never share a column, nor does either with what a minimum-norm attack found:
`blocks` sorts every row by `is_on_itself` and `is_robust_accuracy`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.text import Text

from advjax.evaluation.attacker_knowledge import NOTHING
from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.report import ALL, BASE_CORRECT, Report, Row, is_on_itself, is_robust_accuracy
from advjax.evaluation.summaries import WORST_CASE
from advjax.reporting import noise_table, summary
from advjax.reporting.plain_table import plain_table

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


MINIMUM = (
    "Median distance: of an attack that looks for the smallest perturbation, made on the model itself; the size that "
    "is enough for half of the images, where those that are wrong without any count as 0."
)


class Line(NamedTuple):
    """One attack on one model."""

    attack: str
    """Name and whatever is unusual about it: faithful protocol of a robust accuracy, more draws, seed."""
    threat: str
    """Norm and epsilon, such as "linf 8/255"."""
    transfer: tuple[dict[str, Row], ...]
    """For each of the block's sources: subset -> accuracy on images made there; empty if there is none."""
    robust: Row | None
    """Accuracy on all images attacked on the scored model itself; None if that was not measured."""
    minimum: Row | None = None
    """What a minimum-norm attack on the scored model itself found, on all images."""

    @property
    def median(self) -> str:
        """The median distance, for people."""
        return distance(self.minimum)


class Source(NamedTuple):
    """Where attacks come from that are no robust accuracy, and how they were made."""

    made_on: str
    """The run they were made on, without any defence."""
    kind: str
    """ "transfer" or "oblivious"; "" for an attack on the model itself that is no robust accuracy."""
    terms: str
    """What is unusual about how they were made, such as "faithful, predicted labels"; usually ""."""
    sizes: dict[str, str]
    """Subset -> number of images; "200–1000" if the attacks differ in it."""

    @property
    def column(self) -> str:
        """What the numbers beside robust accuracy are, for the head of their column."""
        made = f"{self.kind.capitalize()}, attack made on" if self.kind else "Attack made on"
        made += f" {self.made_on}"
        if self.kind == "oblivious":
            made += " without its defence"
        return f"{made} ({self.terms})" if self.terms else made


class Block(NamedTuple):
    """One run (with its defence): every attack that it has seen."""

    run: str
    split: str
    defense: str
    draws: int
    """Of a stochastic model, for each question of an attack on the model itself, where its line says nothing else."""
    clean: dict[str, Row]
    """Subset -> accuracy without attack; the subsets are those of the sources, at least "all"."""
    sources: tuple[Source, ...]
    lines: list[Line]

    @property
    def name(self) -> str:
        return summary.model_name(self.run, self.defense)

    @property
    def adaptive(self) -> str:
        """How the attacks on the model itself were made."""
        return "adaptive" + (f", {self.draws} draws" if self.draws > 1 else "")

    @property
    def is_unmeasured(self) -> bool:
        """Attacks were transferred to this run, but none was made on it."""
        return bool(self.lines) and all(line.robust is None and line.minimum is None for line in self.lines)

    @property
    def has_minimum(self) -> bool:
        """Whether a minimum-norm attack was made on the model itself."""
        return any(line.minimum for line in self.lines)


def blocks(report: Report) -> list[Block]:
    """Arrange the rows, in their order: a block per run and defence, a line per attack.

    Noise is no attack, and has a table of its own (``noise``).
    """
    rows = [row for row in report.rows if row["knowledge"] != NOTHING]
    models = dict.fromkeys((row["run"], row["split"], row["defense"]) for row in rows)
    return [_block(*model, rows) for model in models]


def explained_terms(arranged: Sequence[Block]) -> list[str]:
    """What the words of ``Block.terms`` mean, for those that occur."""
    return [text for term, text in TERMS.items() if any(term in source.terms for source in sources(arranged))]


def sources(arranged: Sequence[Block]) -> list[Source]:
    """Those of all blocks."""
    return [source for block in arranged for source in block.sources]


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


def distance(row: Row | None) -> str:
    """The median distance with three digits; "" without such an attack, "–" if most images stay right."""
    if row is None:
        return ""
    median = row.get("median_distance")
    return "–" if median is None else f"{median:.3g}"


def render(report: Report) -> RenderableType:
    """The report as something rich can print: a table per block and source, how to read it, and the notes."""
    arranged = blocks(report)
    parts: list[RenderableType] = [Text(report.title, style="bold"), Text()]
    parts += summary.render(report, threat_name)
    for block in arranged:
        parts += [_heading(block), Text()]
        # Beside each other, the columns of several sources would be wider than most terminals.
        for number in range(max(1, len(block.sources))):
            parts += [_table(block, number), Text()]
        if block.is_unmeasured:
            warning = f"No attack was made on {block.name} itself: nothing here says that it is robust."
            parts += [Text(warning, style="bold"), Text()]
    parts += noise_table.render(report)
    legend: list[str] = list(LEGEND)
    if any(BASE_CORRECT in source.sizes for source in sources(arranged)):
        legend.append("Base-correct: the images that the base run classifies correctly before any attack.")
    if any(block.has_minimum for block in arranged):
        legend.append(MINIMUM)
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


def _block(run: str, split: str, defense: str, every_row: Sequence[Row]) -> Block:
    rows = [row for row in every_row if (row["run"], row["split"], row["defense"]) == (run, split, defense)]
    clean = {row["subset"]: row for row in rows if row["attack"] == CLEAN}
    attacked = [row for row in rows if row["attack"] != CLEAN]
    own = [row for row in attacked if is_on_itself(row)]
    transfer = [row for row in attacked if not is_on_itself(row)]
    origins = list(dict.fromkeys(map(_origin, transfer)))
    draws = min((row["eot_samples"] for row in own), default=1)
    lines = _lines(own, transfer, origins, draws)
    found = tuple(
        Source(made_on, _kind(made_on, run, defense), terms, _sizes([line.transfer[number] for line in lines]))
        for number, (made_on, terms) in enumerate(origins)
    )
    shown = {ALL, *(subset for source in found for subset in source.sizes)}
    clean_shown = {subset: row for subset, row in clean.items() if subset in shown}
    return Block(run, split, defense, draws, clean_shown, found, lines)


def _kind(made_on: str, run: str, defense: str) -> str:
    if made_on != run:
        return "transfer"
    return "" if defense == "none" else "oblivious"


def _sizes(cells: Sequence[dict[str, Row]]) -> dict[str, str]:
    counts: dict[str, set[int]] = {}
    for cell in cells:
        for subset, row in cell.items():
            counts.setdefault(subset, set()).add(row["n"])
    return {subset: "–".join(str(n) for n in sorted({min(found), max(found)})) for subset, found in counts.items()}


def _origin(row: Row) -> tuple[str, str]:
    return str(row["made_on"]), _terms(row)


def _terms(row: Row) -> str:
    unusual = {"faithful": row["protocol"] == "faithful", "predicted labels": row["labels"] == "predicted"}
    return ", ".join(word for word, applies in unusual.items() if applies)


def _lines(own: Sequence[Row], transfer: Sequence[Row], origins: Sequence[tuple[str, str]], draws: int) -> list[Line]:
    several_seeds = len({row["seed"] for row in (*own, *transfer)}) > 1
    lines: dict[tuple[str, str], Line] = {}
    for row in (*transfer, *own):
        key = _attack_name(row, several_seeds, draws), threat_name(row["norm"], row["epsilon"])
        line = lines.setdefault(key, Line(*key, tuple({} for _ in origins), None))
        if not is_on_itself(row):
            line.transfer[origins.index(_origin(row))][row["subset"]] = row
        elif row["subset"] == ALL:
            lines[key] = line._replace(robust=row) if is_robust_accuracy(row) else line._replace(minimum=row)
    return _with_sizes(list(lines.values()))


def _with_sizes(lines: list[Line]) -> list[Line]:
    """Say in the name how many images an attack was given, if that is not the same for all."""
    cells = [(*(cell.get(ALL) for cell in line.transfer), line.robust, line.minimum) for line in lines]
    counts = [[row["n"] for row in found if row] for found in cells]
    if len({n for line in counts for n in line}) < 2:
        return lines
    sizes = [" and ".join(str(n) for n in dict.fromkeys(line)) for line in counts]
    return [line._replace(attack=f"{line.attack}, {n} images") for line, n in zip(lines, sizes, strict=True)]


def _attack_name(row: Row, with_seed: bool, draws: int) -> str:
    samples = row["eot_samples"]
    unusual = {
        row["attack"]: True,
        # Those of a transfer result stand over its column.
        _terms(row): is_on_itself(row) and bool(_terms(row)),
        f"{samples} draws": is_on_itself(row) and samples != draws and row["attack"] != WORST_CASE,
        f"seed {row['seed']}": with_seed,
    }
    return ", ".join(word for word, applies in unusual.items() if applies)


def _heading(block: Block) -> Text:
    text = Text.assemble((block.name, "bold"), f"  {block.split} split")
    for subset, row in block.clean.items():
        interval = f"[{percent(row['low'])}, {percent(row['high'])}] ±{percent(row['sd_fifths'])}"
        text.append(f"\nclean accuracy {percent(row['accuracy'])} % {interval}, {row['n']} {subset_name(subset)}")
    return text


def _table(block: Block, number: int) -> RenderableType:
    """Robust accuracy beside what comes from one of the sources, if there is any."""
    if not block.lines:
        return Text()
    table = plain_table("attack", "threat")
    source = block.sources[number] if block.sources else None
    kind, sizes = (source.kind or "predicted labels", source.sizes) if source else ("", {})
    for subset, size in sizes.items():
        title = f"{kind}, %\n{size} {subset_name(subset)}"
        table.add_column(Text(title), justify="right", overflow="fold")
    table.add_column(f"robust accuracy, %\n{block.adaptive}", justify="right", style="bold", overflow="fold")
    if block.has_minimum:
        table.add_column("median\ndistance", justify="right")
    for line in block.lines:
        shown = [_cell(line.transfer[number].get(subset), spread=True) for subset in sizes]
        robust = "" if line.minimum else _cell(line.robust, spread=False)
        cells = [line.attack, line.threat, *shown, robust, *([line.median] if block.has_minimum else [])]
        # As Text: a name in brackets is a name, not markup.
        table.add_row(*map(Text, cells))
    return Group(Text(source.column), table) if source else table


def _cell(row: Row | None, spread: bool) -> str:
    if row is None:
        return "–" if spread else "not measured"
    text = f"{percent(row['accuracy'])} [{percent(row['low']):>4},{percent(row['high']):>5}]"
    return f"{text} ±{percent(row['sd_fifths']):<4}" if spread else text
