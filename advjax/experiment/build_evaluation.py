"""What is measured: attacks, defenses, the report card, the curve over epsilon."""

from collections.abc import Mapping, Sequence
from typing import Any

from advjax.defenses.mean_prediction import OVER as MEAN_OVER
from advjax.evaluation.adversarial_sets import FORMATS
from advjax.experiment import defaults
from advjax.experiment.build_attack import build_attack, known_label_use
from advjax.experiment.registry import DEFENSES, build, number, required
from advjax.experiment.spec import CurvePlan, DefensePlan, EvaluationPlan, Run
from advjax.types import Array, AttackFn, UserError


def build_evaluation(spec: Mapping[str, Any], runs: Mapping[str, Run], described: Mapping[str, Any]) -> EvaluationPlan:
    """The evaluation that a config describes, of ``runs``, which may be fewer than are ``described``.

    Raises:
      UserError: something in it is unknown or makes no sense.
    """
    named = tuple(
        build_attack(name, _described(spec["attacks"], name), f"evaluation.attacks.{name}")
        for name in spec["attacks"]["order"]
    )
    defenses = tuple(_defense(name, spec["defenses"], runs) for name in spec["defenses"]["order"])
    made_on = _made_on(spec["made_on"], runs, defenses)
    if spec["pictured"] and spec["pictured"] not in spec["attacks"]["order"]:
        names = ", ".join(spec["attacks"]["order"])
        raise UserError(f"evaluation.pictured: {spec['pictured']!r} is not among the attacks {names}")
    if spec["num_examples"] < 0 or spec["batch_size"] < 1:
        raise UserError("evaluation: num_examples must be 0 or more and batch_size at least 1")
    if spec["protocol"] not in ("sound", "faithful"):
        raise UserError(f"evaluation.protocol must be 'sound' or 'faithful', got {spec['protocol']!r}")
    if spec["save_adversarial"] not in ("", *FORMATS):
        raise UserError(
            f"evaluation.save_adversarial must be {', '.join(map(repr, FORMATS))} or '', "
            f"got {spec['save_adversarial']!r}"
        )
    return EvaluationPlan(
        named,
        made_on,
        known_label_use(spec["transfer_labels"], "evaluation.transfer_labels"),
        spec["protocol"],
        _faithful(spec),
        spec["num_examples"],
        spec["batch_size"],
        spec["pictured"],
        spec["num_pictures"],
        defenses,
        spec["num_checked"],
        _checked(spec["checked"], described) or tuple(runs),
        _curve(spec["curve"]),
        spec["save_adversarial"],
    )


def _made_on(given: str | Sequence[str], runs: Mapping[str, Run], defenses: Sequence[DefensePlan]) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))
    defended = [f"{defense.run}+{defense.name}" for defense in defenses]
    if unknown := [name for name in names or ("",) if name not in (*runs, *defended)]:
        known = f"runs are {', '.join(runs)}" + (f"; with defenses, {', '.join(defended)}" if defended else "")
        raise UserError(f"evaluation.made_on: no run is named {unknown[0]!r}; {known}")
    return names


def _faithful(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Attacks that are described may be named even if they are left out this time."""
    given, described = spec["faithful_attacks"], spec["attacks"]
    if unknown := [name for name in given if name not in described]:
        raise UserError(f"evaluation.faithful_attacks: {unknown[0]!r} is not among evaluation.attacks")
    return tuple(given)


def _checked(given: Sequence[str], described: Mapping[str, Any]) -> tuple[str, ...]:
    """Runs that are described may be named even if they are left out this time."""
    if unknown := [name for name in given if name not in described]:
        raise UserError(f"evaluation.checked: no run is named {unknown[0]!r}; runs are {', '.join(described)}")
    return tuple(given)


def _defense(name: str, described: Mapping[str, Any], runs: Mapping[str, Run]) -> DefensePlan:
    where = f"evaluation.defenses.{name}"
    if name not in described:
        raise UserError(f"evaluation.defenses: {name!r} is in the order but not described")
    spec = dict(described[name])
    run = spec.pop("run", None)
    if run not in runs:
        raise UserError(f"{where}: no run is named {run!r}; runs are {', '.join(runs)}")
    numbers = {key: spec.pop(key, default) for key, default in defaults.DEFENSE.items()}
    if not all(_is_count(value) for key, value in numbers.items() if key != "mean_over"):
        raise UserError(f"{where}: num_draws, num_votes, num_samples must be whole numbers of at least 1")
    if numbers["mean_over"] not in MEAN_OVER:
        raise UserError(f"{where}: mean_over must be one of {', '.join(MEAN_OVER)}, got {numbers['mean_over']!r}")
    identity = {key: value for key, value in described[name].items() if key != "run"}
    return DefensePlan(name, run, build(DEFENSES, spec, where), **numbers, identity={**identity, **numbers})


def _curve(spec: Mapping[str, Any] | None) -> CurvePlan | None:
    if not spec:
        return None
    where = "evaluation.curve"
    keys = ("attack", "epsilons", "num_examples")
    if unknown := sorted(set(spec) - set(keys)):
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(keys)}")
    attack, epsilons, num_examples = (required(spec, key, where) for key in keys)
    if not isinstance(attack, Mapping) or not _is_count(num_examples):
        raise UserError(
            f"{where}: attack must be described by its name and arguments, and num_examples a whole number of at least "
            f"1, got {attack!r} and {num_examples!r}"
        )
    attack, epsilons = dict(attack), _numbers(epsilons, f"{where}: epsilons")
    built = build_attack("curve", {**attack, "epsilon": 1.0}, where)
    if built.is_ensemble:
        raise UserError(f"{where}: {attack['name']} is an ensemble; choose a single attack")
    if built.search_dtype is not None:
        raise UserError(f"{where}: search_dtype has no effect on a curve, which does not verify what its attack finds")

    def attack_at(epsilon: Array) -> AttackFn:
        single = build_attack("curve", {**attack, "epsilon": epsilon}, where).attack
        assert single is not None
        return single

    return CurvePlan(attack["name"], built.norm, attack_at, epsilons, num_examples)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _numbers(given: Any, where: str) -> tuple[float, ...]:
    try:
        if isinstance(given, list | tuple):
            return tuple(float(number(value)) for value in given)
    except (TypeError, ValueError):
        pass
    raise UserError(f"{where} must be a list of numbers, got {given!r}")


def _described(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in table:
        raise UserError(f"evaluation.attacks: {name!r} is in the order but not described")
    return table[name]
