"""Published numbers as terminal tables, alone or next to ours, and the comparison as CSV."""

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from advjax.evaluation.report import ALL
from advjax.papers.join import Accuracy, Pair
from advjax.papers.published import PAPERS, PROVENANCES, TABLES, Published, read
from advjax.reporting.plain_table import plain_table

EXPLANATION = (
    "Difference: ours minus published, in percentage points. [low, high]: 95% Wilson interval, which captures "
    "variability across test images, not across training seeds. Transfer, oblivious: the attack was not crafted on the "
    "scored model, so the number is not robust accuracy. Adaptive: crafted on the scored model itself with its defense "
    "in the loop; with predicted labels, this is not robust accuracy either."
)
CSV_COLUMNS = (
    *("workdir", "table", "published_model", "published_dataset", "published_training", "published_attack"),
    *("published", "published_low", "published_high", "published_n", "provenance", "note"),
    *("model", "attack", "subset", "kind", "ours", "low", "high", "n", "difference", "overlap"),
)
"""Columns of the CSV file."""


def title(table: str) -> str:
    """The paper and the contents of a table."""
    paper = table.split("_")[0]
    return f"Paper {paper} ({PAPERS[paper]}), {TABLES[table]}"


def listing() -> RenderableType:
    """The list of all published tables."""
    table = plain_table("table", "numbers", "contents", numbers=("numbers",))
    for name in TABLES:
        table.add_row(Text(name), Text(str(len(read(name)))), Text(title(name)))
    return table


def published_table(name: str) -> RenderableType:
    """One table as it was published."""
    rows = read(name)
    cells = [dict(zip(_TABLE_COLUMNS, _published_cells(entry), strict=True)) for entry in rows]
    common = [head for head in _TABLE_COLUMNS if len({line[head] for line in cells}) == 1]
    table = plain_table(*(head for head in _TABLE_COLUMNS if head not in common), numbers=("value", "n"))
    for line in cells:
        table.add_row(*(Text(text) for head, text in line.items() if head not in common))
    # Values shared by all rows are printed once.
    said = ", ".join(f"{head} {cells[0][head]}" for head in common if cells[0][head])
    origins = [f"{origin}: {PROVENANCES[origin]}" for origin in dict.fromkeys(entry.provenance for entry in rows)]
    return Group(Text(title(name), style="bold"), Text(said), table, Text(f"From {'; '.join(origins)}.", style="dim"))


def comparison(pairs: Sequence[Pair]) -> RenderableType:
    """Ours next to published numbers, one table per pair of models."""
    parts: list[RenderableType] = []
    titled = None
    for (name, theirs, ours), group in itertools.groupby(pairs, _models):
        if name != titled:
            parts.append(Text(title(name), style="bold"))
            titled = name
        measured = ("published (%)", "ours (%)", "difference")
        table = plain_table("published attack", "our attack", "kind", *measured, "overlap", numbers=measured)
        notes = []
        for pair in group:
            table.add_row(*map(Text, _cells(pair)))
            if pair.published.note:
                notes.append(Text(f"{pair.published.attack}: {pair.published.note}", style="dim"))
        parts += [Text(f"{theirs}; ours: {ours}"), table, *notes, Text()]
    return Group(*parts, Text(EXPLANATION, style="dim"))


def as_csv(found: Mapping[str, Sequence[Pair]]) -> str:
    """One line per pair, accuracies in percent; unknown values are empty.

    Args:
      found: workdir -> pairs.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([folder, *_fields(pair)] for folder, pairs in found.items() for pair in pairs)
    return text.getvalue()


_TABLE_COLUMNS: tuple[str, ...] = ("model", "data", "training", "attack", "metric", "value", "n", "from", "note")


def _published_cells(entry: Published) -> Iterator[str]:
    yield from (entry.model, entry.dataset, entry.training, entry.attack, entry.metric)
    yield f"{entry.value:g}" if entry.std is None else f"{entry.value:g} ±{entry.std:g}"
    yield from (_text(entry.n), entry.provenance, entry.note)


def _models(pair: Pair) -> tuple[str, str, str]:
    """The table, what was measured there, and what was measured here."""
    published, subset = pair.published, "" if pair.subset == ALL else f", {pair.subset}"
    return published.table, f"{published.model}, {published.training}, {published.dataset}", f"{pair.model}{subset}"


def _cells(pair: Pair) -> Iterator[str]:
    yield from (pair.published.attack, pair.attack, pair.kind, _accuracy(pair.theirs))
    yield "not measured" if pair.ours is None else _accuracy(pair.ours)
    yield "" if pair.difference is None else f"{pair.difference:+.2f}"
    yield {None: "", True: "yes", False: "no"}[pair.overlap]


def _accuracy(accuracy: Accuracy) -> str:
    text = f"{accuracy.value:.2f}"
    if accuracy.interval is not None:
        text += f" [{accuracy.interval[0]:.1f}, {accuracy.interval[1]:.1f}]"
    return text


def _fields(pair: Pair) -> Iterator[str]:
    published = pair.published
    yield from (published.table, published.model, published.dataset, published.training, published.attack)
    yield from numbers(pair.theirs)
    yield from (published.provenance, published.note, pair.model, pair.attack, pair.subset, pair.kind)
    yield from numbers(pair.ours)
    yield "" if pair.difference is None else f"{pair.difference:.2f}"
    yield _text(pair.overlap).lower()


def numbers(accuracy: Accuracy | None) -> list[str]:
    """Accuracy, both ends of its interval, and number of images, as in csv files."""
    if accuracy is None:
        return [""] * 4
    low, high = accuracy.interval or (None, None)
    return [*("" if number is None else f"{number:.2f}" for number in (accuracy.value, low, high)), _text(accuracy.n)]


def _text(value: object) -> str:
    return "" if value is None else str(value)
