"""How the rows of a report are arranged; terminal tables, page and plots all show this arrangement.

A `Block` is one model, a `Line` in it one attack, and an `AttackSource` a group of columns beside robust accuracy.
Transfer results and robust accuracies never share a column, and neither shares one with the distances of minimum-norm
attacks: `blocks` sorts every row by `is_on_itself` and `is_robust_accuracy`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from advjax.evaluation.attacker_knowledge import NOTHING
from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.report import ALL, Report, Row, is_on_itself, is_robust_accuracy
from advjax.evaluation.summaries import WORST_CASE
from advjax.reporting import legend
from advjax.reporting.formatting import distance_text, model_name, threat_name


class Line(NamedTuple):
    """One attack on one model."""

    attack: str
    """Its name, followed by whatever is unusual about it: faithful protocol, number of EOT draws, seed."""
    threat: str
    """Norm and epsilon, such as "linf 8/255"."""
    transfer: tuple[dict[str, Row], ...]
    """For each source of the block: subset -> accuracy on images crafted there; empty if there are none."""
    robust: Row | None
    """Robust accuracy on all images; None if it was not measured."""
    minimum: Row | None = None
    """Result of a minimum-norm attack on the scored model itself, on all images."""

    @property
    def median(self) -> str:
        """Median distance of the minimum-norm attack, formatted."""
        return distance_text(self.minimum)


class AttackSource(NamedTuple):
    """Where attacks that do not measure robust accuracy were crafted, and how."""

    made_on: str
    """The run they were crafted on, without any defense."""
    kind: str
    """ "transfer" or "oblivious"; "" for an attack on the scored model itself that was given predicted labels."""
    terms: str
    """What is unusual about them, such as "faithful, predicted labels"; usually ""."""
    sizes: dict[str, str]
    """Subset -> number of images; a range such as "200–1000" if the attacks differ in it."""

    @property
    def heading(self) -> str:
        """Heading of the columns with these results."""
        crafted = f"{self.kind.capitalize()}, crafted on" if self.kind else "Crafted on"
        crafted += f" {self.made_on}"
        if self.kind == "oblivious":
            crafted += " without its defense"
        return f"{crafted} ({self.terms})" if self.terms else crafted


class Block(NamedTuple):
    """One model, that is, a run with or without a defense, under every attack it was scored on."""

    run: str
    split: str
    defense: str
    draws: int
    """EOT draws per gradient or query of the adaptive attacks, unless a line states otherwise; 1 if deterministic."""
    clean: dict[str, Row]
    """Subset -> clean accuracy, for "all" and the subsets of the sources."""
    sources: tuple[AttackSource, ...]
    lines: list[Line]

    @property
    def name(self) -> str:
        return model_name(self.run, self.defense)

    @property
    def adaptive(self) -> str:
        """How the attacks on the scored model itself were made."""
        return "adaptive" + (f", {self.draws} draws" if self.draws > 1 else "")

    @property
    def is_unmeasured(self) -> bool:
        """Whether attacks were only transferred to this model and none was crafted on it."""
        return bool(self.lines) and all(line.robust is None and line.minimum is None for line in self.lines)

    @property
    def has_minimum(self) -> bool:
        """Whether a minimum-norm attack was made on the scored model itself."""
        return any(line.minimum for line in self.lines)


def blocks(report: Report) -> list[Block]:
    """Arranges the rows of a report, in their order: one block per run and defense, one line per attack.

    Random noise is not an attack and has a table of its own (`noise_table`).
    """
    rows = [row for row in report.rows if row["knowledge"] != NOTHING]
    models = dict.fromkeys((row["run"], row["split"], row["defense"]) for row in rows)
    return [_block(*model, rows) for model in models]


def sources(arranged: Sequence[Block]) -> list[AttackSource]:
    """The attack sources of all blocks."""
    return [source for block in arranged for source in block.sources]


def explained_terms(arranged: Sequence[Block]) -> list[str]:
    """Explanations of the terms that occur in the headings of the sources."""
    return [text for term, text in legend.TERMS.items() if any(term in source.terms for source in sources(arranged))]


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
        AttackSource(made_on, _kind(made_on, run, defense), terms, _sizes([line.transfer[number] for line in lines]))
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
    return _with_sizes(sorted(lines.values(), key=lambda line: line.attack != WORST_CASE))


def _with_sizes(lines: list[Line]) -> list[Line]:
    """Appends the number of attacked images to the attack's name unless it is the same everywhere."""
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
        # Those of a transfer result are in the heading of its columns.
        _terms(row): is_on_itself(row) and bool(_terms(row)),
        f"{samples} draws": is_on_itself(row) and samples != draws and row["attack"] != WORST_CASE,
        f"seed {row['seed']}": with_seed,
    }
    return ", ".join(word for word, applies in unusual.items() if applies)
