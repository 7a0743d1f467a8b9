"""One run: its model, its data, how long it trains, and by what method."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from advjax import data
from advjax.evaluation.adversarial_sets import FORMATS
from advjax.experiment.build_attack import build_attack, known_label_use, whole_attack
from advjax.experiment.build_method import build_method
from advjax.experiment.build_model import build_model
from advjax.experiment.registry import ATTACKS, TRAINING_ATTACKS, number
from advjax.experiment.spec import AdversarialCopies, DataFacts, GivenNetwork, PlacedAttack, Run
from advjax.training.loop import Method, Plan
from advjax.types import UserError, Variables

COPY_FORMATS = (*FORMATS, "float16")
"""Formats that adversarial copies of training images may be stored in."""
SELECT_METRICS = ("score", "accuracy", "attacked_accuracy")
"""The metrics of `advjax.jobs.validation` that the best checkpoint may be chosen by."""
_OF_PLAN = ("batch_size", "log_every", "select", "select_metric", "patience", "steps_per_call")
"""Keys of a run that its ``Plan`` has under the same names."""
_SAME_RESULT = ("steps_per_call", "remat")
"""Keys of a run that change how it is computed, but not what, and may change when it resumes."""
_OF_EVERY_PGD = ("norm", "epsilon", "num_steps", "step_size", "num_restarts", "made_on")


def build_run(
    name: str,
    config: Mapping[str, Any],
    facts: DataFacts,
    earlier: Mapping[str, Run],
    network: GivenNetwork | None = None,
) -> Run:
    """The run that a complete config describes under ``name``.

    Args:
      name: of the run.
      config: the whole config.
      facts: about the data.
      earlier: the runs before it, which it may start from, patch or attack.
      network: a trained one that is used instead of what the config describes.

    Raises:
      UserError: something in it is unknown or makes no sense.
    """
    spec, where = config["run"][name], f"run.{name}"
    start = spec["model"].get("base") or spec["start"] or None
    training = _placed(spec["attack"], f"{where}.attack", {**ATTACKS, **TRAINING_ATTACKS})
    validation = _placed(_validation_attack(spec), f"{where}.validation_attack", ATTACKS)
    sources = _sources(spec, training)
    copies = _copies(spec["copies"], f"{where}.copies")
    needed = (start, *sources, copies and copies.made_on, validation and validation.made_on)
    needed = tuple(dict.fromkeys(other for other in needed if other not in (None, "self")))
    for other in needed:
        if other not in earlier:
            raise UserError(f"{where}: no earlier run is named {other!r}; earlier are {', '.join(earlier) or 'none'}")
    model, given = network or build_model(spec["model"], f"{where}.model", facts, earlier)
    is_taken = bool(spec["checkpoint"]) or given is not None
    extra_rows = _extra_rows(spec, f"{where}.extra_images", config)
    steps_per_epoch = data.steps_per_epoch(facts.num_examples[name], spec["batch_size"] - extra_rows)
    plan = _plan(spec, where, steps_per_epoch, extra_rows, config, is_taken)
    if plan.select_metric == "attacked_accuracy" and validation is None:
        raise UserError(f"{where}: no attack is made on the validation images; select_metric must be another")
    if not is_taken and not facts.num_validation:
        _check_without_validation(plan, where)
    method = _not_trained
    if not is_taken:
        method = build_method(spec, where, model, plan, steps_per_epoch, training, sources)
    return Run(
        name=name,
        model=model,
        start=start,
        train_fraction=number(spec["train_fraction"]),
        copies=copies,
        undersample=bool(spec["undersample"]),
        extra_images=spec["extra_images"]["file"],
        method=method,
        sources=sources,
        validation_attack=validation,
        plan=plan,
        validate_loss=bool(spec["validate_loss"]),
        checkpoint=spec["checkpoint"],
        given=given,
        identity=_identity(spec, config, facts, {other: earlier[other] for other in needed}),
    )


def _not_trained(variables: Variables, models: Mapping[str, nn.Module]) -> Method:
    """The method of a run that is taken from elsewhere; nobody asks for it."""
    raise AssertionError("a run that is taken is not trained")


def _identity(
    spec: Mapping[str, Any], config: Mapping[str, Any], facts: DataFacts, needed: Mapping[str, Run]
) -> dict[str, Any]:
    """All that decides the result of training.

    Where the data lie and how many threads read them does not, nor does how steps are grouped and features are kept.
    """
    return {
        "data": {key: value for key, value in config["data"].items() if key not in ("dir", "num_workers")},
        "data_set": facts.name,
        "seed": config["seed"],
        "run": {key: value for key, value in spec.items() if key not in _SAME_RESULT},
        "needs": {name: run.identity for name, run in needed.items()},
    }


def _sources(spec: Mapping[str, Any], training: PlacedAttack | None) -> tuple[str, ...]:
    """Earlier runs whose networks the training step evaluates: to attack them, or for the labels of noisy twins."""
    tables = (spec["before_attack"], spec["targets"])
    twin_labels = [table.get(name, {}).get("model") for table in tables for name in table["order"]]
    networks = (training and training.made_on, *twin_labels)
    return tuple(dict.fromkeys(other for other in networks if other not in (None, "self")))


def _placed(spec: Mapping[str, Any] | None, where: str, table: Mapping[str, Callable[..., Any]]) -> PlacedAttack | None:
    """An attack with ``made_on`` and ``labels``, as training and validation have it."""
    if not spec:
        return None
    spec = dict(spec)
    made_on, label_use = spec.pop("made_on", "self"), spec.pop("labels", "true")
    return PlacedAttack(whole_attack(build_attack("train", spec, where, table), label_use, where), made_on)


def _validation_attack(spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The attack to validate with, as ``defaults.RUN`` says."""
    training = spec["attack"]
    if spec["validation_attack"] or not training or training.get("name") not in TRAINING_ATTACKS:
        return spec["validation_attack"] or training
    return {"name": "pgd", **{key: training[key] for key in _OF_EVERY_PGD if key in training}}


def _copies(spec: Mapping[str, Any], where: str) -> AdversarialCopies | None:
    if not spec["order"]:
        return None
    if spec["format"] not in COPY_FORMATS:
        raise UserError(f"{where}: format must be one of {', '.join(COPY_FORMATS)}, got {spec['format']!r}")
    label_use, attacks = known_label_use(spec["labels"], where), []
    for name in spec["order"]:
        if name not in spec:
            raise UserError(f"{where}: {name!r} is in the order but not described")
        attacks.append(whole_attack(build_attack(name, spec[name], f"{where}.{name}"), label_use, f"{where}.{name}"))
    return AdversarialCopies(spec["made_on"], tuple(attacks), label_use, spec["format"])


def _check_without_validation(plan: Plan, where: str) -> None:
    """Refuses what would need validation images where there are none."""
    choice = "select is 'best'" if plan.select == "best" else f"patience is {plan.patience}" if plan.patience else ""
    if choice:
        raise UserError(
            f"{where}: {choice}, but there are no validation images to judge by: set data.num_validation (or the "
            f"second of data.fractions) above 0, or select='last' and patience=0"
        )


def _extra_rows(spec: Mapping[str, Any], where: str, config: Mapping[str, Any]) -> int:
    """Number of extra images in every batch."""
    if not spec["extra_images"]["file"]:
        return 0
    if config["data"]["stream"]:
        raise UserError(f"{where}: extra images cannot be streamed; set data.stream to False, or file to ''")
    share, size = number(spec["extra_images"]["share"]), spec["batch_size"]
    rows = round(share * size) if isinstance(share, int | float) and 0 < share < 1 else 0
    if not 0 < rows < size:
        raise UserError(
            f"{where}: share must lie between 0 and 1 and leave room in a batch of {size} for both kinds of images, "
            f"got {share!r}"
        )
    return rows


def _plan(
    spec: Mapping[str, Any], where: str, steps: int, extra_rows: int, config: Mapping[str, Any], is_taken: bool
) -> Plan:
    # A run that is taken from elsewhere need not say how long it would train.
    num_steps = spec["num_steps"] or spec["epochs"] * steps or int(is_taken)
    if num_steps < 1:
        raise UserError(f"{where}: epochs or num_steps must be at least 1")
    for key, least in (("log_every", 1), ("validate_every_epochs", 1), ("patience", 0)):
        if spec[key] < least:
            raise UserError(f"{where}: {key} must be at least {least}, got {spec[key]!r}")
    if spec["select"] not in ("best", "last"):
        raise UserError(f"{where}: select must be 'best' or 'last', got {spec['select']!r}")
    if spec["select_metric"] not in SELECT_METRICS:
        known = ", ".join(map(repr, SELECT_METRICS))
        raise UserError(f"{where}: select_metric must be one of {known}, got {spec['select_metric']!r}")
    every = max(1, min(spec["validate_every_epochs"] * steps, num_steps))
    return Plan(
        num_steps=num_steps,
        validate_every=every,
        seed=config["seed"],
        num_workers=config["data"]["num_workers"],
        extra_rows=extra_rows,
        **{key: spec[key] for key in _OF_PLAN},
    )
