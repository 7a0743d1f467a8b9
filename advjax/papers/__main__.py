"""``python -m advjax.papers``: the published numbers of the five papers, and those of evaluated folders beside them.

    python -m advjax.papers --list
    python -m advjax.papers --table=003_table1
    python -m advjax.papers --workdir=workdirs/cifar_fixer,workdirs/cifar_denoising --csv=beside.csv

Exit codes: 0 done, 2 a mistake that the one printed line explains.
"""

import argparse
import collections
import json
import pathlib
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from advjax.evaluation.report import read_report
from advjax.papers import show
from advjax.papers.join import Pair, applicable, join
from advjax.types import UserError

WIDTH = 140
"""Columns that are taken where there is no terminal to ask; less wraps lines."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = _Parser("python -m advjax.papers", description=__doc__, allow_abbrev=False)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--workdir", help="folders with a report.json, with commas between them")
    made.add_argument("--config", help="config file whose `published` is taken, not that of the reports")
    made.add_argument("--csv", type=pathlib.Path, help="file to write what is printed for the folders to")
    made.add_argument("--table", help="print one published table")
    made.add_argument("--list", action="store_true", help="print the names of the published tables")
    return made


def main(arguments: Sequence[str]) -> int:
    """Prints what the flags ask for; returns the exit code."""
    try:
        _run(parser().parse_args(arguments))
    except (UserError, OSError) as error:
        line = " ".join(str(error).split())
        Console(stderr=True, highlight=False).print(f"error: {line}", style="red", markup=False, soft_wrap=True)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if sum(map(bool, (options.workdir, options.table, options.list))) != 1:
        raise UserError("give one of --workdir=FOLDER, --table=NAME and --list")
    if (options.csv or options.config) and not options.workdir:
        raise UserError("--csv and --config need --workdir=FOLDER")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(WIDTH, console.width)
    if options.list:
        console.print(show.listing())
    elif options.table:
        console.print(show.published_table(options.table))
    else:
        _print_beside(options, console)


def _print_beside(options: argparse.Namespace, console: Console) -> None:
    found = {folder: _pairs(folder, options.config) for folder in options.workdir.split(",")}
    for folder, (pairs, left_out) in found.items():
        console.print(Text(folder, style="bold"), show.beside(pairs), sep="\n")
        for reason, number in collections.Counter(left_out).items():
            console.print(Text(f"left out: {number} published for something else, as {reason}", style="dim"))
    if options.csv:
        options.csv.write_text(show.as_csv({folder: pairs for folder, (pairs, _) in found.items()}), encoding="utf-8")


def _pairs(folder: str, config: str | None) -> tuple[list[Pair], list[str]]:
    """What is published beside what was measured in a folder, and why something was left out."""
    report = read_report(pathlib.Path(folder, "report.json"))
    source = report.config if config is None else _published(config)
    specs = source.get("published", ())
    if not specs:
        raise UserError(f"the config of {config or folder} has nothing in `published`; name another by --config=FILE")
    held, left_out = applicable(specs, report.config, source.get("published_for", {}))
    pairs = join(report.rows, held)
    if not any(pair.ours for pair in pairs):
        reason = left_out[0] if not pairs else f"no row for {pairs[0].model} under {pairs[0].attack}, nor for others"
        raise UserError(f"{folder} has nothing to put beside what is published: {reason}")
    return pairs, left_out


def _published(path: str) -> Mapping[str, Any]:
    """A config file's experiment, in plain data."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"no config file at {path}")
    return json.loads(runpy.run_path(path)["get_config"]().to_json())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
