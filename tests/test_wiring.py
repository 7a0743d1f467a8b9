"""From configs to objects: every shipped config builds, and every mistake is one clear line."""

import importlib.util

import pytest
from conftest import REPOSITORY

from advjax import attacks, names, wiring
from advjax.types import UserError


def config_of(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def changed(**changes):
    config = config_of("digits_fixer")
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = config
        for key in parents:
            node = node[key]
        with node.unlocked(), node.ignore_type():
            node[last] = value
    return config


def test_the_digits_config_is_the_experiment_it_describes():
    built = wiring.from_config(config_of("digits_fixer"))
    base, fixer = built.runs
    assert (base.name, base.needs, fixer.name, fixer.needs) == ("base", (), "fixer", ("base",))
    assert [len(split.labels) for split in built.data] == [1298, 140, 359]
    assert [attack.name for attack in built.evaluation.attacks] == ["fgsm", "pgd_50", "auto_pgd"]
    assert all(attack.epsilon == 0.15 and attack.norm == "linf" for attack in built.evaluation.attacks)
    assert fixer.spec["needs"]["base"] == base.spec


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"runs": ()}, "runs must name one or more different runs"),
        ({"runs": ("base", "base")}, "runs must name one or more different runs"),
        ({"runs": ("base", "other")}, "runs names 'other', but run describes only base, fixer"),
        ({"runs": ("fixer", "base")}, "run.fixer: no earlier run is named 'base'; earlier are none"),
        ({"data__name": "nothing"}, "unknown data set 'nothing'; known: digits, cifar10, mnist, fashion_mnist"),
        ({"data__num_validation": 5000}, "num_validation is 5000, but digits has 1438 training examples"),
        ({"run__base__model__name": "lenet"}, "run.base.model: unknown name 'lenet'; known are lenet5, net62k,"),
        ({"run__base__model__head": "x"}, "run.base.model: head must be 'max4' or 'average', got 'x'"),
        ({"run__base__model": {"name": "resnet9", "depth": 3}}, "run.base.model: unknown key 'depth'; known are"),
        ({"run__base__typo": 1}, "unknown key run.base.typo; known are model, start, checkpoint"),
        ({"run__fixer__attack__name": "apgd"}, "run.fixer.attack: unknown name 'apgd'; known are fgsm, "),
        ({"run__fixer__attack__epsilon": "-0.1"}, "run.fixer.attack: .*epsilon must be 0 or more"),
        ({"run__fixer__attack__epsilon": "eight"}, "run.fixer.attack: epsilon 'eight' is not a number"),
        ({"run__fixer__attack__norm": "l3"}, "run.fixer.attack: norm: unknown name 'l3'; known are linf, l2, l1"),
        ({"run__fixer__attack__num_steps": 0}, "run.fixer.attack: num_steps must be at least 1, got 0"),
        ({"run__fixer__attack__labels": "random"}, "run.fixer.attack: labels must be 'true' or 'predicted'"),
        ({"run__fixer__attack__made_on": "x"}, "run.fixer: no earlier run is named 'x'; earlier are base"),
        ({"run__fixer__select": "first"}, "run.fixer: select must be 'best' or 'last', got 'first'"),
        ({"run__fixer__train_fraction": 0.0}, "fraction is 0.0; it must be greater than 0 and at most 1"),
        ({"run__fixer__epochs": 0}, "run.fixer: epochs or num_steps must be at least 1"),
        ({"evaluation__made_on": "x"}, "evaluation.made_on: no run is named 'x'; runs are base, fixer"),
        ({"evaluation__protocol": "paper"}, "evaluation.protocol must be 'sound' or 'faithful', got 'paper'"),
        ({"evaluation__num_examples": -1}, "evaluation: num_examples must be 0 or more"),
        ({"evaluation__attacks__order": ("cw",)}, "evaluation.attacks: 'cw' is in the order but not described"),
        ({"evaluation__pictured": "cw"}, "evaluation.pictured: 'cw' is none of the attacks fgsm, pgd_50, auto_pgd"),
    ],
)
def test_mistakes_are_one_clear_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        wiring.from_config(changed(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"run__fixer__trainable": "^fixers_"}, "rule '\\^fixers_' -> 'trained' matches no parameter"),
        (
            {"run__fixer__objective__name": "trade"},
            "run.fixer.objective: unknown name 'trade'; known are supervised, fixers, manifold_mixup, trades, mart",
        ),
        ({"run__fixer__objective__loss": {"name": "hinge"}}, "run.fixer.objective.loss: unknown name 'hinge'"),
        (
            {"run__fixer__optimizer__name": "lion"},
            "run.fixer.optimizer: unknown name 'lion'; known are sgd, adam, adamw",
        ),
        ({"run__fixer__optimizer__schedule": {"name": "step"}}, "run.fixer.optimizer.schedule: unknown name 'step'"),
        ({"run__fixer__augmentation__order": ("crop",)}, "run.fixer.augmentation: unknown name 'crop'"),
        ({"run__fixer__objective__target": "x"}, "run.fixer.objective: target must be 'natural' or 'printed'"),
    ],
)
def test_mistakes_in_a_method_are_one_clear_line(changes, message):
    built = wiring.from_config(changed(**changes))
    fixer = built.runs[1]
    from advjax.models import blocks

    with pytest.raises(UserError, match=message):
        import jax

        variables = jax.eval_shape(lambda: blocks.init(fixer.model, jax.random.key(0), built.image_shape))
        fixer.method(variables, {"base": built.runs[0].model})


@pytest.mark.parametrize("text, expected", [("8/255", 8 / 255), ("0.005", 0.005), ("inf", float("inf")), (3, 3)])
def test_numbers_may_be_fractions(text, expected):
    assert names.number(text) == expected


def test_an_attack_of_a_config_is_the_attack_of_the_library():
    spec = {"name": "auto_pgd", "epsilon": "8/255", "num_steps": 7, "loss": "dlr", "step_size": "0.005"}
    named = wiring.build_attack("a", spec, "here")
    assert isinstance(named.attack, attacks.Attack) and named.stages is None
    assert (named.attack.num_steps, named.threat_model) == (7, attacks.linf(8 / 255))
    assert (named.name, named.norm, named.epsilon, named.spec) == ("a", "linf", 8 / 255, spec)
    assert named.for_verdict().stop_on_success and not named.for_transfer("true").stop_on_success
    minimal = named._replace(threat_model=attacks.l2(float("inf")))
    assert not minimal.for_verdict().stop_on_success


def test_restarts_and_stages_of_a_config():
    spec = {"name": "fgsm", "epsilon": 0.1, "num_restarts": 3}
    named = wiring.build_attack("a", spec, "here")
    assert not isinstance(named.for_verdict(), attacks.Attack)
    staged = wiring.build_attack("a", {"name": "auto_attack", "epsilon": 0.1, "version": "rand"}, "here")
    assert [stage.name for stage in staged.stages] == ["apgd-ce", "apgd-dlr"]
    with pytest.raises(UserError, match="here: num_restarts must be 1 or more, and 1 for auto_attack"):
        wiring.build_attack("a", {"name": "auto_attack", "epsilon": 0.1, "num_restarts": 2}, "here")
    with pytest.raises(UserError, match=r"run.fixer.attack: auto_attack is for evaluation only"):
        wiring.from_config(changed(run__fixer__attack={"name": "auto_attack", "epsilon": 0.1, "made_on": "base"}))
