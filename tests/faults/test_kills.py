"""Jobs that are killed at random moments end, when they are repeated, as if nothing had happened."""

import contextlib
import random

import pytest

from support import job

pytestmark = pytest.mark.slow

SEEDS = (0, 1)
OUTCOME = "the repeated job ends with the same bits: weights, optimizer state, metrics, verdicts, report"


def in_training(workdir, chance):
    """After some of the lines that the job will write into its metrics."""
    paths = [workdir / name / "metrics.jsonl" for name in ("base", "robust")]

    def lines():
        return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())

    enough = lines() + chance.randint(1, 6)
    return lambda: lines() >= enough


def in_saving(workdir, chance):
    """While a checkpoint is being written: it still has a temporary name."""
    return lambda: any(workdir.glob("*/checkpoints/*tmp*"))


def in_copies(workdir, chance):
    """While the adversarial copies of the training images are made or written."""
    return lambda: any(workdir.glob("copies/.incomplete*")) or (workdir / "copies").exists()


def in_evaluation(workdir, chance):
    """After some of the parts that the job will add to the stores of its attacks."""

    def parts():
        return sum(1 for _ in workdir.glob("unfinished/*/0*"))

    enough = parts() + chance.randint(1, 4)
    return lambda: parts() >= enough


MOMENTS = [
    ("training", in_training, 0.3, 4),
    ("saving a checkpoint", in_saving, 0.02, 3),
    ("making copies of training images", in_copies, 0.1, 1),
    ("evaluation", in_evaluation, 0.3, 4),
]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_job_that_is_killed_ends_as_an_undisturbed_one(seed, tmp_path, undisturbed, fault):
    chance, workdir = random.Random(seed), tmp_path / "work"
    order = [moment for moment in MOMENTS for _ in range(moment[3])]
    with contextlib.ExitStack() as kills:
        for name, moment, longest_delay, _ in order:
            running = job.Job(*job.arguments(workdir))
            if not running.kill_when(moment(workdir, chance), chance.uniform(0, longest_delay)):
                assert running.wait().code == 0, running.said()
                break
            assert running.wait().code == -9
            kills.enter_context(fault(f"killed in {name}", "SIGKILL at a random moment", OUTCOME))
        finished = job.run(*job.arguments(workdir))
        assert finished.code == 0, finished.said
        assert job.results(workdir) == undisturbed[1]
        assert job.leftovers(workdir) == []
