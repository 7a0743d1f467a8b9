"""``python -m advjax.papers run|list|status``: the tables and figures of the papers, reproduced, as pages."""

import argparse
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.text import Text

from advjax.attacks.compilation_cache import DEFAULT_FOLDER, use_compilation_cache
from advjax.papers.entries import ENTRIES, find
from advjax.papers.page import make_page, write_page
from advjax.papers.recipe import Entry, full_config
from advjax.papers.running import Job, jobs_of, run_job
from advjax.reporting.plain_table import plain_table
from advjax.runtime.preemption import PREEMPTED, PreemptedError, Preemption
from advjax.types import UserError

COMMANDS = ("run", "list", "status")
_UNITS = {"s": 1, "m": 60, "h": 3600}


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The options of the commands."""
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help="names that `list` prints, or all")
    folder = pathlib.Path("workdirs/papers")
    parser.add_argument("--workdir", type=pathlib.Path, default=folder, help="folder of what is trained, and of pages")
    parser.add_argument("--scale", default="small", help="how large; `list` prints the scales of each entry")
    parser.add_argument("--seeds", type=int, default=1, help="number of training seeds, from 0 on")
    parser.add_argument("--budget", default="", help="stop, resumably, after this long: 90m, 5h")
    parser.add_argument("--folder", default="", help="image folder of entries whose data are one")


def run_command(options: argparse.Namespace, console: Console) -> int:
    """Runs one of the commands and returns its exit code.

    It is 0, ``PREEMPTED`` if it was stopped before its end, or 2 if some of several entries could not be run.

    Raises:
      UserError: an unknown entry or scale, an invalid budget, or a config that makes no sense.
    """
    if options.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {options.seeds}")
    if options.command == "list":
        console.print(_listing(list(map(find, options.entries)) or ENTRIES.values()))
        return 0
    entries = _chosen(options.entries, options.scale, required=options.command == "run")
    _check_folder(entries, options.folder)
    if options.command == "status":
        console.print(_status(entries, options))
        return 0
    if cache := os.environ.get("ADVJAX_COMPILATION_CACHE", DEFAULT_FOLDER):
        use_compilation_cache(cache)
    deadline = time.monotonic() + _seconds(options.budget) if options.budget else float("inf")
    with Preemption() as preemption:
        return _run_all(entries, options, console, lambda: preemption.requested() or time.monotonic() > deadline)


def _run_all(
    entries: Sequence[Entry], options: argparse.Namespace, console: Console, stop_requested: Callable[[], bool]
) -> int:
    """Runs the entries in order; of several, one that cannot be run is reported, and the next one is run."""

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    code = 0
    for entry in entries:
        if stop_requested():
            say("stopped; repeat the command to go on")
            return PREEMPTED
        try:
            _run_entry(entry, options, say, stop_requested)
        except PreemptedError as stopped:
            say(f"{entry.name}: {stopped}; repeat the command to go on")
            return PREEMPTED
        except UserError as error:
            if len(entries) == 1:
                raise
            say(f"{entry.name}: not run: {error}")
            code = 2
    return code


def _run_entry(
    entry: Entry, options: argparse.Namespace, say: Callable[[str], None], stop_requested: Callable[[], bool]
) -> None:
    """Runs what is missing of an entry, and writes the page of what there is, however the run ends.

    A part that cannot be run does not keep the others from it.
    """
    jobs, refused = _jobs(entry, options), dict[str, UserError]()
    try:
        for job in jobs:
            try:
                run_job(job, say, stop_requested)
            except UserError as error:
                if str(error) not in refused:
                    say(f"{job.part.name}: not run: {error}")
                refused.setdefault(str(error), error)
    except PreemptedError:
        _write(entry, jobs, options, say)
        raise
    if any(job.is_done for job in jobs):
        _write(entry, jobs, options, say)
    if refused:
        raise next(iter(refused.values()))


def _write(entry: Entry, jobs: Sequence[Job], options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """The page of what there is, and its conclusion."""
    page = make_page(entry, options.scale, jobs)
    measured = sum(cell.ours is not None for cell in page.cells)
    if not measured and not page.is_complete and (options.workdir / "pages" / f"{page.stem}.html").exists():
        # That of another version of the entry, or of other images, says more.
        return
    path = write_page(page, jobs, options.workdir / "pages")
    reduced = ", reduced" if page.is_reduced else ""
    count = f"{measured} of {len(page.cells)} cells measured: " if page.cells else ""
    say(f"{entry.name} ({options.scale}{reduced}): {count}{path}")
    for ordering in page.orderings:
        say(f"  {ordering.dataset}, {ordering.attack}: the published order {ordering.verdict}")


def _jobs(entry: Entry, options: argparse.Namespace) -> list[Job]:
    directories = {"folder": options.folder} if options.folder else {}
    return jobs_of(entry, options.scale, options.workdir, options.seeds, directories)


def _chosen(names: Sequence[str], scale: str, required: bool) -> list[Entry]:
    if required and not names:
        raise UserError("run what? Name entries, which `python -m advjax.papers list` prints, or all")
    if names and list(names) != ["all"]:
        return list({found.name: found for found in map(find, names)}.values())
    if chosen := [entry for entry in ENTRIES.values() if scale in entry.scales]:
        return chosen
    known = dict.fromkeys(scale for entry in ENTRIES.values() for scale in entry.scales)
    raise UserError(f"no entry has a scale {scale!r}; there are {', '.join(known)}")


def _check_folder(entries: Sequence[Entry], folder: str) -> None:
    """One folder holds the images of one data set."""
    named = [entry.name for entry in entries if full_config(entry.parts[0])["data"]["name"] == "folder"]
    if folder and len(named) != 1:
        raise UserError(f"--folder holds the images of one entry, and {', '.join(named) or 'none of these'} needs one")


def _listing(entries: Iterable[Entry]) -> object:
    heads = "entry", "contents", "parts", "scales, with core hours of one seed where they are estimated"
    table = plain_table(*heads, numbers=("parts",))
    for entry in entries:
        hours = {scale: f" {entry.hours[scale]:g}" if scale in entry.hours else "" for scale in entry.scales}
        scales = ", ".join(f"{scale}{estimate}" for scale, estimate in hours.items())
        table.add_row(*map(Text, (entry.name, entry.title, str(len(entry.parts)), scales)))
    return table


def _status(entries: Sequence[Entry], options: argparse.Namespace) -> object:
    table = plain_table("entry", "scale", "parts done", "page", numbers=("parts done",))
    for entry in entries:
        jobs = _jobs(entry, options)
        page = options.workdir / "pages" / f"{entry.name}.{options.scale}.html"
        done = f"{sum(job.is_done for job in jobs)} of {len(jobs)}"
        table.add_row(*map(Text, (entry.name, options.scale, done, str(page) if page.exists() else "")))
    return table


def _seconds(budget: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    if not found:
        raise UserError(f"--budget must be a number with a unit, such as 90m or 5h, got {budget!r}")
    return float(found[1]) * _UNITS[found[2]]
