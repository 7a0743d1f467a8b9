"""SIGTERM and Ctrl-C save the state, say so in one line, and the repeated job goes on from there."""

import re
import signal

import pytest

from support import job

pytestmark = pytest.mark.slow

STOPPED = (
    "saved, one line and exit code 42; the repeated job says where it resumes and ends with the same bits and metrics"
)


def lines_of(run_name, workdir):
    path = workdir / run_name / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize("run_name, lines", [("base", 3), ("robust", 5)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_training_stops_and_goes_on(number, run_name, lines, tmp_path, undisturbed, fault):
    workdir = tmp_path / "work"
    with fault("stopped in training", number.name, STOPPED):
        running = job.Job(*job.arguments(workdir))
        assert running.signal_when(number, lambda: lines_of(run_name, workdir) >= lines)
        stopped = running.wait()
        assert stopped.code == 42 and "Traceback" not in stopped.said, stopped.said
        last = stopped.said.strip().splitlines()[-1]
        at = re.fullmatch(rf"{run_name}: stopped at step (\d+) of 48, state saved; repeat the command to go on", last)
        assert at, last
        finished = job.run(*job.arguments(workdir))
        assert finished.code == 0, finished.said
        assert f"{run_name}: resuming at step {at[1]} of 48" in finished.said.splitlines()
        assert job.results(workdir) == undisturbed[1]
        assert job.leftovers(workdir) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_evaluation_stops_and_goes_on(number, tmp_path, undisturbed, fault):
    workdir = tmp_path / "work"
    with fault("stopped in evaluation", number.name, STOPPED):
        running = job.Job(*job.arguments(workdir))
        assert running.signal_when(number, lambda: any(workdir.glob("unfinished/pgd*/00000")))
        stopped = running.wait()
        assert stopped.code == 42 and "Traceback" not in stopped.said, stopped.said
        last = stopped.said.strip().splitlines()[-1]
        assert "saved; repeat the command to go on" in last, last
        finished = job.run(*job.arguments(workdir))
        assert finished.code == 0, finished.said
        assert job.results(workdir) == undisturbed[1]
        assert not (workdir / "unfinished").exists()


def test_a_second_interrupt_ends_the_job_without_a_traceback(tmp_path, undisturbed, fault):
    workdir = tmp_path / "work"
    outcome = "one line and exit code 130, or 42 if the state was saved first; the repeated job ends with the same bits"
    with fault("interrupted twice", "SIGINT twice", outcome):
        running = job.Job(*job.arguments(workdir))
        assert running.signal_when(signal.SIGINT, lambda: (workdir / "config.json").exists())
        assert running.signal_when(signal.SIGINT, lambda: "press Ctrl-C again" in running.said())
        stopped = running.wait()
        assert stopped.code in (42, 130) and "Traceback" not in stopped.said, stopped.said
        finished = job.run(*job.arguments(workdir))
        assert finished.code == 0, finished.said
        assert job.results(workdir) == undisturbed[1]


def test_two_jobs_do_not_share_a_folder(tmp_path, undisturbed, fault):
    workdir = tmp_path / "work"
    with fault("two jobs in one folder", "the same command while it runs", "one line; the first is not disturbed"):
        first = job.Job(*job.arguments(workdir))
        first.wait_for(lambda: (workdir / "base" / "run.json").exists())
        second = job.run(*job.arguments(workdir))
        message = f"error: another process is working in {workdir}: wait for it, or choose another --workdir"
        assert second.only_line == message
        evaluation = job.run("--mode=evaluate", f"--workdir={workdir}", "--trust_workdir")
        assert evaluation.only_line == message
        assert first.wait().code == 0, first.said()
        assert job.results(workdir) == undisturbed[1]
