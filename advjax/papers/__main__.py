"""Reproduces the tables and figures of the five papers, and prints their published results.

    python -m advjax.papers list
    python -m advjax.papers run 003_table1 --workdir=workdirs/papers --scale=small --budget=90m
    python -m advjax.papers run all --budget=8h
    python -m advjax.papers status

    python -m advjax.papers --list
    python -m advjax.papers --table=003_table1
    python -m advjax.papers --workdir=workdirs/cifar_fixer,workdirs/cifar_denoising --csv=comparison.csv
    python -m advjax.papers --workdir=workdirs/mine --config=cifar_fixer

Exit codes: 0 on success; 2 on a user error, which is explained in one line; 42 if the budget or a signal stopped
``run``, which the same command resumes.
"""

import argparse
import collections
import pathlib
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from advjax.evaluation.report import read_report
from advjax.experiment.config_flag import config_file
from advjax.experiment.from_config import plain
from advjax.papers import commands, output
from advjax.papers.join import Pair, applicable, join
from advjax.runtime.files import write_atomically
from advjax.types import UserError

WIDTH = 140
"""Columns of output that does not go to a terminal."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def command_parser() -> argparse.ArgumentParser:
    """The command line of ``run``, ``list`` and ``status``."""
    made = _Parser("python -m advjax.papers", allow_abbrev=False)
    commands.add_commands(made)
    return made


def parser() -> argparse.ArgumentParser:
    """The command line without one of these commands."""
    made = _Parser("python -m advjax.papers", description=__doc__, allow_abbrev=False)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--workdir", help="comma-separated folders that contain a report.json")
    made.add_argument(
        "--config",
        help="config to take `published` from instead of the reports: a file, or the name of an installed one",
    )
    made.add_argument("--csv", type=pathlib.Path, help="file to write the comparison to as well")
    made.add_argument("--table", help="print one published table")
    made.add_argument("--list", action="store_true", help="list the published tables")
    return made


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    try:
        if arguments and not arguments[0].startswith("-"):
            return commands.run_command(command_parser().parse_intermixed_args(arguments), _console())
        _run(parser().parse_args(arguments))
    except (UserError, OSError) as error:
        line = " ".join(str(error).split())
        Console(stderr=True, highlight=False).print(f"error: {line}", style="red", markup=False, soft_wrap=True)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if sum(map(bool, (options.workdir, options.table, options.list))) != 1:
        raise UserError("give exactly one of --workdir=FOLDER, --table=NAME and --list")
    if (options.csv or options.config) and not options.workdir:
        raise UserError("--csv and --config require --workdir=FOLDER")
    console = _console()
    if options.list:
        console.print(output.listing())
    elif options.table:
        console.print(output.published_table(options.table))
    else:
        _print_comparison(options, console)


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(WIDTH, console.width)
    return console


def _print_comparison(options: argparse.Namespace, console: Console) -> None:
    compared = {folder: _pairs(folder, options.config) for folder in options.workdir.split(",")}
    for folder, (pairs, omitted) in compared.items():
        console.print(Text(folder, style="bold"), output.comparison(pairs), sep="\n")
        for reason, number in collections.Counter(omitted).items():
            console.print(Text(f"omitted: {number} published for a different experiment: {reason}", style="dim"))
    if options.csv:
        text = output.as_csv({folder: pairs for folder, (pairs, _) in compared.items()})
        write_atomically(options.csv, text.encode())


def _pairs(folder: str, config: str | None) -> tuple[list[Pair], list[str]]:
    """The published numbers next to those of a workdir, and the reasons for omitting the others."""
    report = read_report(pathlib.Path(folder, "report.json"))
    source = report.config if config is None else _published(config)
    specs = source.get("published", ())
    if not specs:
        raise UserError(f"{config or folder} has no `published` entries in its config; name another with --config=FILE")
    held, omitted = applicable(specs, report.config, source.get("published_for", {}))
    pairs = join(report.rows, held)
    if not any(pair.ours for pair in pairs):
        reason = (
            omitted[0] if not pairs else f"no row for {pairs[0].model} under {pairs[0].attack}, nor for other entries"
        )
        raise UserError(f"{folder} has no results to compare with published numbers: {reason}")
    return pairs, omitted


def _published(config: str) -> Mapping[str, Any]:
    """The experiment of a config, given as for ``--config`` of ``advjax.main``, as plain data."""
    name, _, argument = config.partition(":")
    get_config = runpy.run_path(str(config_file(name)))["get_config"]
    return plain(get_config(argument) if argument else get_config())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
