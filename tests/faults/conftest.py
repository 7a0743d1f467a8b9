"""Collects what the tests of faults have done into a table: ``pytest -m slow tests/faults --faults_table=FILE``."""

import contextlib
import pathlib

import pytest

from support import job

_KEY = "fault"


def pytest_addoption(parser):
    parser.addoption("--faults_table", help="Markdown file for the table of faults")


@pytest.fixture
def fault(request):
    """``with fault(name, how, outcome):`` around each occurrence; it has the outcome if nothing in the block fails."""

    @contextlib.contextmanager
    def occurring(name, how, outcome):
        entry = [name, how, outcome, False]
        request.node.user_properties.append((_KEY, entry))
        yield
        entry[-1] = True

    return occurring


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The folder of a job that nothing has happened to, and its results."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "work"
    finished = job.run(*job.arguments(workdir))
    assert finished.code == 0, finished.said
    return workdir, job.results(workdir)


def pytest_terminal_summary(terminalreporter, config):
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    rows = {}
    for report in reports:
        if report.when == "call":
            for name, how, outcome, held in (entry for key, entry in report.user_properties if key == _KEY):
                rows.setdefault((name, how, outcome), []).append(held)
    if not rows:
        return
    lines = ["| fault | how it was produced | outcome | held |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} | {sum(held)} of {len(held)} |" for row, held in rows.items()]
    terminalreporter.section("faults")
    terminalreporter.write("\n".join(lines) + "\n")
    # The option is there only if this folder was named on the command line.
    if path := config.getoption("faults_table", None):
        pathlib.Path(path).write_text("\n".join(lines) + "\n")
