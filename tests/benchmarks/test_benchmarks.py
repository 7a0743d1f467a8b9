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
from advjax.benchmarks import advjax_contender, attack_calls, contenders, measure, networks, results
from advjax.types import UserError


def row(attack="pgd-20", contender="advjax", seconds=(2.0, 1.0, 4.0), **kwargs):
    fields = {
        "version": "1",
        "examples": 8,
        "seconds": list(seconds),
        "cpu_seconds": [3.0],
        "compile_seconds": 0.5,
        "is_first_call": False,
        "gflops": None,
        "ceiling_share": None,
        "remaining_accuracy": 0.5,
        "median_l2": 1.0,
        "peak_memory_mib": None,
        "idle_memory_mib": None,
    }
    return results.Measurement(attack=attack, contender=contender, **(fields | kwargs))


def test_the_default_lists_match_the_registered_names():
    assert tuple(attack_calls.ATTACKS) == (*command.ATTACK_NAMES, *command.ADVJAX_ONLY_NAMES)
    assert tuple(attack_calls.ADVJAX_ONLY) == command.ADVJAX_ONLY_NAMES
    assert tuple(contenders.CONTENDERS) == command.CONTENDER_NAMES


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
    with pytest.raises(UserError, match="--attacks: unknown pgd; known are pgd-20"):
        command.main(["--attacks", "pgd"])


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_can_be_reset_and_includes_new_arrays():
    measure.forget_peak_memory()
    before = measure.peak_memory_mib()
    # Larger than what malloc can reuse from earlier arrays.
    used = np.ones(2**27, np.uint8)
    assert used.all()
    assert 120 < measure.peak_memory_mib() - before < 200


def test_losses_name_faster_and_smaller_contenders():
    memory = {"idle_memory_mib": 100.0}
    mine = row(**memory, peak_memory_mib=300.0)
    fast = row(contender="torch", seconds=(1.0,), **memory, peak_memory_mib=150.0)
    slow = row(contender="art", seconds=(3.0,))
    mode = row(contender="advjax-bfloat16", seconds=(0.1,))
    assert results.losses([mine, fast, slow, mode]) == [
        "pgd-20: torch is 2.00 times as fast as advjax (8 vs. 4 examples/s).",
        "pgd-20: torch needs 50 MiB, advjax 200 MiB.",
    ]
    assert results.losses([mine, slow]) == []


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
    assert json.loads(json.dumps(found)) == found


def test_a_tiny_run(tmp_path):
    """Runs the command in a separate process, because it binds itself to CPUs."""
    path = tmp_path / "benchmark.json"
    arguments = (
        "--network mnist_cnn --num-examples 2 --rounds 1 --attacks pgd-20 --contenders advjax --quick --threads 1"
    )
    command_line = [sys.executable, "-m", "advjax.benchmarks", *arguments.split(), "--json", str(path)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command_line, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "No contender was faster than advjax" in done.stdout
    found = json.loads(path.read_text())
    assert found["schema_version"] == results.SCHEMA_VERSION
    assert {"date", "command", "machine", "versions", "settings", "network", "ceiling_gflops"} <= set(found)
    (measured,) = found["rows"]
    assert set(results.Measurement._fields) < set(measured)
    assert len(measured["seconds"]) == 1
    assert measured["compile_seconds"] > 0
    assert measured["gflops"] == pytest.approx(2 * 40 * 5_960_400 / measured["seconds"][0] / 1e9)
    assert found["machine"]["processors"] == found["machine"]["processors"][:1]


def test_torch_has_the_same_networks():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from advjax.benchmarks import torch_contenders

    for name in networks.SMALL:
        network = networks.make_network(name, 2)
        images = torch.from_numpy(network.images).permute(0, 3, 1, 2)
        found = torch_contenders.torch_network(network)(images).numpy()
        expected = networks.SMALL[name](network.variables, jnp.asarray(network.images))
        np.testing.assert_allclose(found, expected, atol=1e-5)
