"""From configs to objects: every shipped config builds, and every mistake is one clear line."""

import jax
import jax.numpy as jnp
import pytest

from advjax import attacks
from advjax.experiment import registry
from advjax.experiment.build_attack import build_attack, whole_attack
from advjax.experiment.from_config import from_config
from advjax.models import blocks
from advjax.types import UserError, Variables
from support.configs import changed, config_of

CURVE = {"attack": {"name": "fgsm"}, "epsilons": (0.1,), "num_examples": 4}
SMOOTHING = {"name": "gaussian_smoothing", "std": 0.1, "run": "base"}


def test_the_digits_config_is_the_experiment_it_describes():
    built = from_config(config_of("digits_fixer"))
    base, fixer, adversarial = built.runs
    assert (adversarial.name, adversarial.needs) == ("adversarial", ("base",))
    assert (base.name, base.needs, fixer.name, fixer.needs) == ("base", (), "fixer", ("base",))
    assert [len(split.labels) for split in built.load_data().splits] == [1298, 140, 359]
    assert [attack.name for attack in built.evaluation.attacks] == ["fgsm", "pgd_50", "auto_pgd"]
    assert all(attack.epsilon == 0.15 and attack.norm == "linf" for attack in built.evaluation.attacks)
    assert fixer.identity["needs"]["base"] == base.identity


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"runs": ()}, "runs must name one or more different runs"),
        ({"runs": ("base", "base")}, "runs must name one or more different runs"),
        ({"runs": ("base", "other")}, "runs names 'other', but run describes only base, fixer"),
        ({"runs": ("fixer", "base")}, "run.fixer: no earlier run is named 'base'; earlier are none"),
        ({"data__name": "nothing"}, "unknown dataset 'nothing'; known: digits, cifar10, mnist, fashion_mnist"),
        ({"data__num_validation": 5000}, "num_validation is 5000, but digits has 1438 training examples"),
        ({"run__base__model__name": "lenet"}, "run.base.model: unknown name 'lenet'; known are lenet5, net62k,"),
        ({"run__base__model__head": "x"}, "run.base.model: head must be one of max4, max4_average, average, got 'x'"),
        ({"run__base__model": {"name": "resnet9", "depth": 3}}, "run.base.model: unknown key 'depth'; known are"),
        ({"run__base__typo": 1}, "unknown key run.base.typo; known are model, start, checkpoint"),
        ({"run__fixer__attack__name": "apgd"}, "run.fixer.attack: unknown name 'apgd'; known are auto_pgd, "),
        ({"run__fixer__attack__epsilon": "-0.1"}, "run.fixer.attack: .*epsilon must be 0 or more"),
        ({"run__fixer__attack__epsilon": "eight"}, "run.fixer.attack: epsilon 'eight' is not a number"),
        ({"run__fixer__attack__norm": "l3"}, "run.fixer.attack: norm: unknown name 'l3'; known are linf, l2, l1"),
        ({"run__fixer__attack__num_steps": 0}, "run.fixer.attack: num_steps must be at least 1, got 0"),
        ({"run__fixer__attack__labels": "random"}, "run.fixer.attack: labels must be 'true' or 'predicted'"),
        ({"run__fixer__attack__made_on": "x"}, "run.fixer: no earlier run is named 'x'; earlier are base"),
        ({"run__fixer__select": "first"}, "run.fixer: select must be 'best' or 'last', got 'first'"),
        (
            {"run__fixer__select_metric": "loss"},
            "run.fixer: select_metric must be one of 'score', 'accuracy', 'attacked_accuracy', got 'loss'",
        ),
        (
            {"run__base__select_metric": "attacked_accuracy"},
            "run.base: no attack is made on the validation images; select_metric must be another",
        ),
        ({"run__fixer__train_fraction": 0.0}, "fraction is 0.0; it must be greater than 0 and at most 1"),
        ({"run__fixer__epochs": 0}, "run.fixer: epochs or num_steps must be at least 1"),
        ({"run__fixer__log_every": 0}, "run.fixer: log_every must be at least 1, got 0"),
        ({"run__fixer__validate_every_epochs": 0}, "run.fixer: validate_every_epochs must be at least 1"),
        ({"run__fixer__patience": -1}, "run.fixer: patience must be at least 0, got -1"),
        ({"run__fixer__attack__epsilon": None}, "run.fixer.attack: epsilon is missing"),
        ({"run__fixer__attack__returned": "best"}, "run.fixer.attack: unknown key 'returned'; known are num_steps"),
        ({"run__typo": 3}, "run.typo must describe a run, got 3"),
        ({"run__base__augmentation__paddings": 3}, "run.base.augmentation.paddings must have the arguments of 'pad"),
        ({"run__base__targets__order": ("soft_labels",)}, "run.base.targets: soft_labels needs off_value"),
        ({"run__base__before_attack__order": ("cut",)}, "run.base.before_attack: unknown name 'cut'; known are soft_"),
        (
            {"run__fixer__before_attack__order": ("partial_mix",)},
            "run.fixer: before_attack partial_mix needs attacked images; list it under targets",
        ),
        ({"run__base__extra_images": {"file": "x.npz", "share": 1}}, "run.base.extra_images: share must lie between"),
        ({"run__base__extra_images": {"file": "x.npz", "share": "1/9999"}}, "extra_images: share .*in a batch of 64 "),
        (
            {"run__base__extra_images": {"file": "x.npz", "share": 0.5}, "data__stream": True},
            "run.base.extra_images: extra images cannot be streamed",
        ),
        ({"evaluation__attacks__num_steps": 3}, "evaluation.attacks.num_steps must have the arguments of 'num_steps'"),
        ({"evaluation__curve": {"attack": {"name": "fgsm"}}}, "evaluation.curve: epsilons is missing"),
        ({"run__base__steps_per_call": 0}, "run.base.steps_per_call must be at least 1, got 0"),
        ({"run__base__gradient_accumulation": 0}, "run.base.gradient_accumulation must be at least 1, got 0"),
        ({"run__base__remat": "blocks"}, "run.base.remat must be True or False, got 'blocks'"),
        ({"run__base__compute_dtype": "int8"}, "run.base: compute_dtype must be 'float32' or 'bfloat16', got 'int8'"),
        (
            {"run__fixer__attack__search_dtype": "bfloat16"},
            "run.fixer.attack: search_dtype is for attacks of an evaluation, which verifies what they find",
        ),
        (
            {"evaluation__attacks__fgsm__search_dtype": "int8"},
            "evaluation.attacks.fgsm: search_dtype must be 'bfloat16' or 'float16', got 'int8'",
        ),
        (
            {
                "evaluation__curve": {
                    "attack": {"name": "fgsm", "search_dtype": "bfloat16"},
                    "epsilons": (0.1,),
                    "num_examples": 1,
                }
            },
            "evaluation.curve: search_dtype has no effect on a curve",
        ),
        ({"evaluation__curve": {**CURVE, "attack": "fgsm"}}, "evaluation.curve: attack must be described by its name"),
        ({"evaluation__curve": {**CURVE, "num_examples": -4}}, "num_examples a whole number of at least 1, got"),
        ({"evaluation__curve": {**CURVE, "epsilons": ("x",)}}, r"evaluation.curve: epsilons must be a list of numbers"),
        (
            {"evaluation__defenses": {"order": ("s",), "s": {**SMOOTHING, "num_votes": "3"}}},
            "evaluation.defenses.s: num_draws, num_votes, num_samples must be whole numbers of at least 1",
        ),
        ({"evaluation__curve": {"epsilon": 1}}, "evaluation.curve: unknown key 'epsilon'; known are attack, epsilons"),
        ({"data__by_patient": True}, "data.by_patient needs data.fractions"),
        ({"data__fractions": (0.8, 0.1, 0.1)}, "data.num_validation has no effect beside data.fractions"),
        ({"evaluation__made_on": "x"}, "evaluation.made_on: no run is named 'x'; runs are base, fixer"),
        (
            {"evaluation__made_on": "fixer+rs", "evaluation__defenses": {"order": ("s",), "s": {**SMOOTHING}}},
            r"no run is named 'fixer\+rs'; runs are base, fixer; with defenses, \w+\+s",
        ),
        ({"evaluation__protocol": "paper"}, "evaluation.protocol must be 'sound' or 'faithful', got 'paper'"),
        ({"evaluation__num_examples": -1}, "evaluation.num_examples must be 0 or more"),
        ({"runs": ({},)}, "runs must name one or more different runs"),
        ({"mapping": "vmap"}, "mapping must be one of shard_map, pmap, jit, got 'vmap'"),
        ({"run__fixer__model__base": {"name": "8/255"}}, "run.fixer.model.base must be a string"),
        ({"evaluation__attacks__order": ("cw",)}, "evaluation.attacks: 'cw' is in the order but not described"),
        ({"evaluation__pictured": "cw"}, "evaluation.pictured: 'cw' is not among the attacks fgsm, pgd_50, auto_pgd"),
        (
            {"evaluation__defenses": {"order": ("rse",), "rse": {"name": "random_self_ensemble", "run": "base"}}},
            "evaluation.defenses.rse: random_self_ensemble needs a model with noise layers, and this ResNet9 has none",
        ),
    ],
)
def test_mistakes_are_one_clear_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        from_config(changed(**changes))
    assert "\n" not in str(caught.value)


MOMENTUM = {"name": "sgd", "momentum": 0.9, "schedule": {"name": "one_cycle", "peak_learning_rate": 0.1}}
ADAM = {"name": "adam", "schedule": {"name": "one_cycle", "peak_learning_rate": 0.1, "momentum_low": 0.5}}
TWO_RATES = {"name": "sgd", "learning_rate": 0.1, "schedule": {"name": "constant", "learning_rate": 0.2}}
CROSS_ENTROPY = {"name": "cross_entropy"}
FGSM = {"name": "fgsm", "epsilon": 0.1}


def sgd(**schedule):
    return {"run__fixer__optimizer": {"name": "sgd", "schedule": schedule}}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"run__fixer__objective__name": "trade"},
            "run.fixer.objective: unknown name 'trade'; known are supervised, fixers, manifold_mixup, trades, mart",
        ),
        ({"run__fixer__objective__loss": {"name": "hinge"}}, "run.fixer.objective.loss: unknown name 'hinge'"),
        (
            {"run__base__objective": {"name": "trades"}, "run__base__attack": FGSM},
            "run.base.objective: loss is missing",
        ),
        (
            {"run__fixer__optimizer__name": "lion"},
            "run.fixer.optimizer: unknown name 'lion'; known are sgd, adam, adamw",
        ),
        ({"run__fixer__optimizer__schedule": {"name": "step"}}, "run.fixer.optimizer.schedule: unknown name 'step'"),
        ({"run__fixer__optimizer": {"name": "adam"}}, "run.fixer.optimizer: schedule is missing"),
        ({"run__fixer__optimizer": TWO_RATES}, "run.fixer.optimizer: learning_rate belongs into"),
        ({"run__fixer__optimizer": MOMENTUM}, "run.fixer.optimizer: one_cycle .* would overwrite it"),
        ({"run__fixer__optimizer": ADAM}, "run.fixer.optimizer.schedule: momentum_low is for sgd; adam has no such"),
        (sgd(name="cosine"), "run.fixer.optimizer.schedule: cosine needs learning_rate"),
        (sgd(name="constant"), "run.fixer.optimizer.schedule: constant needs learning_rate"),
        (sgd(name="constant", learning_rate=0.1, factor=2), "schedule: unknown key 'factor'; known are learning_rate"),
        (sgd(name="step_decay", learning_rate=0.1, factor=0.1), "run.fixer.optimizer.schedule: epochs is missing"),
        (sgd(name="reduce_on_plateau"), "run.fixer.optimizer.schedule: learning_rate is missing"),
        (sgd(name="cosine", learning_rate=0.1, num_steps=3), "schedule: num_steps follows from the run; leave it out"),
        ({"run__fixer__augmentation__order": ("crop",)}, "run.fixer.augmentation: unknown name 'crop'"),
        ({"run__fixer__objective__target": "x"}, "run.fixer.objective: target must be 'natural' or 'printed'"),
        (
            {"run__base__objective": {"name": "trades", "loss": CROSS_ENTROPY}},
            "run.base: objective trades needs pairs of clean and attacked images, but there is no run.base.attack",
        ),
        ({"run__base__objective__on": "both"}, "run.base: objective.on 'both' needs pairs"),
        ({"run__base__targets__order": ("partial_mix",)}, "run.base: targets partial_mix needs pairs"),
        (
            {"run__base__objective__on": "both", "run__base__attack": FGSM, "run__base__two_updates": "attack"},
            "run.base: objective.on 'both' needs pairs of clean and attacked images, but two_updates makes none",
        ),
        (
            {"run__base__objective": {"name": "fixers", "loss": CROSS_ENTROPY}, "run__base__attack": FGSM},
            "run.base.objective: fixers needs a patched model",
        ),
    ],
)
def test_mistakes_in_a_method_are_one_clear_line_before_anything_is_trained(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        from_config(changed(**changes))
    assert "\n" not in str(caught.value)


def test_how_steps_are_computed_is_passed_on():
    """Only what changes the result is part of what a run is."""
    keys = {"steps_per_call": 5, "remat": True, "gradient_accumulation": 2}
    built = from_config(changed(**{f"run__base__{key}": value for key, value in keys.items()}))
    run, plain = built.runs[0], from_config(changed()).runs[0]
    shapes = jax.eval_shape(lambda: blocks.init(run.model, jax.random.key(0), built.facts.image_shape))
    method = run.method(shapes, {})
    assert (run.plan.steps_per_call, method.remat, method.microbatches) == (5, True, 2)
    here, there = run.identity["run"], plain.identity["run"]
    assert {key for key in here | there if here.get(key) != there.get(key)} == {"gradient_accumulation"}
    assert not {"steps_per_call", "remat"} & set(here)


def test_a_rule_that_no_parameter_follows_is_one_clear_line():
    built = from_config(changed(run__fixer__trainable="^fixers_"))
    fixer = built.runs[1]
    variables = jax.eval_shape(lambda: blocks.init(fixer.model, jax.random.key(0), built.facts.image_shape))
    with pytest.raises(UserError, match="rule '\\^fixers_' -> 'trained' matches no parameter"):
        fixer.method(variables, {"base": built.runs[0].model})


@pytest.mark.parametrize(
    "schedule, halfway",
    [
        ({"name": "cosine", "learning_rate": 0.2}, 0.1),
        ({"name": "step_decay", "learning_rate": 0.2, "epochs": (2,), "factor": 0.1}, 0.02),
    ],
)
def test_a_schedule_with_two_updates_a_batch_lasts_as_long_as_the_run(schedule, halfway):
    # Four epochs of 21 batches: 84 updates are all there are, or half of them.
    changes = {"run__base__attack": FGSM, "run__base__epochs": 4, "runs": ("base",)}
    changes["run__base__optimizer"] = {"name": "sgd", "schedule": schedule}
    rates = {}
    for two_updates in ("", "attack"):
        run = from_config(changed(**changes, run__base__two_updates=two_updates)).runs[0]
        assert run.plan.num_steps == 84
        rates[two_updates] = rate_after(run, 84 if two_updates else 42)
    assert rates == {two_updates: pytest.approx(halfway) for two_updates in rates}


def rate_after(run, updates):
    """The length of the next step along a gradient of 1, for plain gradient descent."""
    params = {"weight": jnp.zeros(())}
    optimizer = run.method(Variables(params, {}), {}).optimizer

    def update(state, _):
        steps, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params, value=jnp.float32(0))
        return state, -steps["weight"]

    return float(jax.lax.scan(update, optimizer.init(params), length=updates + 1)[1][-1])


@pytest.mark.parametrize("text, expected", [("8/255", 8 / 255), ("0.005", 0.005), ("inf", float("inf")), (3, 3)])
def test_numbers_may_be_fractions(text, expected):
    assert registry.number(text) == expected


def test_an_attack_of_a_config_is_the_attack_of_the_library():
    spec = {"name": "auto_pgd", "epsilon": "8/255", "num_steps": 7, "loss": "dlr", "step_size": "0.005"}
    named = build_attack("a", spec, "here")
    assert isinstance(named.attack, attacks.Attack) and not named.is_ensemble
    assert (named.attack.num_steps, named.threat_model) == (7, attacks.linf(8 / 255))
    assert (named.name, named.norm, named.epsilon, named.identity) == ("a", "linf", 8 / 255, spec)
    (stage,) = named.stages
    assert stage.attack(0) is named.attack and stage.num_rounds(10) == 1


def test_restarts_and_ensembles_of_a_config():
    named = build_attack("a", {"name": "fgsm", "epsilon": 0.1, "num_restarts": 3}, "here")
    assert not isinstance(named.attack, attacks.Attack)
    (stage,) = named.stages
    assert isinstance(stage.attack(0), attacks.Attack) and stage.num_rounds(10) == 3
    whole = whole_attack(named, "predicted", "here")
    assert [stage.num_rounds(10) for stage in whole.stages] == [1] and whole.stages[0].attack(0) is whole.attack
    ensemble = build_attack("a", {"name": "auto_attack", "epsilon": 0.1, "version": "rand"}, "here")
    assert [stage.name for stage in ensemble.stages] == ["apgd-ce", "apgd-dlr"]
    with pytest.raises(UserError, match="here: num_restarts must be 1 or more, and 1 for auto_attack"):
        build_attack("a", {"name": "auto_attack", "epsilon": 0.1, "num_restarts": 2}, "here")
    with pytest.raises(UserError, match=r"run.fixer.attack: auto_attack is for evaluation only"):
        from_config(changed(run__fixer__attack={"name": "auto_attack", "epsilon": 0.1, "made_on": "base"}))
