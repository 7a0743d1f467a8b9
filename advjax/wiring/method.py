"""How a run trains: transforms of its batches, its objective, its optimizer."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import optax

from advjax.names import (
    AUGMENTATIONS,
    AVERAGES,
    LOSSES,
    OBJECTIVES,
    OPTIMIZERS,
    SCHEDULES,
    TRANSFORMS,
    build,
    choose,
    number,
)
from advjax.training import augment, optimizers, partition, perturbed_weights, transforms, two_updates
from advjax.training.loop import Method, Plan
from advjax.training.step import train_step
from advjax.types import AttackFn, UserError, Variables


def build_method(
    spec: Mapping[str, Any],
    where: str,
    model: nn.Module,
    plan: Plan,
    steps_per_epoch: int,
    attack: AttackFn | None,
    made_on: str | None,
    asks: tuple[str, ...],
    variables: Variables,
    models: Mapping[str, nn.Module],
) -> Method:
    """The method that a run's config describes, for its untrained ``variables`` and the networks it asks.

    Raises:
      UserError: a name or a number in it makes no sense.
    """
    steps = []
    if augmentations := [
        build(AUGMENTATIONS, {"name": name, **spec["augmentation"].get(name, {})}, f"{where}.augmentation")
        for name in spec["augmentation"]["order"]
    ]:
        steps.append(transforms.augment(augment.chain(*augmentations)))
    step = train_step
    if spec["two_updates"]:
        step = _two_updates(spec["two_updates"], attack, made_on, where)
    elif attack is not None and made_on is not None:
        steps.append(transforms.perturb(attack, made_on))
    steps += [
        build(TRANSFORMS, {"name": name, **spec["targets"].get(name, {})}, f"{where}.targets")
        for name in spec["targets"]["order"]
    ]
    objective_spec = dict(spec["objective"])
    loss = build(LOSSES, objective_spec.pop("loss"), f"{where}.objective.loss")
    objective = build(OBJECTIVES, objective_spec, f"{where}.objective", model, loss)
    rules = ((spec["trainable"], "trained"),) if spec["trainable"] else ()
    labels = partition.label_params(variables.params, rules, default="frozen" if rules else "trained")
    by_label = {
        "trained": _optimizer(spec["optimizer"], f"{where}.optimizer", plan, steps_per_epoch),
        "frozen": partition.FROZEN,
    }
    trainable = partition.trainable_mask(labels, by_label)
    if gamma := number(spec["weight_perturbation"]):
        objective = perturbed_weights.with_weight_perturbation(objective, gamma, trainable)
    return Method(
        model=model,
        objective=objective,
        transforms=tuple(steps),
        optimizer=partition.partitioned(by_label, labels),
        trainable=trainable,
        models={name: models[name] for name in asks},
        average=build(AVERAGES, spec["average"], f"{where}.average") if spec["average"] else None,
        step=step,
    )


def _two_updates(kind: str, attack: AttackFn | None, made_on: str | None, where: str) -> Callable[..., Any]:
    if kind not in ("attack", "reused_gradient"):
        raise UserError(f"{where}: two_updates must be 'attack', 'reused_gradient' or '', got {kind!r}")
    if attack is None or made_on != "self":
        raise UserError(f"{where}: two_updates needs an attack that is made on 'self'")
    return two_updates.two_updates(attack, kind == "reused_gradient")


def _optimizer(spec: Mapping[str, Any], where: str, plan: Plan, steps_per_epoch: int) -> optax.GradientTransformation:
    spec = dict(spec)
    schedule, clip = dict(spec.pop("schedule")), number(spec.pop("clip", 0))
    kind = schedule.get("name")
    choose(SCHEDULES, kind, f"{where}.schedule")
    if kind == "step_decay":
        epochs = schedule.pop("epochs")
        steps = [round(number(epoch) * steps_per_epoch) for epoch in epochs]
        rates = {"learning_rate": build(SCHEDULES, schedule | {"boundaries": steps}, f"{where}.schedule")}
    elif kind in ("constant", "reduce_on_plateau"):
        rates = {"learning_rate": number(schedule.pop("learning_rate"))}
    elif kind == "one_cycle":
        rate, momentum = build(SCHEDULES, schedule | {"num_steps": plan.num_steps}, f"{where}.schedule")
        rates = {"learning_rate": rate} | ({"momentum": momentum} if spec["name"] == "sgd" else {})
    else:
        rates = {"learning_rate": build(SCHEDULES, schedule | {"num_steps": plan.num_steps}, f"{where}.schedule")}
    optimizer = build(OPTIMIZERS, spec | rates, where)
    if kind == "reduce_on_plateau":
        optimizer = build({kind: optimizers.with_plateaus}, schedule, f"{where}.schedule", optimizer, steps_per_epoch)
    return optimizers.with_clipping(optimizer, clip) if clip else optimizer
