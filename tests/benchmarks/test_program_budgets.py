"""Budgets of the programs that compilers make for TPUs and GPUs, on a ResNet9 of a quarter of the width.

The limits are those of the table in ``docs/programs.md``.  Nothing runs on a device: ``pip install 'advjax[aot]'`` has
the compilers.
"""

import functools
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import pytest

from advjax.models import blocks
from advjax.models.resnet9 import ResNet9
from support.paths import REPOSITORY

TPU, SLICE, GPU = "tpu:v5e:1x1", "tpu:v5e:4x4", "cuda:h100"
WIDTH = 0.25
# No data are read.  The fixers learn from AutoPGD: the one of the paper's toolbox ends each restart early.
CONFIG = (
    *("--config=cifar_fixer", "--images=45000,32,32,3", f"--config.run.base.model.width={WIDTH}"),
    *("--config.evaluation.batch_size=64", "--config.run.fixer.attack.name=auto_pgd"),
    *("--config.run.fixer.attack.num_restarts=1", "--config.run.fixer.attack.num_steps=5"),
)
PROGRAMS = [
    *((TPU, program) for program in ("train_fixer", "attack", "stage", "verify")),
    *((GPU, program) for program in ("train_base", "train_fixer", "attack", "stage", "verify")),
    (SLICE, "train_base"),
]
BFLOAT16 = "--config.run.base.compute_dtype=bfloat16"

pytestmark = [pytest.mark.slow, pytest.mark.optimized]


@functools.cache
def limits():
    """Name -> limit, from the table in the documentation."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", (REPOSITORY / "docs/programs.md").read_text(), re.MULTILINE)
    return {name: int(limit) if limit.isdigit() else limit for name, limit in rows}


@functools.cache
def compiled(target, program, *overrides):
    """Facts about a program, or why it cannot be compiled here.

    In a process of its own, because compilers are loaded once and never unloaded.
    """
    command = [sys.executable, "-m", "advjax.benchmarks.programs", f"--target={target}", f"--program={program}"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "facts.json")
        options = [*CONFIG, *overrides, f"--json={path}"]
        found = subprocess.run([*command, *options], capture_output=True, text=True, cwd=REPOSITORY)
        if found.returncode == 2 and "cannot compile for it" in found.stderr:
            return found.stderr.strip().splitlines()[-1]
        assert found.returncode == 0, found.stderr
        return json.loads(path.read_text())[0]


def facts_of(target, program, *overrides):
    found = compiled(target, program, *overrides)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def of(*programs):
    """Runs a test for each target of some programs."""
    chosen = [
        pytest.param(target, program, id=f"{program}-{target}") for target, program in PROGRAMS if program in programs
    ]
    return pytest.mark.parametrize(("target", "program"), chosen)


everything = of("train_base", "train_fixer", "attack", "stage", "verify")


@everything
def test_nothing_asks_the_host(target, program):
    assert len(facts_of(target, program)["host_calls"]) <= limits()["host_calls"]


@everything
def test_weights_and_images_are_no_constants(target, program):
    assert facts_of(target, program)["largest_constant"] <= limits()["constant"]


@everything
def test_nothing_larger_than_a_batch_is_copied(target, program):
    assert len(facts_of(target, program)["large_copies"]) <= limits()["copies"]


@everything
def test_nothing_branches_on_the_device(target, program):
    assert facts_of(target, program)["conditionals"] <= limits()["conditionals"]


@of("train_fixer", "attack", "stage")
def test_a_step_of_an_attack_has_no_loop(target, program):
    """Over images, say, which would be attacked one after the other."""
    assert facts_of(target, program)["step"]["loops_inside"] <= limits()["loops_in_a_step"]


@everything
def test_all_loops_have_a_known_number_of_turns(target, program):
    found = facts_of(target, program)
    assert sum(loop["trips"] is None for loop in found["loops"]) <= limits()["unknown_turns"]
    steps = {"attack": (1, 20), "train_fixer": (1, 5)}.get(program, (0, 1))
    assert (found["step"]["depth"], found["step"]["trips"]) == steps


@of("train_fixer", "attack", "stage")
def test_kernels_of_a_step(target, program):
    name = f"kernels_{program}_{'gpu' if target == GPU else 'tpu'}"
    assert 10 < facts_of(target, program)["step"]["kernels"] <= limits()[name]


@of("verify")
def test_verdicts_have_full_precision(target, program):
    found = facts_of(target, program)["products"]
    assert sum(made["count"] for made in found) == 9
    assert {made["precision"] for made in found} == {limits()["verdict_precision"]}
    assert {made["types"] for made in found} == {"f32 x f32 -> f32"}


@pytest.mark.parametrize("target", [TPU, GPU])
def test_bfloat16_leaves_no_convolution_in_float32(target):
    found = facts_of(target, "train_base", BFLOAT16)["products"]
    types = [made["types"].split(" -> ")[0] for made in found if made["kind"] == "convolution"]
    assert types and sum("f32" in operands for operands in types) <= limits()["bfloat16"]


def test_without_it_all_is_in_float32():
    """On a GPU; on a TPU, the types are not those of the program."""
    in_float32 = facts_of(GPU, "train_base")["products"]
    assert {made["types"] for made in in_float32} == {"f32 x f32 -> f32"}


def test_collectives_of_a_training_step():
    """One for the gradients and the metrics, and two for each BatchNorm: its statistics, and their gradients."""
    found = facts_of(SLICE, "train_base")
    model = ResNet9(width=WIDTH)
    variables = jax.eval_shape(lambda: blocks.init(model, jax.random.key(0), (32, 32, 3)))
    statistics = jax.tree.leaves(variables.model_state)
    num_layers = len(statistics) // 2
    assert found["devices"] == 16
    assert len(found["collectives"]) <= limits()["collectives"] == 2 * num_layers + 1
    gradients, each = (
        4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for tree in (variables.params, statistics)
    )
    metrics = sum(array["bytes"] for array in found["collectives"]) - gradients - 2 * each
    assert 0 < metrics <= limits()["metrics"]
