"""A disk that is full while a job writes: one line, nothing half-written, and a repeated job that goes on."""

import os
import subprocess

import pytest

from support import job

pytestmark = pytest.mark.slow

OUTCOME = "one line, no temporary file is left, and the job repeated with space ends with the same bits"

# From the first file to the last: which one is too large differs.
SIZES = (1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 12_000, 80_000)


@pytest.mark.parametrize("largest_file", SIZES)
def test_files_that_cannot_grow(largest_file, tmp_path, undisturbed, fault):
    workdir = tmp_path / "work"
    with fault("a file cannot be written", "RLIMIT_FSIZE of 1 to 80 kB", OUTCOME):
        refused = job.run(*job.arguments(workdir), "--compilation_cache=", largest_file=largest_file)
        assert refused.error and job.leftovers(workdir) == []
        finished = job.run(*job.arguments(workdir))
        assert finished.code == 0, finished.said
        assert job.results(workdir) == undisturbed[1]


@pytest.fixture
def disk(tmp_path):
    """``kilobytes -> folder`` of a small disk, or a resize of it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(kilobytes):
        how = "remount," if os.path.ismount(folder) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{how}size={kilobytes}k", "tmpfs", str(folder)]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"a small tmpfs cannot be mounted here: {made.stderr.strip()}")
        return folder

    yield sized
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [16, 64, 160, 240, 320, 400])
def test_a_small_disk(kilobytes, disk, undisturbed, fault):
    workdir = disk(kilobytes) / "work"
    with fault("the disk is full", "a tmpfs of 16 to 400 kB", OUTCOME):
        refused = job.run(*job.arguments(workdir))
        assert refused.error and job.leftovers(workdir) == []
        disk(100_000)
        finished = job.run(*job.arguments(workdir))
        assert finished.code == 0, finished.said
        assert job.results(workdir) == undisturbed[1]
