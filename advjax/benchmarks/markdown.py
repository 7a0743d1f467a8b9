"""Puts the tables of measured numbers into pages of the documentation.

    python -m advjax.benchmarks.markdown targets.json docs/benchmarks.md README.md

replaces what stands between ``<!-- benchmark: NAME -->`` and ``<!-- end of benchmark -->`` by the table of that name.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advjax.benchmarks import reports, target_table
from advjax.benchmarks.command_line import run_command
from advjax.benchmarks.results import SUBJECT, Measurement
from advjax.runtime.files import write_atomically
from advjax.types import UserError

PLACE = re.compile(r"(<!-- benchmark: ([\w-]+) -->\n)(.*?)(<!-- end of benchmark -->)", re.DOTALL)
CLAIMS = ("autopgd-100-256", "resnet9-pgd", "preact-train")
"""The rows of the target table that the README shows."""
Steps = Mapping[str, Mapping[str, Any]]
"""The report of each step that has been measured."""


def fill(text: str, report: Mapping[str, Any]) -> str:
    """A page with its tables replaced.

    Raises:
      UserError: a place has a name that there is no table of, or the report is a rehearsal.
    """
    if report.get("settings", {}).get("tiny"):
        raise UserError("the report is of a rehearsal (--tiny), whose numbers mean nothing")
    steps = {name: step["result"] for name, step in report["steps"].items() if step["result"] is not None}

    def table(match: re.Match[str]) -> str:
        begin, name, _, end = match.groups()
        if name not in TABLES:
            raise UserError(f"there is no table {name}; the names are {', '.join(TABLES)}")
        return f"{begin}{TABLES[name](steps)}\n{end}"

    return PLACE.sub(table, text)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def targets(steps: Steps) -> str:
    """Every row of the target table."""
    rows = [target_table.cells(row) for row in target_table.rows(steps)]
    return _table(("time / time of the fastest other library", "target", "measured", "", "times"), rows)


def claims(steps: Steps) -> str:
    """The rows for the README."""
    chosen = [row for row in target_table.rows(steps) if row["name"] in CLAIMS]
    rows = [(what, measured, times) for what, _, measured, _, times in map(target_table.cells, chosen)]
    return _table(("", "time / fastest other library", "times"), rows)


def speeds(steps: Steps) -> str:
    """Images per second of every contender in every step that has such numbers, but those of ``every-attack``."""
    measured = [
        (_network(step), row)
        for name, step in steps.items()
        if name != "every-attack"
        for row in map(Measurement.from_json, step.get("rows", ()))
        if "network" in step
    ]
    contenders = list(dict.fromkeys(row.contender for _, row in measured))
    lines: dict[tuple[str, str, int], dict[str, str]] = {}
    for network, row in measured:
        key = network, row.task, row.examples
        lines.setdefault(key, {})[row.contender] = f"{row.examples_per_second:.4g}"
    cells = [
        (f"{network}, {count} images", task, *(line.get(name, "") for name in contenders))
        for (network, task, count), line in lines.items()
    ]
    return _table(("network", "images per second", *contenders), cells)


def _network(step: Mapping[str, Any]) -> str:
    """The network of a step, and the file of its weights if they were not random: other weights, other work."""
    weights = step.get("settings", {}).get("weights")
    return step["network"]["name"] + (f" ({pathlib.Path(weights).name})" if weights else "")


def calls(steps: Steps) -> str:
    """First and second calls in processes of their own."""
    rows = []
    for name, step in steps.items():
        for row in step.get("rows", ()):
            if (processes := row.get("processes")) is not None:
                cold, warm = processes["cold"]["calls"], processes.get("warm", {}).get("calls")
                times = (_call(cold[0]), _call(warm[0]) if warm else "", _call(cold[1]))
                rows.append((f"{row['task']} ({name})", row["contender"], *times))
    return _table(("seconds (of these, compilation)", "", "first", "first, cache filled", "second"), rows)


def _call(call: Mapping[str, float]) -> str:
    return f"{call['seconds']:.2f} ({call['compile_seconds']:.2f})"


def every_attack(steps: Steps) -> str:
    """Images per second and memory of every attack of advjax."""
    rows = [Measurement.from_json(row) for row in steps.get("every-attack", {}).get("rows", ())]
    cells = [
        (f"`{row.task}`", f"{row.examples_per_second:.4g}", f"{row.compile_seconds:.1f}")
        for row in rows
        if row.contender == SUBJECT
    ]
    return _table(("attack", "images per second", "seconds of compilation"), cells)


def measured_on(report: Mapping[str, Any]) -> str:
    """Day, machine and versions of a report."""
    machine, versions = report["machine"], report["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    return f"{report['date'][:10]}, {machine['processor']}, Python {machine['python']}, {packages}"


def provenance(steps: Steps) -> str:
    """When, on what and with which versions."""
    lines = dict.fromkeys(measured_on(step) for step in steps.values() if "machine" in step)
    return "\n".join(f"* {line}" for line in lines) or "Not measured."


TABLES: dict[str, Callable[[Steps], str]] = {
    **{"targets": targets, "claims": claims, "speeds": speeds, "calls": calls, "every-attack": every_attack},
    "provenance": provenance,
}


def main(arguments: Sequence[str]) -> None:
    """Fills the pages."""
    parser = argparse.ArgumentParser("python -m advjax.benchmarks.markdown", description=__doc__)
    parser.add_argument("report", type=pathlib.Path, help="the JSON file of targets or of accelerator")
    parser.add_argument("pages", type=pathlib.Path, nargs="+", help="Markdown files")
    options = parser.parse_args(arguments)
    report = reports.read(options.report)
    for page in options.pages:
        write_atomically(page, fill(page.read_text(), report).encode())


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
