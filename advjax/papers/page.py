"""What an entry came to, as ``<workdir>/pages/<entry>.<scale>.*``: csv, json, HTML and Markdown pages, its figure."""

import csv
import io
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from advjax.papers.cells import Cell, cells
from advjax.papers.figures import draw
from advjax.papers.join import Accuracy
from advjax.papers.orderings import FoundLead, Ordering, leads, orderings
from advjax.papers.output import numbers, title
from advjax.papers.published import PROVENANCES
from advjax.papers.recipe import Entry
from advjax.papers.running import STANDARD, Job
from advjax.papers.scale_words import in_words, is_reduced, notes
from advjax.reporting.formatting import breakable
from advjax.runtime.files import plain, write_atomically

EXPLANATION = (
    "Ours under the paper's protocol stands beside the published number; a transfer or oblivious attack, or one that "
    "was given predicted labels, does not measure robust accuracy. The last two columns show the lowest accuracy that "
    "we found: under the same attack, or the one named there, and under AutoAttack, whose norm and epsilon are named "
    "below, made on the scored model itself with the true labels or, if that left less, on the network named there. "
    "Draws are those of a random model that each gradient averages: few of them flatter it. "
    "AutoAttack ends on an image at its first success, which on a random model may be luck that other draws undo. "
    "Beside an attack without an epsilon is the mean size of its perturbations, in its norm, over the images that it "
    "has changed. "
    "Intervals are over test images, and over seeds as well where there are several."
)
CSV_COLUMNS = (
    *("entry", "scale", "table", "published_model", "published_dataset", "published_training", "published_attack"),
    *("published", "published_low", "published_high", "published_n", "provenance", "note"),
    *("model", "attack", "kind", "ours", "low", "high", "n", "seeds", "difference"),
    *("ours_draws", "ours_distance", "ours_norm"),
    *("sound_attack", "sound", "sound_low", "sound_high", "sound_n", "sound_attacked", "sound_draws"),
    *("sound_distance", "sound_norm"),
    *("auto_attack", "auto_attack_low", "auto_attack_high", "auto_attack_n", "auto_attack_attacked"),
    *("auto_attack_draws", "reduced"),
)
"""Columns of the csv file; accuracies in percent, distances in the norm beside them, unknown values empty."""
_NOT_AS_PRINTED = ("text", "corrected", "derived", "figure")


class Page(NamedTuple):
    """What a page shows."""

    entry: Entry
    scale: str
    cells: list[Cell]
    orderings: list[Ordering]
    leads: list[FoundLead]
    words: list[str]
    notes: list[str]
    """What the reports say about their images."""
    remarks: list[str]
    """Caveats about published numbers."""
    is_complete: bool
    """Whether all parts have been run."""
    is_reduced: bool
    """Whether any part is smaller than the paper's experiment."""

    @property
    def stem(self) -> str:
        """Of the names of its files."""
        return f"{self.entry.name}.{self.scale}"


def make_page(entry: Entry, scale: str, jobs: Sequence[Job]) -> Page:
    """The page of an entry, from whatever has been run of its jobs, which are one for each seed and part."""
    found = cells(jobs, entry.tables)
    parts = [jobs[number :: len(entry.parts)] for number in range(len(entry.parts))]
    return Page(
        entry=entry,
        scale=scale,
        cells=found,
        orderings=orderings(found),
        leads=leads(found, entry.leads),
        words=in_words(parts),
        notes=notes(jobs),
        remarks=_remarks(found),
        is_complete=all(job.is_done for job in jobs),
        is_reduced=any(is_reduced(of_seeds[0]) for of_seeds in parts),
    )


def write_page(page: Page, jobs: Sequence[Job], folder: pathlib.Path) -> pathlib.Path:
    """Writes all files of a page and returns the path of the HTML."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw(page.entry.figure, page.cells, jobs) if page.entry.figure else None
    if figure is not None:
        write_atomically(folder / f"{page.stem}.svg", _standalone(figure).encode())
    write_atomically(folder / f"{page.stem}.csv", as_csv(page).encode())
    write_atomically(folder / f"{page.stem}.json", (json.dumps(as_json(page, jobs), indent=1) + "\n").encode())
    for kind in ("md", "html"):
        write_atomically(folder / f"{page.stem}.{kind}", render(page, figure, kind).encode())
    return folder / f"{page.stem}.html"


def as_csv(page: Page) -> str:
    """One line for each cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([page.entry.name, page.scale, *_fields(cell)] for cell in page.cells)
    return text.getvalue()


def as_json(page: Page, jobs: Sequence[Job]) -> dict[str, Any]:
    """The same as plain data, with the size in words and where it was computed."""
    return plain(
        {
            "entry": page.entry.name,
            "title": page.entry.title,
            "scale": page.scale,
            "reduced": page.is_reduced,
            "complete": page.is_complete,
            "note": page.entry.note,
            "size": page.words,
            "notes": page.notes,
            "remarks": page.remarks,
            "environments": _environments(jobs),
            "folders": [job.folder.name for job in jobs],
            "orderings": [{**entry._asdict(), "verdict": entry.verdict} for entry in page.orderings],
            "leads": [
                {**found._asdict(), "published": found.published._asdict(), "verdict": found.verdict}
                for found in page.leads
            ],
            "cells": [_plain_cell(cell) for cell in page.cells],
        },
        "page",
    )


def _remarks(found: Sequence[Cell]) -> list[str]:
    """Where published numbers come from, unless a table or log, and what is to be said of them: once for all alike."""
    numbers: dict[str, list[str]] = {}
    for cell in found:
        published = cell.published
        origin = PROVENANCES[published.provenance] if published.provenance in _NOT_AS_PRINTED else ""
        if cell.theirs and (remark := "; ".join(filter(None, (origin, published.note)))):
            what = ", ".join(filter(None, (published.model, published.training, published.attack)))
            numbers.setdefault(remark, []).append(f"{published.value:g} ({what})")
    everything = sum(cell.theirs is not None for cell in found)
    return [
        f"{'All published numbers' if len(known) == everything > 1 else ', '.join(dict.fromkeys(known))}: {remark}"
        for remark, known in numbers.items()
    ]


def _environments(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Where the reports come from, and which."""
    found: dict[str, dict[str, Any]] = {}
    for job in jobs:
        for report, folder in zip(job.reports(), (job.folder.name, f"{job.folder.name}/{STANDARD}"), strict=True):
            if report:
                known = json.dumps(report.environment, sort_keys=True)
                found.setdefault(known, {**report.environment, "folders": []})["folders"].append(folder)
    return list(found.values())


def render(page: Page, figure: str | None, kind: str) -> str:
    """The page as text, of the kind "html", or "md", which names its figure as a file beside it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("advjax.reporting", "templates"),
        autoescape=kind == "html",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = breakable
    plan = page.entry.figure
    measured = sum(cell.ours is not None for cell in page.cells)
    count = f" · {measured} of {len(page.cells)} cells measured" if page.cells else ""
    tables = f"{'; '.join(map(title, page.entry.tables))} · " if page.entry.tables else ""
    state = "" if page.is_complete else ", not all parts have been run"
    return environment.get_template(f"paper.{kind}.j2").render(
        title=page.entry.title,
        lead=f"{tables}scale {page.scale}{count}{state}",
        is_reduced=page.is_reduced,
        explanation=EXPLANATION,
        note=page.entry.note,
        words=page.words,
        notes=page.notes,
        remarks=page.remarks,
        orderings=page.orderings,
        leads=page.leads,
        figures=[{"caption": plan.caption, "svg": Markup(figure)}] if plan and figure else [],
        has_marks=any(cell.theirs for cell in page.cells),
        cells=page.cells,
        stem=page.stem,
    )


def _standalone(svg: str) -> str:
    """An SVG for a page, as a file of its own."""
    return svg if "xmlns=" in svg else svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def _fields(cell: Cell) -> Iterator[str]:
    published = cell.published
    yield from (published.table, published.model, published.dataset, published.training, published.attack)
    yield from numbers(cell.theirs)
    yield from (published.provenance, published.note, cell.model, cell.attack, cell.kind)
    yield from numbers(cell.ours)
    yield " ".join(f"{value:.2f}" for value in cell.per_seed)
    yield "" if cell.difference is None else f"{cell.difference:.2f}"
    yield from (_draws(cell.ours), *_distance(cell.ours))
    yield cell.sound_attack if cell.sound else ""
    yield from (*_lowest(cell.sound), *_distance(cell.sound))
    # AutoAttack has an epsilon.
    yield from _lowest(cell.auto_attack)
    yield "; ".join(cell.reduced)


def _lowest(accuracy: Accuracy | None) -> list[str]:
    return [*numbers(accuracy), accuracy.attacked if accuracy else "", _draws(accuracy)]


def _distance(accuracy: Accuracy | None) -> tuple[str, str]:
    """Mean perturbation size, and its norm."""
    if accuracy is None or accuracy.distance is None:
        return "", ""
    return f"{accuracy.distance:.4g}", accuracy.norm


def _draws(accuracy: Accuracy | None) -> str:
    return str(accuracy.draws) if accuracy and accuracy.draws else ""


def _plain_cell(cell: Cell) -> dict[str, Any]:
    accuracies = {name: getattr(cell, name) for name in ("theirs", "ours", "sound", "auto_attack")}
    return {
        "published": cell.published._asdict(),
        "model": cell.model,
        "attack": cell.attack,
        "kind": cell.kind,
        "sound_attack": cell.sound_attack,
        "difference": cell.difference,
        "per_seed": list(cell.per_seed),
        "reduced": list(cell.reduced),
        **{name: found and found._asdict() for name, found in accuracies.items()},
    }
