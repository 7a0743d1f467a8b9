"""Attacks by name."""

from collections.abc import Callable, Mapping
from typing import Any

from advjax.experiment.registry import ATTACK_LOSSES, ATTACKS, NOISES, NORMS, STAGED_ATTACKS, build, choose, number
from advjax.experiment.spec import NamedAttack
from advjax.types import UserError


def build_attack(
    name: str, spec: Mapping[str, Any], where: str, table: Mapping[str, Callable[..., Any]] | None = None
) -> NamedAttack:
    """An attack from ``{"name": ..., "norm": ..., "epsilon": ..., "num_restarts": ..., other arguments}``.

    Noise has a level of its own, and neither norm nor epsilon nor restarts.
    """
    if table is None:
        table = {**ATTACKS, **NOISES}
    described, spec, table = dict(spec), dict(spec), {**table, **STAGED_ATTACKS}
    if spec.get("name") in NOISES and spec["name"] in table:
        noise = build(table, spec, where)
        return NamedAttack(name, noise.threat_model, noise, 1, None, described)
    if spec.get("epsilon") is None:
        raise UserError(f"{where}: epsilon is missing; write for example 0.03 or '8/255', or 'inf' for a minimum norm")
    norm, epsilon, num_restarts = spec.pop("norm", "linf"), spec.pop("epsilon", None), spec.pop("num_restarts", 1)
    try:
        epsilon = number(epsilon)
    except ValueError:
        raise UserError(f"{where}: epsilon {epsilon!r} is not a number; write for example 0.03 or '8/255'") from None
    search_dtype = spec.pop("search_dtype", None) if spec.get("name") in STAGED_ATTACKS else None
    if search_dtype not in (None, "bfloat16", "float16"):
        raise UserError(f"{where}: search_dtype must be 'bfloat16' or 'float16', got {search_dtype!r}")
    threat_model = build(NORMS, {"name": norm, "epsilon": epsilon}, f"{where}: norm")
    if "loss" in spec:
        spec["loss"] = choose(ATTACK_LOSSES, spec["loss"], f"{where}: loss")
    if num_restarts < 1 or (num_restarts > 1 and spec.get("name") in STAGED_ATTACKS):
        raise UserError(f"{where}: num_restarts must be 1 or more, and 1 for {', '.join(STAGED_ATTACKS)}")
    attack = build(table, spec, where, threat_model)
    return NamedAttack(name, threat_model, attack, num_restarts, search_dtype, described)


def known_label_use(value: str, where: str) -> str:
    """``value``, unless it is neither "true" nor "predicted"."""
    if value not in ("true", "predicted"):
        raise UserError(f"{where}: labels must be 'true' or 'predicted', got {value!r}")
    return value
