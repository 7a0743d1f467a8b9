"""The wiring diagram: from a config to the objects of an experiment.

An experiment is an ordered set of named runs (one model trained by one method each) and a plan for their evaluation.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import ml_collections
import optax

from advjax import attacks, data, defaults
from advjax.data import Dataset, Source
from advjax.evaluation.adversarial_sets import FORMATS
from advjax.evaluation.evaluate import Deployed, Deployment
from advjax.names import (
    ATTACK_LOSSES,
    ATTACKS,
    AUGMENTATIONS,
    AVERAGES,
    DEFENSES,
    LOSSES,
    MODELS,
    NOISES,
    NORMS,
    OBJECTIVES,
    OPTIMIZERS,
    PATCHES,
    SCHEDULES,
    STAGED_ATTACKS,
    TRAINING_ATTACKS,
    TRANSFORMS,
    build,
    choose,
    number,
)
from advjax.training import augment, optimizers, partition, perturbed_weights, transforms, two_updates
from advjax.training.loop import Method, Plan
from advjax.training.step import train_step
from advjax.types import Array, AttackFn, PyTree, UserError, Variables


class NamedAttack(NamedTuple):
    """An attack under the name that the report gives it."""

    name: str
    threat_model: attacks.ThreatModel
    attack: attacks.Attack | tuple[attacks.Stage, ...]
    """One attack, or stages of attacks for the images that are still robust."""
    num_restarts: int
    search_dtype: str | None
    """The type that stages search in, if not that of the model."""
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

    @property
    def is_noise(self) -> bool:
        """Whether it is the same for every model, and so no attack."""
        return self.spec["name"] in NOISES

    @property
    def is_query(self) -> bool:
        """Whether it asks for no gradients."""
        return isinstance(self.attack, attacks.Attack) and self.attack.cotangents is None

    @property
    def is_examinable(self) -> bool:
        """Whether a report card can be about its threat model."""
        return self.threat_model.norm.dense and self.threat_model.is_bounded

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


class NamedDefense(NamedTuple):
    """A test-time defence of one run."""

    name: str
    run: str
    deployment: Deployment
    num_draws: int
    num_votes: int
    num_samples: int
    spec: dict[str, Any]
    """The defence as the config describes it."""

    def deploy(self, model: nn.Module) -> Deployed:
        """The model with its defence; variables are ``(those of the model, arrays)``."""
        return Deployed(self.deployment.bind(model), self.num_draws, self.num_votes, self.num_samples)

    def arrays(self, train: Dataset | Source) -> PyTree:
        """What the defence has of its own, such as images to mix with."""
        return self.deployment.arrays(train if isinstance(train, Dataset) else data.read_all(train))


class Curve(NamedTuple):
    """Accuracy over epsilon."""

    name: str
    norm: str
    attack_at: Callable[[Array], AttackFn]
    """``epsilon -> attack``, for a traced epsilon."""
    epsilons: tuple[float, ...]
    num_examples: int


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
    asks: tuple[str, ...]
    """Earlier runs whose networks training asks."""
    attack: AttackFn | None
    plan: Plan
    checkpoint: str
    """Folder of a finished run to take instead of training, or ""."""
    spec: dict[str, Any]
    """Everything that decides what training gives, as plain data."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Earlier runs that this one cannot do without."""
        return tuple(dict.fromkeys([*([self.start] if self.start else []), *self.asks]))


class Data(NamedTuple):
    """The splits of a data set."""

    train: Dataset | Source
    """A source streams its images instead of holding them."""
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
    defenses: tuple[NamedDefense, ...]
    num_checked: int
    """How many of the test images a report card is made with; 0 for none."""
    checked: tuple[str, ...]
    """The runs that get one."""
    curve: Curve | None
    save_adversarial: str
    """How adversarial images are kept: "float32", "uint8", or "" for not at all."""


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
        return self.data.train.image_shape


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
    evaluation = _evaluation(spec["evaluation"], runs, spec["run"])
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
    arguments = {"directory": config["dir"] or None, "image_size": config["image_size"]}
    read = data.open_source if config["stream"] else data.load
    train = read(config["name"], config["train_split"], **arguments)
    if shares := [number(share) for share in config["fractions"]]:
        return _divided(train, shares, bool(config["by_patient"]), seed)
    if config["per_class"]:
        train = train.take(data.class_balanced(train.labels, per_class=config["per_class"], seed=seed, name=train.name))
    test = data.load(config["name"], config["test_split"], **arguments)
    kept, held_out = data.train_validation(
        train.labels, num_validation=config["num_validation"], seed=seed, name=train.name
    )
    return Data(train.take(kept), _in_memory(train.take(held_out)), test)


def _divided(pool: Dataset | Source, shares: list[float], by_patient: bool, seed: int) -> Data:
    """One split divided into training, validation and test images."""
    if len(shares) != 3:
        raise UserError(f"data.fractions needs three shares, of training, validation and test images, got {shares}")
    if by_patient:
        if pool.groups is None:
            raise UserError(f"data.by_patient: {pool.name} does not say which images belong to one patient")
        parts = data.by_group(pool.groups, shares, seed=seed, name=pool.name)
    else:
        parts = data.fractions(pool.labels, shares, seed=seed, name=pool.name)
    return Data(pool.take(parts[0]), *(_in_memory(pool.take(part)) for part in parts[1:]))


def _in_memory(part: Dataset | Source) -> Dataset:
    return part if isinstance(part, Dataset) else data.read_all(part)


def plain(config: ml_collections.ConfigDict) -> Any:
    """A config as plain data, its tuples as lists."""
    return json.loads(config.to_json())


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
    if num_restarts < 1 or (num_restarts > 1 and spec["name"] in STAGED_ATTACKS):
        raise UserError(f"{where}: num_restarts must be 1 or more, and 1 for {', '.join(STAGED_ATTACKS)}")
    attack = build(table, spec, where, threat_model)
    return NamedAttack(name, threat_model, attack, num_restarts, search_dtype, described)


def _run(name: str, config: Mapping[str, Any], loaded: Data, earlier: Mapping[str, Run]) -> Run:
    spec, where = config["run"][name], f"run.{name}"
    start = spec["model"].get("base") or spec["start"] or None
    attack_spec = dict(spec["attack"]) if spec["attack"] else None
    made_on = attack_spec.pop("made_on", "self") if attack_spec else None
    twin_labels = [spec["targets"].get(name, {}).get("model") for name in spec["targets"]["order"]]
    asks = tuple(dict.fromkeys(other for other in (made_on, *twin_labels) if other not in (None, "self")))
    for other in (start, made_on, *asks):
        if other not in (None, "self", *earlier):
            raise UserError(f"{where}: no earlier run is named {other!r}; earlier are {', '.join(earlier) or 'none'}")
    attack = None
    if attack_spec:
        label_use = attack_spec.pop("labels", "true")
        built = build_attack("train", attack_spec, f"{where}.attack", {**ATTACKS, **TRAINING_ATTACKS})
        if built.stages is not None:
            raise UserError(f"{where}.attack: {attack_spec['name']} is for evaluation only")
        attack = built.for_transfer(_label_use(label_use, f"{where}.attack"))
    model = _model(spec["model"], where, loaded.train.num_classes, earlier)
    fraction = number(spec["train_fraction"])
    num_train = len(training_subset(loaded, fraction, config["seed"]).labels)
    plan = _plan(spec, where, num_train, config["seed"], config["data"]["num_workers"])
    steps_per_epoch = data.steps_per_epoch(num_train, spec["batch_size"])
    summary = {
        "data": {key: value for key, value in config["data"].items() if key not in ("dir", "num_workers")},
        "data_set": loaded.train.name,
        "seed": config["seed"],
        "run": spec,
        "needs": {other: earlier[other].spec for other in (start, *asks) if other is not None},
    }
    return Run(
        name=name,
        model=model,
        start=start,
        train_fraction=fraction,
        method=lambda variables, models: _method(
            spec, where, model, plan, steps_per_epoch, attack, made_on, asks, variables, models
        ),
        made_on=made_on,
        asks=asks,
        attack=None if spec["attack"] and spec["attack"]["name"] in TRAINING_ATTACKS else attack,
        plan=plan,
        checkpoint=spec["checkpoint"],
        spec=summary,
    )


def training_subset(loaded: Data, fraction: float, seed: int) -> Dataset | Source:
    """The share of the training split that a run sees; smaller shares are parts of larger ones."""
    train = loaded.train
    return train.take(data.nested_subset(train.labels, fraction=fraction, seed=seed, name=train.name))


def _model(spec: Mapping[str, Any], where: str, num_classes: int, earlier: Mapping[str, Run]) -> nn.Module:
    spec, where = dict(spec), f"{where}.model"
    if base := spec.pop("base", None):
        return build(PATCHES, spec, where, earlier[base].model)
    if spec.get("name") in PATCHES:
        raise UserError(f"{where}: {spec['name']} needs the earlier run that it goes into as 'base'")
    return build(MODELS, {"num_classes": num_classes, **spec}, where)


def _plan(spec: Mapping[str, Any], where: str, num_train: int, seed: int, num_workers: int) -> Plan:
    steps = data.steps_per_epoch(num_train, spec["batch_size"])
    num_steps = spec["num_steps"] or spec["epochs"] * steps
    if num_steps < 1:
        raise UserError(f"{where}: epochs or num_steps must be at least 1")
    if spec["select"] not in ("best", "last"):
        raise UserError(f"{where}: select must be 'best' or 'last', got {spec['select']!r}")
    every = max(1, min(spec["validate_every_epochs"] * steps, num_steps))
    return Plan(
        num_steps,
        spec["batch_size"],
        spec["log_every"],
        every,
        seed,
        spec["select"],
        "score",
        spec["patience"],
        num_workers,
    )


def _method(
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
    elif kind == "constant":
        rates = {"learning_rate": number(schedule["learning_rate"])}
    elif kind == "one_cycle":
        rate, momentum = build(SCHEDULES, schedule | {"num_steps": plan.num_steps}, f"{where}.schedule")
        rates = {"learning_rate": rate} | ({"momentum": momentum} if spec["name"] == "sgd" else {})
    else:
        rates = {"learning_rate": build(SCHEDULES, schedule | {"num_steps": plan.num_steps}, f"{where}.schedule")}
    optimizer = build(OPTIMIZERS, spec | rates, where)
    return optimizers.with_clipping(optimizer, clip) if clip else optimizer


def _evaluation(spec: Mapping[str, Any], runs: Mapping[str, Run], described: Mapping[str, Any]) -> EvaluationPlan:
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
    if spec["save_adversarial"] not in ("", *FORMATS):
        raise UserError(
            f"evaluation.save_adversarial must be {', '.join(map(repr, FORMATS))} or '', "
            f"got {spec['save_adversarial']!r}"
        )
    return EvaluationPlan(
        named,
        spec["made_on"],
        _label_use(spec["transfer_labels"], "evaluation.transfer_labels"),
        spec["protocol"],
        spec["num_examples"],
        spec["batch_size"],
        spec["pictured"],
        spec["num_pictures"],
        tuple(_defense(name, spec["defenses"], runs) for name in spec["defenses"]["order"]),
        spec["num_checked"],
        _checked(spec["checked"], described) or tuple(runs),
        _curve(spec["curve"]),
        spec["save_adversarial"],
    )


def _checked(given: Sequence[str], described: Mapping[str, Any]) -> tuple[str, ...]:
    """A run that is described may be named although it is left out this time."""
    if unknown := [name for name in given if name not in described]:
        raise UserError(f"evaluation.checked: no run is named {unknown[0]!r}; runs are {', '.join(described)}")
    return tuple(given)


def _defense(name: str, described: Mapping[str, Any], runs: Mapping[str, Run]) -> NamedDefense:
    where = f"evaluation.defenses.{name}"
    if name not in described:
        raise UserError(f"evaluation.defenses: {name!r} is in the order but not described")
    spec = dict(described[name])
    run = spec.pop("run", None)
    if run not in runs:
        raise UserError(f"{where}: no run is named {run!r}; runs are {', '.join(runs)}")
    numbers = {key: spec.pop(key, default) for key, default in defaults.DEFENSE.items()}
    if any(value < 1 for value in numbers.values()) or numbers["num_votes"] % 2 == 0:
        raise UserError(f"{where}: {', '.join(numbers)} must be at least 1, and num_votes odd")
    return NamedDefense(name, run, build(DEFENSES, spec, where), **numbers, spec=dict(described[name]))


def _curve(spec: Mapping[str, Any] | None) -> Curve | None:
    if not spec:
        return None
    where, attack = "evaluation.curve", dict(spec["attack"])
    built = build_attack("curve", {**attack, "epsilon": 1.0}, where)
    if built.stages is not None:
        raise UserError(f"{where}: {attack['name']} has stages; take one attack")

    def attack_at(epsilon: Array) -> AttackFn:
        return build_attack("curve", {**attack, "epsilon": epsilon}, where).for_verdict()

    epsilons = tuple(float(number(epsilon)) for epsilon in spec["epsilons"])
    return Curve(attack["name"], built.norm, attack_at, epsilons, spec["num_examples"])


def _described(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in table:
        raise UserError(f"evaluation.attacks: {name!r} is in the order but not described")
    return table[name]


def _label_use(value: str, where: str) -> str:
    if value not in ("true", "predicted"):
        raise UserError(f"{where}: labels must be 'true' or 'predicted', got {value!r}")
    return value
