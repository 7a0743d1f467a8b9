"""The wiring diagram: from a config to the objects of an experiment.  Strings become functions here and nowhere else.

An experiment is an ordered set of named runs (one model trained by one method each) and a plan for their evaluation.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import flax.linen as nn
import ml_collections
import optax

from advjax import attacks, data, defaults
from advjax.data import Dataset
from advjax.models import fixer, resnet9
from advjax.training import augment, losses, objectives, optimizers, partition, transforms
from advjax.training.loop import Method, Plan
from advjax.types import AttackFn, UserError, Variables

ATTACKS = {
    "fgsm": attacks.fgsm,
    "bim": attacks.bim,
    "pgd": attacks.pgd,
    "auto_pgd": attacks.auto_pgd,
    "carlini_wagner_l2": attacks.carlini_wagner_l2,
    "carlini_wagner_linf": attacks.carlini_wagner_linf,
    "deepfool": attacks.deepfool,
    "fab": attacks.fab,
    "square": attacks.square,
}
STAGED_ATTACKS = {"auto_attack": attacks.auto_attack_stages}
NORMS = {"linf": attacks.linf, "l2": attacks.l2, "l1": attacks.l1}
ATTACK_LOSSES = {"ce": attacks.cross_entropy, "dlr": attacks.dlr, "margin": attacks.margin}
LOSSES = {
    "cross_entropy": lambda: losses.cross_entropy,
    "focal": losses.focal,
    "bce_on_softmax": lambda: losses.bce_on_softmax,
}
AUGMENTATIONS = {
    "pad_crop": augment.pad_crop,
    "horizontal_flip": augment.horizontal_flip,
    "vertical_flip": augment.vertical_flip,
    "solarize": augment.solarize,
    "coarse_dropout": augment.coarse_dropout,
    "gaussian_noise": augment.gaussian_noise,
    "brightness": augment.brightness,
    "affine": augment.affine,
}
MODELS = {"resnet9": resnet9.ResNet9, "fixers": fixer.with_fixers}
OBJECTIVES = {"supervised": objectives.supervised, "fixers": objectives.fixers}
SCHEDULES = {"one_cycle": optimizers.one_cycle, "cosine": optimizers.cosine, "constant": None}
OPTIMIZERS = {"sgd": optimizers.sgd, "adam": optimizers.adam, "adamw": optimizers.adamw}


class NamedAttack(NamedTuple):
    """An attack under the name that the report gives it."""

    name: str
    threat_model: attacks.ThreatModel
    attack: attacks.Attack | tuple[attacks.Stage, ...]
    """One attack, or stages of attacks for the images that are still robust."""
    num_restarts: int
    spec: dict[str, Any]
    """The attack as the config describes it."""

    @property
    def epsilon(self) -> float | None:
        """None for a minimum-norm attack."""
        return float(self.threat_model.epsilon) if self.threat_model.is_bounded else None

    @property
    def norm(self) -> str:
        """Name of the norm."""
        return self.threat_model.norm.name

    @property
    def stages(self) -> tuple[attacks.Stage, ...] | None:
        """The stages, None for a single attack."""
        return None if isinstance(self.attack, attacks.Attack) else self.attack

    def for_verdict(self) -> AttackFn:
        """A single attack with true labels, on to the next image at the first success."""
        assert isinstance(self.attack, attacks.Attack)
        return self._restarted(dataclasses.replace(self.attack, stop_on_success=True))

    def for_transfer(self, label_use: str) -> AttackFn:
        """The whole of a single attack on every image, with "true" or "predicted" labels."""
        assert isinstance(self.attack, attacks.Attack)
        attack = self._restarted(self.attack)
        return attacks.with_predicted_labels(attack) if label_use == "predicted" else attack

    def _restarted(self, attack: AttackFn) -> AttackFn:
        # A minimum-norm attack is better the closer its result is, one inside a ball is done at the first success.
        keep = "first" if self.threat_model.is_bounded else "closest"
        return attacks.with_restarts(attack, self.num_restarts, keep=keep) if self.num_restarts > 1 else attack


class Run(NamedTuple):
    """One model trained by one method."""

    name: str
    model: nn.Module
    start: str | None
    """The run whose variables this one starts from (or patches)."""
    train_fraction: float
    method: Callable[[Variables, Mapping[str, nn.Module]], Method]
    """``(untrained variables, models of earlier runs) -> Method``."""
    made_on: str | None
    """Where the training attack is made: "self", an earlier run, or None without an attack."""
    attack: AttackFn | None
    plan: Plan
    checkpoint: str
    """Folder of a finished run to take instead of training, or ""."""
    spec: dict[str, Any]
    """Everything that decides what training gives, as plain data."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Earlier runs that this one cannot do without."""
        made_on = (self.made_on,) if self.made_on not in (None, "self") else ()
        return tuple(dict.fromkeys([*([self.start] if self.start else []), *made_on]))


class Data(NamedTuple):
    """The splits of a data set."""

    train: Dataset
    validation: Dataset
    test: Dataset


class EvaluationPlan(NamedTuple):
    """What is measured on the test images."""

    attacks: tuple[NamedAttack, ...]
    made_on: str
    """The run that the transfer attacks are made on."""
    transfer_labels: str
    """"true" or "predicted"."""
    protocol: str
    """Of the transfer results: "sound" or "faithful"."""
    num_examples: int
    """The first so many test images; 0 for all."""
    batch_size: int
    pictured: str
    """The attack whose images the report shows."""
    num_pictures: int


class Experiment(NamedTuple):
    """Everything main needs."""

    title: str
    seed: int
    runs: tuple[Run, ...]
    data: Data
    evaluation: EvaluationPlan
    mapping: str
    config: dict[str, Any]
    """All of the above as plain data."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[h, w, c]"""
        return self.data.train.images.shape[1:]


def from_config(config: ml_collections.ConfigDict) -> Experiment:
    """The experiment that a config describes; loads its data.

    Raises:
      UserError: something in it is unknown or makes no sense.
    """
    spec = _complete(plain(config.copy_and_resolve_references()))
    described = spec["runs"]
    if not described or len(set(described)) != len(described):
        raise UserError(f"runs must name one or more different runs, got {described}")
    if unknown := [name for name in described if name not in spec["run"]]:
        raise UserError(f"runs names {unknown[0]!r}, but run describes only {', '.join(spec['run'])}")
    loaded = load_data(spec["data"], spec["seed"])
    runs: dict[str, Run] = {}
    for name in described:
        runs[name] = _run(name, spec, loaded, runs)
    evaluation = _evaluation(spec["evaluation"], runs)
    return Experiment(spec["title"], spec["seed"], tuple(runs.values()), loaded, evaluation, spec["mapping"], spec)


def _complete(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config with defaults for what it leaves out; a key that has no default is a mistake."""
    spec = defaults.changed(defaults.EXPERIMENT, spec)
    spec["run"] = {name: defaults.changed(defaults.RUN, run) for name, run in spec["run"].items()}
    described = [("", spec, defaults.EXPERIMENT), ("data.", spec["data"], defaults.DATA)]
    described += [("evaluation.", spec["evaluation"], defaults.EVALUATION)]
    described += [(f"run.{name}.", run, defaults.RUN) for name, run in spec["run"].items()]
    for path, given, known in described:
        if unknown := sorted(given.keys() - known.keys()):
            raise UserError(f"unknown key {path}{unknown[0]}; known are {', '.join(known)}")
    return spec


def load_data(config: Mapping[str, Any], seed: int) -> Data:
    """Train, validation and test split, each a function of (data set, seed) alone."""
    directory = config["dir"] or None
    train, test = (data.load(config["name"], split, directory=directory) for split in ("train", "test"))
    kept, held_out = data.train_validation(
        train.labels, num_validation=config["num_validation"], seed=seed, name=train.name
    )
    return Data(train.take(kept), train.take(held_out), test)


def plain(config: ml_collections.ConfigDict) -> Any:
    """A config as plain data, its tuples as lists."""
    return json.loads(config.to_json())


def number(value: Any) -> Any:
    """Numbers as they are; strings such as "8/255" or "0.005" become floats."""
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value))
    except (ValueError, ZeroDivisionError):
        return float(value)


def build_attack(name: str, spec: Mapping[str, Any], where: str) -> NamedAttack:
    """An attack from ``{"name": ..., "norm": ..., "epsilon": ..., "num_restarts": ..., other arguments}``."""
    described, spec = dict(spec), dict(spec)
    norm, epsilon, num_restarts = spec.pop("norm", "linf"), spec.pop("epsilon", None), spec.pop("num_restarts", 1)
    try:
        epsilon = number(epsilon)
    except ValueError:
        raise UserError(f"{where}: epsilon {epsilon!r} is not a number; write for example 0.03 or '8/255'") from None
    threat_model = build(NORMS, {"name": norm, "epsilon": epsilon}, f"{where}: norm")
    if "loss" in spec and spec["name"] != "auto_pgd":
        spec["loss"] = _choose(ATTACK_LOSSES, spec["loss"], f"{where}: loss")
    if num_restarts < 1 or (num_restarts > 1 and spec["name"] in STAGED_ATTACKS):
        raise UserError(f"{where}: num_restarts must be 1 or more, and 1 for {', '.join(STAGED_ATTACKS)}")
    attack = build({**ATTACKS, **STAGED_ATTACKS}, spec, where, threat_model)
    return NamedAttack(name, threat_model, attack, num_restarts, described)


def build(table: Mapping[str, Callable[..., Any]], spec: Mapping[str, Any], where: str, *args: Any) -> Any:
    """``table[spec["name"]](*args, **the rest of spec)``, every mistake in it a UserError that says where."""
    spec = dict(spec)
    function = _choose(table, spec.pop("name", None), where)
    known = list(inspect.signature(function).parameters)[len(args) :]
    variadic = inspect.Parameter.VAR_KEYWORD in {p.kind for p in inspect.signature(function).parameters.values()}
    if not variadic and (unknown := sorted(set(spec) - set(known))):
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    try:
        return function(*args, **{key: number(value) if _is_number(value) else value for key, value in spec.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _is_number(value: Any) -> bool:
    try:
        number(value)
    except ValueError:
        return False
    return isinstance(value, str)


def _choose(table: Mapping[str, Any], name: Any, where: str) -> Any:
    if name not in table:
        raise UserError(f"{where}: unknown name {name!r}; known are {', '.join(table)}")
    return table[name]


def _run(name: str, config: Mapping[str, Any], loaded: Data, earlier: Mapping[str, Run]) -> Run:
    spec, where = config["run"][name], f"run.{name}"
    start = spec["model"].get("base") or spec["start"] or None
    attack_spec = dict(spec["attack"]) if spec["attack"] else None
    made_on = attack_spec.pop("made_on", "self") if attack_spec else None
    for other in (start, made_on):
        if other not in (None, "self", *earlier):
            raise UserError(f"{where}: no earlier run is named {other!r}; earlier are {', '.join(earlier) or 'none'}")
    attack = None
    if attack_spec:
        label_use = attack_spec.pop("labels", "true")
        built = build_attack("train", attack_spec, f"{where}.attack")
        if built.stages is not None:
            raise UserError(f"{where}.attack: {attack_spec['name']} is for evaluation only")
        attack = built.for_transfer(_label_use(label_use, f"{where}.attack"))
    model = _model(spec["model"], where, loaded.train.num_classes, earlier)
    fraction = number(spec["train_fraction"])
    num_train = len(training_subset(loaded, fraction, config["seed"]).labels)
    plan = _plan(spec, where, num_train, config["seed"])
    summary = {
        "data": {key: value for key, value in config["data"].items() if key != "dir"},
        "seed": config["seed"],
        "run": spec,
        "needs": {other: earlier[other].spec for other in (start, made_on) if other not in (None, "self")},
    }
    return Run(
        name=name,
        model=model,
        start=start,
        train_fraction=fraction,
        method=lambda variables, models: _method(spec, where, model, plan, attack, made_on, variables, models),
        made_on=made_on,
        attack=attack,
        plan=plan,
        checkpoint=spec["checkpoint"],
        spec=summary,
    )


def training_subset(loaded: Data, fraction: float, seed: int) -> Dataset:
    """The share of the training split that a run sees; smaller shares are parts of larger ones."""
    train = loaded.train
    return train.take(data.nested_subset(train.labels, fraction=fraction, seed=seed, name=train.name))


def _model(spec: Mapping[str, Any], where: str, num_classes: int, earlier: Mapping[str, Run]) -> nn.Module:
    spec, where = dict(spec), f"{where}.model"
    if base := spec.pop("base", None):
        return build(MODELS, spec, where, earlier[base].model)
    return build(MODELS, {"num_classes": num_classes, **spec}, where)


def _plan(spec: Mapping[str, Any], where: str, num_train: int, seed: int) -> Plan:
    steps = data.steps_per_epoch(num_train, spec["batch_size"])
    num_steps = spec["num_steps"] or spec["epochs"] * steps
    if num_steps < 1:
        raise UserError(f"{where}: epochs or num_steps must be at least 1")
    if spec["select"] not in ("best", "last"):
        raise UserError(f"{where}: select must be 'best' or 'last', got {spec['select']!r}")
    every = max(1, min(spec["validate_every_epochs"] * steps, num_steps))
    return Plan(num_steps, spec["batch_size"], spec["log_every"], every, seed, spec["select"], "score")


def _method(
    spec: Mapping[str, Any],
    where: str,
    model: nn.Module,
    plan: Plan,
    attack: AttackFn | None,
    made_on: str | None,
    variables: Variables,
    models: Mapping[str, nn.Module],
) -> Method:
    steps = []
    if augmentations := [
        build(AUGMENTATIONS, {"name": name, **spec["augmentation"].get(name, {})}, f"{where}.augmentation")
        for name in spec["augmentation"]["order"]
    ]:
        steps.append(transforms.augment(augment.chain(*augmentations)))
    if attack is not None and made_on is not None:
        steps.append(transforms.perturb(attack, made_on))
    objective_spec = dict(spec["objective"])
    loss = build(LOSSES, objective_spec.pop("loss"), f"{where}.objective.loss")
    objective = build(OBJECTIVES, objective_spec, f"{where}.objective", model, loss)
    rules = ((spec["trainable"], "trained"),) if spec["trainable"] else ()
    labels = partition.label_params(variables.params, rules, default="frozen" if rules else "trained")
    by_label = {"trained": _optimizer(spec["optimizer"], f"{where}.optimizer", plan), "frozen": partition.FROZEN}
    return Method(
        model=model,
        objective=objective,
        transforms=tuple(steps),
        optimizer=partition.partitioned(by_label, labels),
        trainable=partition.trainable_mask(labels, by_label),
        models={made_on: models[made_on]} if made_on not in (None, "self") else {},
        average_decay=number(spec["average_decay"]),
    )


def _optimizer(spec: Mapping[str, Any], where: str, plan: Plan) -> optax.GradientTransformation:
    spec = dict(spec)
    schedule, clip = dict(spec.pop("schedule")), number(spec.pop("clip", 0))
    kind = schedule.get("name")
    _choose(SCHEDULES, kind, f"{where}.schedule")
    if kind == "constant":
        rates = {"learning_rate": number(schedule["learning_rate"])}
    elif kind == "one_cycle":
        rate, momentum = build(SCHEDULES, schedule | {"num_steps": plan.num_steps}, f"{where}.schedule")
        rates = {"learning_rate": rate} | ({"momentum": momentum} if spec["name"] == "sgd" else {})
    else:
        rates = {"learning_rate": build(SCHEDULES, schedule | {"num_steps": plan.num_steps}, f"{where}.schedule")}
    optimizer = build(OPTIMIZERS, spec | rates, where)
    return optimizers.with_clipping(optimizer, clip) if clip else optimizer


def _evaluation(spec: Mapping[str, Any], runs: Mapping[str, Run]) -> EvaluationPlan:
    named = tuple(
        build_attack(name, _described(spec["attacks"], name), f"evaluation.attacks.{name}")
        for name in spec["attacks"]["order"]
    )
    if spec["made_on"] not in runs:
        raise UserError(f"evaluation.made_on: no run is named {spec['made_on']!r}; runs are {', '.join(runs)}")
    if spec["pictured"] and spec["pictured"] not in spec["attacks"]["order"]:
        names = ", ".join(spec["attacks"]["order"])
        raise UserError(f"evaluation.pictured: {spec['pictured']!r} is none of the attacks {names}")
    if spec["num_examples"] < 0 or spec["batch_size"] < 1:
        raise UserError("evaluation: num_examples must be 0 or more and batch_size at least 1")
    if spec["protocol"] not in ("sound", "faithful"):
        raise UserError(f"evaluation.protocol must be 'sound' or 'faithful', got {spec['protocol']!r}")
    return EvaluationPlan(
        named,
        spec["made_on"],
        _label_use(spec["transfer_labels"], "evaluation.transfer_labels"),
        spec["protocol"],
        spec["num_examples"],
        spec["batch_size"],
        spec["pictured"],
        spec["num_pictures"],
    )


def _described(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in table:
        raise UserError(f"evaluation.attacks: {name!r} is in the order but not described")
    return table[name]


def _label_use(value: str, where: str) -> str:
    if value not in ("true", "predicted"):
        raise UserError(f"{where}: labels must be 'true' or 'predicted', got {value!r}")
    return value
