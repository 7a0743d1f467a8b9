"""Launch scripts and launched runs: several processes match a single one, and a stopped run resumes where it was."""

import json
import os
import pathlib
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest

from advjax.runtime import checkpoint
from support.files import module_from
from support.paths import REPOSITORY

LAUNCH = REPOSITORY / "launch"

local = module_from(LAUNCH / "local.py")

DIGITS = (
    "--config=configs/digits_fixer.py",
    "--config.data.num_validation=24",
    "--config.run.base.model.width=0.0625",
    "--config.run.base.batch_size=32",
    "--config.run.base.validate_every_epochs=100",
)
WHOLE = (
    *DIGITS,
    "--config.runs=('base', 'fixer')",
    "--config.run.base.num_steps=40",
    "--config.run.fixer.num_steps=4",
    "--config.run.fixer.batch_size=16",
    # Small steps and no sign gradients in training, so that rounding differences are not amplified.
    "--config.run.base.optimizer.schedule.peak_learning_rate=0.01",
    "--config.run.fixer.optimizer.schedule.peak_learning_rate=0.01",
    "--config.run.fixer.attack.norm=l2",
    "--config.run.fixer.attack.epsilon=1",
    "--config.run.fixer.attack.num_steps=2",
    "--config.evaluation.num_examples=88",
    # Does not divide 88, so the last batch is padded.
    "--config.evaluation.batch_size=40",
    "--config.evaluation.num_pictures=1",
    "--config.evaluation.attacks.order=('fgsm', 'auto_pgd')",
    "--config.evaluation.attacks.auto_pgd.num_steps=3",
)


# Scripts, with stubs for the programs they call.


def stub(folder: pathlib.Path, name: str, body: str = "") -> str:
    """A stub that appends its arguments to the file ``calls``, one line per call, and then runs ``body``."""
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "{name} $*" >> "{folder}/calls"\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def run_script(script: str, *arguments: str, folder: pathlib.Path, **environment: str) -> subprocess.CompletedProcess:
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [LAUNCH / script, *arguments],
        env=os.environ | {"PATH": path, "PYTHON": f"{folder}/python"} | environment,
        capture_output=True,
        text=True,
    )


def calls(folder: pathlib.Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_scripts_refuse_to_run_without_arguments(script, tmp_path):
    for name in ("python", "srun", "gcloud", "xpk"):
        stub(tmp_path, name)
    done = run_script(script, folder=tmp_path)
    assert done.returncode == 2
    assert "usage: " in done.stderr and f"launch/{script}" in done.stderr
    assert calls(tmp_path) == []


def test_sweep_runs_every_value_in_its_own_folder(tmp_path):
    stub(tmp_path, "python")
    flags = ("--", "--config=c.py", "--mode=train")
    done = run_script("sweep.sh", "out", "run.a.epsilon", "4/255", "0.1", *flags, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    common = "--config=c.py --mode=train --config.run.a.epsilon"
    assert calls(tmp_path) == [
        f"python -m advjax.main --workdir=out/run.a.epsilon=4_255 {common}=4/255",
        f"python -m advjax.main --workdir=out/run.a.epsilon=0.1 {common}=0.1",
    ]


def test_sweep_stops_where_a_run_was_preempted(tmp_path):
    stub(tmp_path, "python", "exit 42")
    done = run_script("sweep.sh", "out", "seed", "0", "1", "--", "--config=c.py", folder=tmp_path)
    assert done.returncode == 42
    assert len(calls(tmp_path)) == 1


def test_evaluate_continues_after_a_failure_and_reports_it(tmp_path):
    stub(tmp_path, "python", '[[ "$*" != *=bad* ]]')
    done = run_script("evaluate.sh", "a", "bad", "c", "--", "--distributed=none", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == "failed: bad"
    expected = "python -m advjax.main --mode=evaluate --workdir={} --distributed=none"
    assert calls(tmp_path) == [expected.format(folder) for folder in ("a", "bad", "c")]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (42, True)])
def test_slurm_requeues_only_a_preempted_job(code, requeued, tmp_path):
    stub(tmp_path, "srun", f"exit {code}")
    stub(tmp_path, "scontrol")
    done = run_script("slurm.sh", "--config=c.py", folder=tmp_path, SLURM_JOB_ID="7")
    assert done.returncode == code
    assert calls(tmp_path)[0].endswith("-m advjax.main --config=c.py")
    assert calls(tmp_path)[1:] == (["scontrol requeue 7"] if requeued else [])


@pytest.mark.parametrize(
    ("script", "arguments", "program"),
    [("tpu_pod.sh", ["run"], "gcloud"), ("gke.sh", ["workload"], "xpk")],
)
def test_flags_survive_the_remote_shell(script, arguments, program, tmp_path):
    # Like the remote end, the stub passes the command to a shell.
    remote = 'for word; do case $word in --command=*) bash -c "python() { :; }; ${word#--command=}";; esac; done'
    stub(tmp_path, program, f"cd {tmp_path}; {remote}")
    (tmp_path / "advjax/.venv/bin").mkdir(parents=True)
    for where in (tmp_path, tmp_path / "advjax/.venv/bin"):
        interpreter = where / "python"
        interpreter.write_text(f'#!/usr/bin/env bash\nprintf "<%s>" "$@" > "{tmp_path}/got"\n')
        interpreter.chmod(0o755)
    flags = ["--config=c.py", "--config.runs=('base',)", "--config.title=a b"]
    names = {"NAME": "slice", "ZONE": "zone", "CLUSTER": "c", "IMAGE": "i", "TPU_TYPE": "t"}
    done = run_script(script, *arguments, *flags, folder=tmp_path, **names)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "got").read_text() == "".join(f"<{word}>" for word in ["-m", "advjax.main", *flags])


# launch/local.py, with a stub for advjax.main.


def start(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code])


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((42, 42), 42), ((0, 42), 42), ((42, 3), 3), ((2, 2), 2)])
def test_overall_exit_code(codes, expected):
    assert local.wait([start(f"raise SystemExit({code})") for code in codes]) == expected


def test_a_killed_process_is_a_failure():
    assert local.wait([start("import os; os.kill(os.getpid(), 9)")]) == 128 + signal.SIGKILL


DEAF = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({!r}).touch()
time.sleep(600)
"""


def test_others_are_killed_when_one_fails_even_if_they_ignore_sigterm(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.3)
    deaf = start(DEAF.format(str(tmp_path / "deaf")))
    wait_until(lambda: (tmp_path / "deaf").exists() or deaf.poll() is not None)
    assert local.wait([deaf, start("raise SystemExit(3)")]) == 3
    assert deaf.returncode == -signal.SIGKILL


def test_gpus_are_divided_in_order(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,0,2")
    shares = [local.device_share(index, 2, None)["CUDA_VISIBLE_DEVICES"] for index in range(2)]
    assert shares == ["3,1", "0,2"]
    with pytest.raises(ValueError, match="4 GPUs cannot be divided evenly among 3"):
        local.device_share(0, 3, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match="no NVIDIA GPU"):
        local.device_share(0, 1, None)


MAIN_STUB = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
names = ("ADVJAX_NUM_PROCESSES", "ADVJAX_PROCESS_ID", "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "ADVJAX_COORDINATOR")
index = os.environ["ADVJAX_PROCESS_ID"]
pathlib.Path("being_written_" + index).write_text(" ".join([*sys.argv[1:], *(os.environ[name] for name in names)]))
os.rename("being_written_" + index, "started_" + index)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_know_each_other_and_get_every_signal(number, tmp_path):
    (tmp_path / "advjax").mkdir()
    (tmp_path / "advjax/__init__.py").touch()
    (tmp_path / "advjax/main.py").write_text(MAIN_STUB)
    command = [sys.executable, LAUNCH / "local.py", "--processes=2", "--cpu_devices=3", "--", "--flag=1"]
    launcher = subprocess.Popen(command, cwd=tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("started_*"))) == 2 or launcher.poll() is not None)
    launcher.send_signal(number)
    assert launcher.wait() == 42
    told = [(tmp_path / f"started_{index}").read_text().split() for index in range(2)]
    assert [words[:-1] for words in told] == [["--flag=1", "2", str(index), "cpu", "3"] for index in range(2)]
    assert told[0][-1] == told[1][-1]
    assert told[0][-1].startswith("127.0.0.1:")


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


# Real runs.


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    """A compilation cache shared by all runs of this file."""
    return f"--compilation_cache={tmp_path_factory.mktemp('xla')}"


def environment(devices: int) -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}


def run_alone(*flags: str, devices: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "advjax.main", *flags]
    return subprocess.run(command, cwd=REPOSITORY, env=environment(devices), capture_output=True, text=True)


def parameters(folder: pathlib.Path, run: str, which: str = "latest") -> dict[str, np.ndarray]:
    restored = checkpoint.restore_variables(str(folder / run / "checkpoints"), which=which)
    leaves = jax.tree_util.tree_flatten_with_path(restored.state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def results(folder: pathlib.Path) -> list[dict]:
    """The rows of the report without time and model hash, which may differ through rounding."""
    content = json.loads((folder / "report.json").read_text())
    return [{key: row[key] for key in row if key not in ("seconds", "model_hash")} for row in content["rows"]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache) -> pathlib.Path:
    """A run in one process with four devices."""
    folder = tmp_path_factory.mktemp("alone")
    done = run_alone(*WHOLE, cache, f"--workdir={folder}", devices=4)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
def test_two_processes_match_one(mapping, alone, cache, tmp_path):
    flags = (*WHOLE, cache, f"--config.mapping={mapping}", f"--workdir={tmp_path}")
    command = [sys.executable, "launch/local.py", "--processes=2", "--cpu_devices=2", "--", *flags]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for run in ("base", "fixer"):
        expected, found = parameters(alone, run), parameters(tmp_path, run)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=f"{run} {name}")
    assert results(tmp_path) == results(alone)
    accuracies = {row["accuracy"] for row in results(alone)}
    assert len(accuracies) > 3, "a model that learned nothing would make this comparison trivial"
    # Only one process writes and prints.
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in alone.iterdir()}
    for run in ("base", "fixer"):
        assert len(list((tmp_path / run).glob("events.out.*"))) == 1
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == len((alone / run / "metrics.jsonl").read_text().splitlines())
    assert done.stdout.count("Fixers in a digit classifier") == 1


STEPS = 300
TRAINING = (
    *DIGITS,
    "--mode=train",
    "--config.runs=('base',)",
    f"--config.run.base.num_steps={STEPS}",
    "--config.run.base.log_every=1",
)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_result(cache, tmp_path):
    folder = tmp_path / "stopped"
    flags = (*TRAINING, cache, f"--workdir={folder}")
    stop_at = random.randrange(1, STEPS // 2)
    process = subprocess.Popen(
        [sys.executable, "-m", "advjax.main", *flags],
        cwd=REPOSITORY,
        env=environment(1),
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = folder / "base/metrics.jsonl"
    wait_until(
        lambda: (metrics.exists() and len(metrics.read_text().splitlines()) >= stop_at) or process.poll() is not None
    )
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate()
    assert process.returncode == 42, printed
    assert "repeat the command to go on" in printed
    stopped_at = checkpoint.restore_variables(str(folder / "base/checkpoints")).step
    assert stop_at <= stopped_at < STEPS

    assert run_alone(*flags, devices=1).returncode == 0
    undisturbed = tmp_path / "undisturbed"
    assert run_alone(*TRAINING, cache, f"--workdir={undisturbed}", devices=1).returncode == 0
    expected, found = parameters(undisturbed, "base"), parameters(folder, "base")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=f"{name}, stopped at step {stopped_at}")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"train"' in line]
    assert steps == list(range(1, STEPS + 1))
