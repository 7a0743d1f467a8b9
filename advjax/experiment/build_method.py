"""How a run trains: transforms of its batches, its objective, its optimizer."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import optax

from advjax.experiment.registry import (
    AUGMENTATIONS,
    AVERAGES,
    LOSSES,
    OBJECTIVES,
    OPTIMIZERS,
    PAIRING,
    SCHEDULES,
    TRANSFORMS,
    build,
    choose,
    number,
    required,
)
from advjax.experiment.spec import PlacedAttack
from advjax.models.compute_dtype import COMPUTE_DTYPES
from advjax.training import augment, optimizers, partition, transforms, two_updates, weight_perturbation
from advjax.training.loop import Method, Plan
from advjax.training.step import train_step
from advjax.types import UserError, Variables

_COMPUTED = {"step_decay": "boundaries", "one_cycle": "num_steps", "cosine": "num_steps"}
"""What of a schedule follows from the run, and is not for the config to say."""


def build_method(
    spec: Mapping[str, Any],
    where: str,
    model: nn.Module,
    plan: Plan,
    steps_per_epoch: int,
    training: PlacedAttack | None,
    sources: tuple[str, ...],
) -> Callable[[Variables, Mapping[str, nn.Module]], Method]:
    """``(untrained variables, models of earlier runs) -> Method``: what a run's config describes.

    All but the choice of the parameters that learn is built at once, so that a mistake in the last of several runs
    shows before the first is trained.

    Raises:
      UserError: a name or a number in it makes no sense.
    """
    if spec["compute_dtype"] not in COMPUTE_DTYPES:
        known = " or ".join(map(repr, COMPUTE_DTYPES))
        raise UserError(f"{where}: compute_dtype must be {known}, got {spec['compute_dtype']!r}")
    steps = []
    if augmentations := [
        build(AUGMENTATIONS, {"name": name, **spec["augmentation"].get(name, {})}, f"{where}.augmentation")
        for name in spec["augmentation"]["order"]
    ]:
        steps.append(transforms.augment(augment.chain(*augmentations)))
    steps += _transforms(spec, "before_attack", where)
    step, updates = train_step, 1
    if spec["two_updates"]:
        step, updates = _two_updates(spec["two_updates"], training, where), 2
    elif training is not None:
        steps.append(transforms.perturb(training.function, training.made_on, spec["gradient_accumulation"]))
    steps += _transforms(spec, "targets", where)
    objective_spec = dict(spec["objective"])
    _check_pairs(spec, training, where)
    loss = build(LOSSES, required(objective_spec, "loss", f"{where}.objective"), f"{where}.objective.loss")
    del objective_spec["loss"]
    objective = build(OBJECTIVES, objective_spec, f"{where}.objective", model, loss)
    optimizer = _optimizer(spec["optimizer"], f"{where}.optimizer", updates * plan.num_steps, updates * steps_per_epoch)
    average = build(AVERAGES, spec["average"], f"{where}.average") if spec["average"] else None
    gamma = number(spec["weight_perturbation"])

    def method(variables: Variables, models: Mapping[str, nn.Module]) -> Method:
        rules = ((spec["trainable"], "trained"),) if spec["trainable"] else ()
        labels = partition.label_params(variables.params, rules, default="frozen" if rules else "trained")
        by_label = {"trained": optimizer, "frozen": partition.FROZEN}
        trainable = partition.trainable_mask(labels, by_label)
        return Method(
            model=model,
            objective=weight_perturbation.with_weight_perturbation(objective, gamma, trainable) if gamma else objective,
            transforms=tuple(steps),
            optimizer=partition.partitioned(by_label, labels),
            trainable=trainable,
            models={name: models[name] for name in sources},
            average=average,
            step=step,
            compute_dtype=spec["compute_dtype"],
            remat=bool(spec["remat"]),
            microbatches=spec["gradient_accumulation"],
        )

    return method


def _transforms(spec: Mapping[str, Any], key: str, where: str) -> list[transforms.Transform]:
    """The transforms that are listed under "targets" or "before_attack"."""
    names = spec[key]["order"]
    return [build(TRANSFORMS, {"name": name, **spec[key].get(name, {})}, f"{where}.{key}") for name in names]


def _check_pairs(spec: Mapping[str, Any], training: PlacedAttack | None, where: str) -> None:
    """Refuses what learns from pairs of clean and attacked images where nothing makes them."""
    if early := [name for name in spec["before_attack"]["order"] if name in PAIRING]:
        raise UserError(f"{where}: before_attack {early[0]} needs attacked images; list it under targets")
    if training is not None and not spec["two_updates"]:
        return
    objective = spec["objective"]
    pairing = [f"objective {objective.get('name')}"] if objective.get("name") in PAIRING else []
    pairing += ["objective.on 'both'"] if objective.get("on") == "both" else []
    pairing += [f"targets {name}" for name in spec["targets"]["order"] if name in PAIRING]
    if pairing:
        without = "two_updates makes none" if training else f"there is no {where}.attack"
        raise UserError(f"{where}: {pairing[0]} needs pairs of clean and attacked images, but {without}")


def _two_updates(kind: str, training: PlacedAttack | None, where: str) -> Callable[..., Any]:
    if kind not in ("attack", "reused_gradient"):
        raise UserError(f"{where}: two_updates must be 'attack', 'reused_gradient' or '', got {kind!r}")
    if training is None or training.made_on != "self":
        raise UserError(f"{where}: two_updates needs an attack that is made on 'self'")
    return two_updates.two_updates(training.function, kind == "reused_gradient")


def _optimizer(
    spec: Mapping[str, Any], where: str, num_updates: int, updates_per_epoch: int
) -> optax.GradientTransformation:
    schedule = dict(required(spec, "schedule", where))
    spec = {key: value for key, value in spec.items() if key != "schedule"}
    if "learning_rate" in spec:
        raise UserError(f"{where}: learning_rate belongs into {where}.schedule, which would overwrite it here")
    clip, where_schedule = number(spec.pop("clip", 0)), f"{where}.schedule"
    choose(SCHEDULES, schedule.get("name"), where_schedule)
    kind, plateaus = schedule["name"], {}
    if (computed := _COMPUTED.get(kind)) in schedule:
        raise UserError(f"{where_schedule}: {computed} follows from the run; leave it out")
    if kind == "step_decay":
        epochs = required(schedule, "epochs", where_schedule)
        del schedule["epochs"]
        schedule["boundaries"] = [round(number(epoch) * updates_per_epoch) for epoch in epochs]
    elif kind == "reduce_on_plateau":
        rate = required(schedule, "learning_rate", where_schedule)
        plateaus = {key: value for key, value in schedule.items() if key != "learning_rate"}
        schedule = {"name": "constant", "learning_rate": rate}
    elif kind != "constant":
        schedule["num_steps"] = num_updates
    _check_rates(schedule, where_schedule)
    rates = build(SCHEDULES, schedule, where_schedule)
    if kind == "one_cycle":
        spec |= _momentum(spec, schedule, where, rates[1])
        rates = rates[0]
    optimizer = build(OPTIMIZERS, spec | {"learning_rate": rates}, where)
    if plateaus:
        optimizer = build({kind: optimizers.with_plateaus}, plateaus, where_schedule, optimizer, updates_per_epoch)
    return optimizers.with_clipping(optimizer, clip) if clip else optimizer


def _check_rates(schedule: Mapping[str, Any], where: str) -> None:
    """A learning rate is positive and finite."""
    for key, value in schedule.items():
        if key.endswith("learning_rate"):
            rate = number(value)
            if not isinstance(rate, int | float) or not 0 < rate < math.inf:
                raise UserError(f"{where}: {key} must be positive and finite, got {value!r}")


def _momentum(
    spec: Mapping[str, Any], schedule: Mapping[str, Any], where: str, momentum: optax.Schedule
) -> dict[str, Any]:
    """The momentum schedule that mirrors the one-cycle learning rate, for optimizers that have momentum."""
    if spec.get("name") == "sgd":
        if "momentum" in spec:
            raise UserError(
                f"{where}: one_cycle schedules the momentum as well and would overwrite it: give momentum_high and "
                "momentum_low in the schedule, or choose another schedule"
            )
        return {"momentum": momentum}
    if given := [key for key in ("momentum_high", "momentum_low") if key in schedule]:
        raise UserError(f"{where}.schedule: {given[0]} is for sgd; {spec.get('name')} has no such momentum")
    return {}
