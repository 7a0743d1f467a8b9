"""The benchmark: what it counts and prints, and one tiny run of the whole command."""

import functools
import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from advjax.attacks import auto_attack_stages, in_precision, linf
from advjax.attacks.runner import MISCLASSIFIED, ROBUST
from advjax.benchmarks import __main__ as command
from advjax.benchmarks import advjax_contender, contenders, measure, networks, reports, results, run, tasks
from advjax.types import UserError
from support.measurements import processes, row


def test_the_default_lists_match_the_registered_names():
    assert set(tasks.TASKS) == {*command.TASK_NAMES, *command.OTHER_TASK_NAMES}
    assert tuple(contenders.CONTENDERS) == command.CONTENDER_NAMES
    assert set(command.DEFAULT_CONTENDERS) < set(command.CONTENDER_NAMES)
    assert (*networks.SMALL, *networks.LARGE) == command.NETWORK_NAMES


@pytest.mark.parametrize(("name", "expected"), [("mnist_cnn", 5_960_400), ("cifar_cnn", 21_235_264)])
def test_forward_flops_count_two_for_each_multiply_add(name, expected):
    weights = networks.random_weights(name)
    found = networks.forward_flops(lambda x: networks.SMALL[name](weights, x), networks.IMAGE_SHAPES[name])
    assert found == expected


def test_random_images_are_labeled_by_the_network():
    network = networks.make_network("mnist_cnn", 3)
    logits = networks.mnist_cnn(network.variables, jnp.asarray(network.images))
    np.testing.assert_array_equal(network.labels, np.argmax(logits, axis=-1))
    assert network.epsilon == networks.UNBREAKABLE


def test_invalid_arguments_are_rejected(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, conv1_kernel=np.zeros((5, 5, 1, 16)))
    with pytest.raises(UserError, match=r"has no conv1_bias, conv2_bias.*it does not fit mnist_cnn"):
        networks.load_weights("mnist_cnn", path)
    with pytest.raises(UserError, match="has no images, labels"):
        networks.load_images(path, 1)
    with pytest.raises(UserError, match="must be one of mnist_cnn"):
        networks.make_network("alexnet", 1)
    for flag, known in (("tasks", "pgd-20"), ("network", "mnist_cnn"), ("contenders", "advjax")):
        with pytest.raises(UserError, match=f"--{flag}: unknown pgd; known are {known}"):
            command.main([f"--{flag}", "pgd"])


def test_the_file_is_checked_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    for path in ("file/x.json", "."):
        with pytest.raises(UserError, match="--json"):
            command.main(["--json", str(tmp_path / path)])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UserError, match="delete it to start afresh"):
        reports.read(tmp_path / "file")


def test_losses_that_differ_are_not_the_same_work():
    run._check_losses("train", {"advjax": tasks.Output(loss=1.0), "torch": tasks.Output(loss=1.001)})
    with pytest.raises(UserError, match="losses of the first step differ"):
        run._check_losses("train", {"advjax": tasks.Output(loss=1.0), "torch": tasks.Output(loss=1.1)})


def test_the_distance_is_that_of_images_that_were_right():
    network = networks.make_network("mnist_cnn", 4)
    wrong = network._replace(labels=np.where(np.arange(4) < 3, (network.labels + 1) % 10, network.labels))
    moved = np.copy(network.images)
    moved[3, 0, 0] += 0.25
    scored = run._Scored(wrong, 1.0, None)
    assert scored.distance(tasks.Output(moved)) == pytest.approx(0.25, abs=1e-6)
    assert scored.broken(tasks.Output(moved)).tolist()[:3] == [True, True, True]
    assert scored.distance(tasks.Output(loss=1.0)) is None


def test_bfloat16_changes_logits_slightly_but_not_their_type():
    network = networks.make_network("mnist_cnn", 4)
    bind = lambda variables: functools.partial(network.forward, variables)  # noqa: E731
    exact = np.asarray(network.forward(network.variables, network.images))
    found = np.asarray(in_precision(jnp.bfloat16, bind)(network.variables)(network.images))
    assert found.dtype == np.float32
    assert 0 < np.max(np.abs(found - exact)) < 0.05 * np.max(np.abs(exact))


def test_passes_of_an_ensemble():
    stages = auto_attack_stages(linf(0.1))
    full = np.array([100, 900, 900, 5000])
    broken_by = np.array([MISCLASSIFIED, ROBUST, 0, 2])
    steps = np.array([0, full.sum(), 7, 100 + 900 + 30])
    expected = (200 + 1800 + 2700 + 5000) + 14 + (200 + 1800 + 90)
    assert advjax_contender.stage_passes(stages, broken_by, steps) == expected


def test_rounds_are_interleaved_and_compilation_is_separate():
    order = []

    def compiles():
        order.append("a")
        return jax.jit(lambda x: jnp.sin(x) + len(order))(jnp.ones(3)).block_until_ready()

    def sleeps():
        order.append("b")
        time.sleep(0.02)
        return "slept"

    timings, firsts = measure.interleaved(
        {"a": compiles, "b": sleeps}, rounds=2, budget=60, clock=measure.CompileClock()
    )
    assert order == ["a", "b"] * 3
    assert firsts["b"] == "slept"
    assert timings["a"].compile_seconds > 0
    assert all(seconds > 0 for seconds in timings["a"].later_compile_seconds)
    assert timings["b"].compile_seconds == 0
    assert len(timings["b"].seconds) == 2
    assert timings["b"].best >= 0.02


def test_no_more_rounds_than_the_budget_allows():
    timings, _ = measure.interleaved(
        {"slow": lambda: time.sleep(0.02)}, rounds=3, budget=0.01, clock=measure.CompileClock()
    )
    assert timings["slow"].is_first_call
    assert len(timings["slow"].seconds) == 1


def test_nested_traces_count_once():
    clock = measure.CompileClock()
    clock._spans = [(1.0, 5.0), (2.0, 3.0), (4.0, 6.0), (8.0, 20.0)]
    assert clock.between(0.0, 10.0) == 7.0
    assert clock.between(6.0, 8.0) == 0.0


PEAKS = """
import numpy as np
from advjax.benchmarks import measure

large = np.ones(2**28, np.uint8)
highest = measure.peak_memory_mib()
del large
measure.forget_peak_memory()
before = measure.peak_memory_mib()
again = np.ones(2**27, np.uint8)
print(highest, before, measure.peak_memory_mib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_can_be_reset_and_includes_new_arrays():
    # In a process of its own: other tests' threads free memory whenever they like.
    said = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True).stdout
    highest, before, after = map(float, said.split())
    assert 240 < highest - before < 320
    assert 120 < after - before < 160


def test_losses_name_faster_and_smaller_libraries():
    mine = row(processes=processes(200.0))
    fast = row(contender="torch", seconds=(1.0,), processes=processes(50.0))
    slow = row(contender="art", seconds=(3.0,))
    ways = [row(contender=name, seconds=(0.1,)) for name in ("advjax-bfloat16", "flax")]
    assert results.losses([mine, fast, slow, *ways]) == [
        "pgd-20: torch is 2.00 times as fast as advjax (8 vs. 4 examples/s).",
        "pgd-20: torch needs 50 MiB, advjax 200 MiB.",
    ]
    assert results.outcome([mine, fast])[0].startswith("advjax loses: pgd-20: torch is 2.00")


def test_nobody_is_beaten_who_was_not_there():
    mine, slow = row(), row(contender="art", seconds=(3.0,))
    assert results.outcome([mine, row("train"), slow]) == ["No other library was faster than advjax in pgd-20."]
    weighed = [row(processes=processes(50.0)), row(contender="art", seconds=(3.0,), processes=processes(60.0))]
    assert results.outcome(weighed) == ["No other library was faster than advjax in pgd-20, or used less memory."]
    alone = [mine, row(contender="advjax-bfloat16"), row("train", "torch")]
    assert results.outcome(alone) == ["advjax was not measured beside another library, so nothing is compared."]


def test_ensembles_are_compared():
    rows = [row("autoattack", seconds=(50.0,), cpu_seconds=[60.0]), row("quick-check", seconds=(5.0,))]
    broken = {("autoattack", "advjax"): np.array([True, False]), ("quick-check", "advjax"): np.array([False, False])}
    reference, cheap = results.comparisons(rows, broken, reference_seconds=120.0, threads=1)
    assert "0.50 times the recorded 120.0" in reference
    assert cheap == "quick-check: 10.0 times as fast as autoattack; 1 of 2 verdicts differ."


def test_table_shows_every_contender():
    console = Console(width=results.WIDTH, record=True)
    console.print(results.table([row(gflops=12.34, ceiling_share=0.5), row(contender="torch")], "pgd-20: words"))
    text = console.export_text()
    for part in ("pgd-20: words", "advjax 1", "torch 1", "12.3", "50%", "2.000"):
        assert part in text
    assert max(map(len, text.splitlines())) <= results.WIDTH


def test_json_of_a_row_has_the_derived_numbers():
    found = row().to_json()
    assert (found["examples_per_second"], found["examples_per_second_best"]) == (4.0, 8.0)
    assert results.Measurement.from_json(json.loads(json.dumps(found))) == row()


def test_a_tiny_run(tmp_path):
    """Runs the command in a separate process, because it binds itself to CPUs."""
    path = tmp_path / "benchmark.json"
    arguments = (
        "--network mnist_cnn --num-examples 2 --rounds 1 --tasks pgd-20,deepfool-l2-50-runner --contenders advjax "
        "--quick --threads 1 --calls runner"
    )
    command_line = [sys.executable, "-m", "advjax.benchmarks", *arguments.split(), "--json", str(path)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command_line, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "not measured beside another library" in done.stdout
    found = json.loads(path.read_text())
    assert found["schema_version"] == results.SCHEMA_VERSION
    assert {"date", "command", "machine", "versions", "settings", "network", "ceiling_gflops"} <= set(found)
    measured, verdicts = found["rows"]
    assert set(results.Measurement._fields) < set(measured)
    assert len(measured["seconds"]) == 1
    assert measured["compile_seconds"] > 0
    assert measured["gflops"] == pytest.approx(2 * 40 * 5_960_400 / measured["seconds"][0] / 1e9)
    assert found["machine"]["processors"] == found["machine"]["processors"][:1]
    cold, warm = (verdicts["processes"][name]["calls"] for name in ("cold", "warm"))
    assert warm[0]["compile_seconds"] < cold[0]["compile_seconds"]
    # The runner keeps its programs.
    assert cold[1]["compile_seconds"] < 0.1 * cold[0]["compile_seconds"]
