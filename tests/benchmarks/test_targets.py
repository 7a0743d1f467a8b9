"""Measuring in steps, and the table of targets."""

import json
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from advjax.benchmarks import accelerator, markdown, target_table, targets
from advjax.benchmarks.__main__ import parser
from advjax.benchmarks.results import WIDTH
from advjax.benchmarks.steps import State, Step, run_steps
from advjax.benchmarks.tasks import TASKS
from advjax.types import UserError
from support.measurements import processes, row
from support.paths import REPOSITORY

PAGES = ("docs/benchmarks.md", "README.md")


def report(*rows, **settings):
    machine = {"processor": "some processor", "python": "3"}
    found = {
        "network": {"name": "resnet9"},
        "date": "2026-12-01T00:00:00",
        "machine": machine,
        "versions": {"jax": "1"},
    }
    return found | {"rows": [row.to_json() for row in rows], "settings": settings}


def code(text, path):
    """A step that runs Python code, whose result is what it writes."""
    command = [sys.executable, "-c", f"path = {str(path)!r}\n{text}"]
    return lambda name, **options: Step(
        name, command, options.pop("seconds", 5), lambda: json.loads(path.read_text()), **options
    )


# --- steps -----------------------------------------------------------------------------------------------------------


def test_steps_are_kept_and_not_repeated(tmp_path):
    lines, path = [], tmp_path / "result.json"
    writes = code("open(path, 'w').write('{\"a\": 1}')", path)("writes")
    fails = code("print('what went wrong'); raise SystemExit(3)", path)("fails")
    long = writes._replace(name="long", seconds=1e6)
    run_steps([fails, long, writes], State(tmp_path / "all.json", {"of": 1}), 60, lines.append)
    state = State(tmp_path / "all.json", {"of": 1})
    assert state.results() == {"writes": {"a": 1}}
    assert state.report["steps"]["fails"]["status"] == "failed"
    assert "what went wrong" in state.report["steps"]["fails"]["problem"]
    assert "long: not begun" in "\n".join(lines) and not state.is_done("long")
    path.unlink()
    run_steps([writes], state, 60, lines.append)
    assert lines[-1] == "writes: done before" and not path.exists()
    with pytest.raises(UserError, match="is of other settings"):
        State(tmp_path / "all.json", {"of": 2})


def test_a_step_is_stopped_with_its_children_and_goes_on(tmp_path, monkeypatch):
    """It saves on SIGTERM, and ends with the exit code of ``advjax.main``."""
    monkeypatch.setattr("advjax.benchmarks.steps.GRACE_SECONDS", 5.0)
    path, child = tmp_path / "result.json", tmp_path / "child"
    resumes = code(
        f"""
import json, os, signal, subprocess, sys, time
count = json.load(open(path))["count"] + 1 if os.path.exists(path) else 1
process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(child)!r}, "w").write(str(process.pid))
def save(*_):
    json.dump({{"count": count}}, open(path, "w"))
    sys.exit(42)
signal.signal(signal.SIGTERM, save)
if count < 2:
    time.sleep(60)
process.kill()
json.dump({{"count": count}}, open(path, "w"))
""",
        path,
    )("resumes", seconds=100, is_resumable=True)
    state = State(tmp_path / "all.json", {})
    run_steps([resumes], state, 11, print)
    assert state.report["steps"]["resumes"]["status"] == "stopped"
    assert state.results() == {"resumes": {"count": 1}}
    deadline = time.monotonic() + 10
    while is_running(int(child.read_text())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(int(child.read_text()))
    run_steps([resumes], state, 60, print)
    assert state.is_done("resumes") and state.results() == {"resumes": {"count": 2}}


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- targets ---------------------------------------------------------------------------------------------------------


def test_every_target_is_measured_by_a_step_and_every_step_is_a_valid_command():
    parts = {part.name: part for part in targets.PARTS}
    assert len(parts) == len(targets.PARTS)
    assert {target.step for target in target_table.TARGETS} == parts.keys() - {"every-attack"}
    assert len({target.name for target in target_table.TARGETS}) == len(target_table.TARGETS)
    for part in targets.PARTS:
        options = parser().parse_args(part.arguments.split())
        assert set(options.tasks.split(",")) <= set(TASKS)


def test_what_must_be_measured_first_fits_into_twenty_minutes():
    limited = {target.step for target in target_table.TARGETS if target.limit is not None}
    first = targets.PARTS[: len(limited) + 1]
    assert limited <= {part.name for part in first}
    assert sum(part.seconds for part in first) <= 1200


def rehearsed():
    """Reports of all steps, with made-up times."""
    times = {
        "advjax": 1.0,
        "flax": 1.05,
        "flax-exact": 8.0,
        "torch": 2.0,
        "torchattacks": 1.25,
        "foolbox": 3.0,
        "art": 9,
    }
    found = {}
    for part in targets.PARTS:
        options = parser().parse_args(part.arguments.split())
        made = [
            row(
                task,
                name,
                (times[name],),
                processes=processes(first=times[name]) if options.calls == "runner" else None,
            )
            for task in options.tasks.split(",")
            for name in options.contenders.split(",")
        ]
        found[part.name] = report(*made, reference_seconds=6.0)
    return found


def test_ratios_are_those_to_the_fastest_other_library():
    found = {row["name"]: row for row in target_table.rows(rehearsed())}
    assert found["resnet9-pgd"]["measured"]["ratio"] == pytest.approx(0.8)
    assert found["resnet9-pgd"]["measured"]["other"] == "torchattacks"
    assert found["resnet9-pgd"]["met"] is False
    assert found["deepfool-256"]["met"] is True
    assert found["foreign-pgd"]["measured"]["ratio"] == pytest.approx(1.05)
    assert found["fast-on-cpu"]["measured"]["ratio"] == pytest.approx(1.05 / 8)
    assert found["fast-on-cpu"]["met"] is None
    assert found["autoattack-robust"]["measured"]["ratio"] == pytest.approx(3.0 / 6.0)
    assert found["autoattack-undefended-cold"]["measured"]["ratio"] == pytest.approx(1.0 / 1.25)
    assert found["autoattack-undefended-warm"]["measured"]["ratio"] == pytest.approx(2.0 / 1.25)
    assert found["second-call"]["measured"]["ratio"] == pytest.approx(0.02)


def test_what_was_not_measured_is_not_met():
    alone = {name: report(*(), reference_seconds=6.0) for name in rehearsed()}
    assert target_table.rows(alone) == target_table.rows({})
    rows = target_table.rows({})
    assert all(row["measured"] is None and row["met"] is None for row in rows)
    console = Console(width=WIDTH, record=True)
    console.print(target_table.table([*target_table.rows(rehearsed()), *rows]))
    text = console.export_text()
    assert "not measured" in text and "missed" in text and "0.80" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_steps_without_their_files_are_skipped(tmp_path, capsys):
    targets.main(["--json", str(tmp_path / "targets.json"), "--budget", "0"])
    printed = capsys.readouterr().out
    assert "small-256: skipped (give --weights and --images)" in printed
    assert "autoattack-undefended: skipped (give --undefended-weights" in printed
    assert "resnet9-pgd: not begun" in printed
    with pytest.raises(UserError, match="--only: unknown nothing; known are small-256"):
        targets.main(["--json", str(tmp_path / "other.json"), "--only", "nothing"])


# --- pages -----------------------------------------------------------------------------------------------------------


def test_tables_are_put_into_a_page():
    steps = {name: {"result": result} for name, result in rehearsed().items()}
    page = "before\n<!-- benchmark: {} -->\nold\n<!-- end of benchmark -->\nafter"
    for name in markdown.TABLES:
        text = page.format(name)
        filled = markdown.fill(text, {"steps": steps})
        assert "old" not in filled and filled.startswith("before\n<!--") and filled.endswith("-->\nafter")
        assert markdown.fill(filled, {"steps": steps}) == filled
    assert "| PGD-20, ResNet9, 32 images | ≤ 0.65 | 0.80 | missed |" in markdown.targets(rehearsed())
    with pytest.raises(UserError, match="there is no table other"):
        markdown.fill(page.format("other"), {"steps": {}})
    with pytest.raises(UserError, match="is of a rehearsal"):
        markdown.fill(text, {"steps": {}, "settings": {"tiny": True}})


def test_speeds_with_other_weights_are_other_rows():
    ours, theirs = (
        report(row("autoattack", "advjax", [0.1]), weights="a.npz"),
        report(row("autoattack", "torchattacks", [2.0])),
    )
    lines = markdown.speeds({"one": ours, "two": theirs}).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["resnet9 (a.npz), 8 images", "resnet9, 8 images"]


@pytest.mark.parametrize("page", PAGES)
def test_the_numbers_of_a_page_are_those_of_the_file(page):
    text, path = (REPOSITORY / page).read_text(), REPOSITORY / "docs/results/benchmark_targets.json"
    assert markdown.PLACE.search(text)
    stored = json.loads(path.read_text()) if path.exists() else {"steps": {}}
    assert markdown.fill(text, stored) == text


def test_claims_of_the_readme_are_targets():
    names = {target.name for target in target_table.TARGETS if target.limit is not None}
    assert set(markdown.CLAIMS) <= names


# --- the accelerator's suite -----------------------------------------------------------------------------------------


def test_the_suite_begins_with_benchmarks(tmp_path):
    options = accelerator.parser().parse_args(["--folder", str(tmp_path), "--data", "cifar10.npz"])
    experiments = accelerator.experiment_steps(options)
    assert [step.name for step in experiments] == ["cifar_fixer", "cifar_fixer_baselines", "cifar_adversarial"]
    assert all(step.is_resumable and "--config.data.name=npz" in step.command for step in experiments)
    for step in accelerator.benchmark_steps(tmp_path, tiny=False):
        chosen = parser().parse_args(step.command[3:])
        assert chosen.num_examples % chosen.batch_size == 0


@pytest.mark.slow
def test_a_rehearsal_of_the_suite(tmp_path):
    """Everything at a tiny size, in two calls, the second of which goes on where the first was stopped."""
    command = [sys.executable, "-m", "advjax.benchmarks.accelerator", "--tiny", "--folder", str(tmp_path / "suite")]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    for part, expected in (("benchmarks", "everything is done"), ("experiments", "everything is done")):
        done = subprocess.run(
            [*command, "--part", part, "--limit", "3000", "--json", str(tmp_path / "copy.json")],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout, done.stdout
    results = json.loads((tmp_path / "copy.json").read_text())["steps"]
    assert len(results) == 2 * len(accelerator.BENCHMARKS) + 2
    assert {step["status"] for step in results.values()} == {"done"}
    assert results["digits_fixer"]["result"]["report"]["rows"]
    assert results["benchmark-pgd-20-resnet18"]["result"]["rows"]
