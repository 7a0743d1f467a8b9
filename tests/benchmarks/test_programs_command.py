"""The command that compiles programs for devices that are not here: its arguments, and whose programs they are."""

import functools
import json
import re
import sys

import jax
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import continuous_batching, runner
from advjax.benchmarks.programs import __main__ as command
from advjax.benchmarks.programs import product, report, targets
from advjax.benchmarks.programs.arithmetic import Product
from advjax.benchmarks.programs.facts import facts
from advjax.experiment import defaults
from advjax.experiment.from_config import from_config
from advjax.experiment.spec import DataFacts
from advjax.types import UserError
from support.paths import REPOSITORY

SHAPE, BATCH = (4, 4, 1), 8
LINF = {"norm": "linf", "epsilon": 0.1}
PGD = {"name": "pgd", **LINF, "num_steps": 3, "step_size": 0.05}


def subject(**options):
    """An experiment with two tiny runs, for the processors of this machine."""
    model = {"name": "resnet9", "width": 0.02, "head": "average"}
    recipe = {"batch_size": BATCH, "epochs": 1, "select": "last"}
    attacked = {**recipe, "attack": {**PGD, "returns": "last"}, "start": "base"}
    config = defaults.experiment(
        data={"name": "digits"},
        runs=("base", "robust"),
        run={"base": defaults.run(model=model, **recipe), "robust": defaults.run(model=model, **attacked)},
        evaluation={"attacks": {"order": ("pgd",), "pgd": PGD}, "batch_size": BATCH},
    )
    experiment = from_config(config, DataFacts("digits", SHAPE, 10, 0, {"base": 40, "robust": 40}))
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
    target = targets.Target("here", mesh, targets.H100, "processors")
    return product.Subject(experiment, target, False, options.get("run", ""), options.get("stage", "apgd-ce"), "")


@pytest.mark.parametrize("name", product.PROGRAMS)
def test_every_program_compiles_and_is_described(name):
    made = product.compile_program(name, subject())
    text = made.compiled.as_text()
    assert text is not None
    said = report.describe(subject().target, name, made, facts(text), SHAPE)
    assert json.loads(json.dumps(said)) == said
    assert (said["devices"], said["images_per_device"]) == (2, BATCH // 2)
    assert said["bytes"] > said["batch_bytes"] == 4 * 16 * BATCH // 2
    assert said["peak_memory"]["total"] > 0
    assert said["host_calls"] == []
    lines = "\n".join(report.lines(said))
    assert "neither run nor timed" in lines and "at least" in lines
    if name.startswith("train"):
        assert {one["kind"] for one in said["collectives"]} == {"all-reduce"}
    if name == "attack":
        assert product.PGD_STEPS in [loop["trips"] for loop in said["loops"]]


def test_stages_are_those_of_auto_attack():
    made = product.compile_program("stage", subject(stage="square", run="robust"))
    assert made.images_per_device == BATCH // 2
    with pytest.raises(UserError, match="--stage: unknown stage 'apgd'; known are apgd-ce, apgd-t, fab-t, square"):
        product.compile_program("stage", subject(stage="apgd"))
    with pytest.raises(UserError, match="--run: unknown run 'fixer'; known are base, robust"):
        product.compile_program("verify", subject(run="fixer"))


def test_the_programs_are_those_that_a_run_compiles(monkeypatch):
    """What shapes give is what arrays give: then the program is found, not compiled again."""
    rng = np.random.default_rng(0)
    images = rng.random((BATCH, *SHAPE), dtype=np.float32)
    weights = {"weights": rng.standard_normal((16, 10), dtype=np.float32)}
    labels = np.argmax(images.reshape(BATCH, -1) @ weights["weights"], axis=1)
    made, compiled = {}, runner.Programs._program

    def model(variables):
        return lambda images: images.reshape(len(images), -1) @ variables["weights"]

    def spy(self, function, *args, **kwargs):
        found = compiled(self, function, *args, **kwargs)
        made.setdefault(function.func.__name__, []).append(found.compiled)
        return found

    monkeypatch.setattr(runner.Programs, "_program", spy)
    ball, devices = attacks.linf(0.01), jax.devices()[:2]
    stage = attacks.auto_attack_stages(ball)[0]._replace(
        attack=lambda number: attacks.pgd(ball, num_steps=2, step_size=0.01)
    )
    options = {"batch_size": BATCH, "devices": devices}
    runner.run_stages((stage,), ball, model, images, labels, variables=weights, **options)
    ran = {name: found[-1] for name, found in made.items()}

    shapes = jax.eval_shape(lambda tree: tree, weights)
    described = jax.ShapeDtypeStruct(images.shape, images.dtype)
    programs = runner.make_programs((stage,), ball, functools.partial(model), None, shapes, described, BATCH, devices)
    search = runner.Search(stage, 0, True, False)
    # Nothing can be put on devices that are not here.
    monkeypatch.setattr(jax, "device_put", lambda *args, **kwargs: pytest.fail("an array"))
    batch = [jax.ShapeDtypeStruct(*of) for of in (((8,), np.int32), ((8, 2), np.uint32), ((8, 10), np.float32))]
    held = continuous_batching.lane_shapes(programs, search, (described, *batch, jax.ShapeDtypeStruct((8,), np.bool_)))
    assert continuous_batching.step_program(programs, search, held).compiled is ran["_advance"]
    assert programs.verify_program((described, described, batch[1])).compiled is ran["_verify"]


def call(*arguments):
    command.main(["programs", *arguments])


def test_invalid_arguments_are_rejected_before_anything_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(product, "compile_program", lambda *args: pytest.fail("compiled"))
    monkeypatch.setattr(sys, "argv", [])
    given = "--target=cuda:h100", "--config=digits_fixer"
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (given[1:], "give --target and --config"),
        (given[:1], "give --target and --config"),
        ((*given, "stage"), "surplus: stage"),
        ((*given, "--program=train"), "--program: unknown train; known are train_base"),
        ((*given, f"--json={tmp_path}"), "cannot be written"),
        ((*given, f"--json={tmp_path / 'file' / 'x.json'}"), "the folder of .* cannot be created"),
        (("--target=gpu", given[1]), "unknown target 'gpu'; give tpu:v5e:1x1"),
        (("--target=tpu:v4:2x2", given[1]), "unknown target 'tpu:v4:2x2'"),
        ((*given, "--images=5,5,3"), "--images: give number, height, width and channels"),
        (("--target=gpu", "--config=nothing"), "no config file at nothing"),
        ((*given, "--config.run.base.modl.width=1"), "unknown config key run.base.modl"),
    ):
        with pytest.raises(UserError, match=message):
            call(*arguments)


def test_a_missing_compiler_is_named(monkeypatch):
    def missing(**options):
        raise RuntimeError("no such\nplugin")

    monkeypatch.setattr(targets.topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=r"cannot compile for it \(no such plugin\); libtpu come.* 'advjax\[aot\]'"):
        targets.find_target("tpu:v5e:4x4")


@pytest.mark.parametrize(
    ("dtypes", "precision", "expected"),
    [
        (("f32", "f32", "f32"), "highest", 1 / 66.9e12),
        (("f32", "f32", "f32"), "default", 1 / 494.7e12),
        (("bf16", "bf16", "f32"), "default", 1 / 989e12),
        (("f32", "bf16", "f32"), "default", 1 / 494.7e12),
    ],
)
def test_the_roofline_depends_on_type_and_precision(dtypes, precision, expected):
    made = Product("convolution", dtypes, precision, 1)
    assert targets.H100.seconds(made) == pytest.approx(expected)


def test_every_budget_of_the_documentation_is_tested():
    named = re.findall(r"^\| `(\w+)` \|", (REPOSITORY / "docs/programs.md").read_text(), re.MULTILINE)
    tests = (REPOSITORY / "tests/benchmarks/test_program_budgets.py").read_text()
    tested = set(re.findall(r'limits\(\)\["(\w+)"\]', tests))
    kernels = {name for name in named if name.startswith("kernels_")}
    assert set(named) - kernels == tested
    assert len(named) == len(set(named)) and kernels
