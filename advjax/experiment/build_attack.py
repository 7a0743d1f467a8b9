"""Attacks by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from advjax import attacks
from advjax.attacks.combine import restarts
from advjax.evaluation.attack_runs import NamedAttack
from advjax.experiment.registry import (
    ATTACK_ENSEMBLES,
    ATTACK_LOSSES,
    ATTACKS,
    NOISES,
    NORMS,
    build,
    choose,
    number,
)
from advjax.types import AttackFn, UserError

_SEARCH_DTYPES = (None, "bfloat16", "float16")


def build_attack(
    name: str, spec: Mapping[str, Any], where: str, table: Mapping[str, Callable[..., Any]] | None = None
) -> NamedAttack:
    """An attack from ``{"name": ..., "norm": ..., "epsilon": ..., "num_restarts": ..., other arguments}``.

    Noise has a level instead of a norm, an epsilon and restarts.  ``search_dtype`` is the type that an attack of an
    evaluation computes in ("bfloat16" or "float16"); what it finds is verified in the type of the model.

    Args:
      name: that the report gives it.
      spec: the description.
      where: the config key, for error messages.
      table: the attacks to choose from besides ensembles; by default attacks and noise.

    Raises:
      UserError: something in the description is unknown or makes no sense.
    """
    arguments, table = dict(spec), {**ATTACKS, **NOISES} if table is None else table
    if spec.get("name") in NOISES and spec["name"] in table:
        noise = build(table, arguments, where)
        return _single(name, noise, 1, spec, is_noise=True)
    threat_model = _threat_model(arguments, where)
    named, is_ensemble = {**table, **ATTACK_ENSEMBLES}, spec.get("name") in ATTACK_ENSEMBLES
    has_own_restarts = "num_restarts" in inspect.signature(choose(named, spec.get("name"), where)).parameters
    num_restarts = 1 if has_own_restarts else arguments.pop("num_restarts", 1)
    if not isinstance(num_restarts, int) or isinstance(num_restarts, bool):
        raise UserError(f"{where}: num_restarts must be a whole number, got {num_restarts!r}")
    search_dtype = arguments.pop("search_dtype", None)
    if search_dtype not in _SEARCH_DTYPES:
        raise UserError(f"{where}: search_dtype must be 'bfloat16' or 'float16', got {search_dtype!r}")
    if "loss" in arguments:
        arguments["loss"] = choose(ATTACK_LOSSES, arguments["loss"], f"{where}: loss")
    if num_restarts < 1 or (num_restarts > 1 and is_ensemble):
        raise UserError(f"{where}: num_restarts must be 1 or more, and 1 for {', '.join(ATTACK_ENSEMBLES)}")
    built = build(named, arguments, where, threat_model)
    if is_ensemble:
        return NamedAttack(name, threat_model, built, None, False, False, search_dtype, dict(spec))
    if isinstance(built, attacks.Attack):
        attack = _single(name, built, num_restarts, spec)
    else:
        attack = _coupled(name, built, threat_model, num_restarts, spec, where)
    return attack._replace(search_dtype=search_dtype)


def single_attack(attack: NamedAttack, label_use: str, where: str) -> AttackFn:
    """The attack as one function of a batch, for training: every image gets the whole of it.

    Raises:
      UserError: it is an ensemble, which only evaluation can run, or ``label_use`` is unknown.
    """
    if attack.attack is None:
        raise UserError(f"{where}: {attack.identity['name']} is for evaluation only")
    if attack.search_dtype is not None:
        raise UserError(
            f"{where}: search_dtype is for attacks of an evaluation, which verifies what they find; "
            "those of training compute in the run's compute_dtype"
        )
    if known_label_use(label_use, where) == "predicted":
        return attacks.with_predicted_labels(attack.attack)
    return attack.attack


def whole_attack(attack: NamedAttack, label_use: str, where: str) -> NamedAttack:
    """A single attack as training runs it: one round in which every image gets the whole of it, restarts included.

    Raises:
      UserError: as ``single_attack``.
    """
    function = single_attack(attack, label_use, where)
    stage = attacks.Stage(attack.name, lambda number: function, lambda num_classes: 1)
    return attack._replace(stages=(stage,), attack=function)


def known_label_use(value: str, where: str) -> str:
    """``value``, unless it is neither "true" nor "predicted"."""
    if value not in ("true", "predicted"):
        raise UserError(f"{where}: labels must be 'true' or 'predicted', got {value!r}")
    return value


def _threat_model(arguments: dict[str, Any], where: str) -> attacks.ThreatModel:
    """Takes norm and epsilon out of the arguments."""
    if arguments.get("epsilon") is None:
        raise UserError(f"{where}: epsilon is missing; write for example 0.03 or '8/255', or 'inf' for a minimum norm")
    norm, epsilon = arguments.pop("norm", "linf"), arguments.pop("epsilon")
    try:
        epsilon = number(epsilon)
    except (TypeError, ValueError):
        raise UserError(f"{where}: epsilon {epsilon!r} is not a number; write for example 0.03 or '8/255'") from None
    return build(NORMS, {"name": norm, "epsilon": epsilon}, f"{where}: norm")


def _coupled(
    name: str,
    function: Any,
    threat_model: attacks.ThreatModel,
    num_restarts: int,
    spec: Mapping[str, Any],
    where: str,
) -> NamedAttack:
    """An attack that is a plain function of a batch, because its images depend on one another."""
    try:
        inspect.signature(function).bind("logits_fn", "images", "labels", "rng")
    except (TypeError, ValueError):
        kind = type(function).__name__
        raise UserError(
            f"{where}: {spec['name']} must return an advjax.attacks.Attack, or a function (logits_fn, images, labels, "
            f"rng) -> AttackResult, and returned {kind}"
        ) from None
    repeated = attacks.with_restarts(function, num_restarts) if num_restarts > 1 else function
    stages = (restarts(name, function, num_restarts),)
    return NamedAttack(name, threat_model, stages, repeated, False, False, None, dict(spec))


def _single(
    name: str, attack: attacks.Attack, num_restarts: int, spec: Mapping[str, Any], is_noise: bool = False
) -> NamedAttack:
    # A minimum-norm attack is the better the closer its result, one inside a ball is done at its first success.
    keep = "first" if attack.threat_model.is_bounded else "closest"
    repeated = attacks.with_restarts(attack, num_restarts, keep=keep) if num_restarts > 1 else attack
    stages = (restarts(name, attack, num_restarts),)
    is_query = attack.objective is None
    return NamedAttack(name, attack.threat_model, stages, repeated, is_noise, is_query, None, dict(spec))
