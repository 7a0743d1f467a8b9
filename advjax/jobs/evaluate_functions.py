"""``advjax.evaluate``: the whole evaluation for models that are functions, wherever they come from."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from advjax.attacks import ThreatModel, input_checks
from advjax.attacks.threat_model import require
from advjax.data import Dataset
from advjax.data.dataset import check, fingerprint
from advjax.evaluation.adversarial_sets import FORMATS
from advjax.evaluation.attack_runs import NamedAttack
from advjax.evaluation.given_attack import GivenAttack, given_attack
from advjax.evaluation.given_model import Given, GivenModel, given_model
from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.report import Report
from advjax.evaluation.summaries import WORST_CASE
from advjax.experiment.build_attack import build_attack
from advjax.experiment.presets import PRESETS
from advjax.experiment.spec import DataFacts, EvaluationPlan
from advjax.jobs.dry_run import check_attacks
from advjax.jobs.evaluate import Subject, evaluate_models
from advjax.jobs.workdir import Notify, locked
from advjax.runtime.devices import Devices, mesh

__all__ = ["evaluate"]

_PRESETS = {name: spec for name, spec in PRESETS.items() if spec is not None}
_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,63}")
_NAME_OF_ONE = "model"
"""Of a model that was given without a name."""


def evaluate(
    model: GivenModel | Mapping[str, GivenModel],
    images: np.ndarray,
    labels: np.ndarray,
    threat_model: ThreatModel,
    *,
    workdir: str | os.PathLike[str],
    attacks: str | Mapping[str, GivenAttack] = "standard",
    made_on: str = "",
    class_names: Sequence[str] = (),
    title: str = "",
    data_name: str = "images",
    batch_size: int = 256,
    seed: int = 0,
    num_checked: int = 64,
    save_adversarial: str = "",
    notify: Notify = print,
) -> Report:
    """Attacks your own models, examines them with the report card, and writes the report.

    The same evaluation as that of a trained experiment: each attack is made on each model itself, which gives robust
    accuracy, and shown to the other models if it was made on the first (transfer).  It runs on all devices and reports
    its progress on stderr.  Repeating an interrupted call resumes where it was.  In the end, ``workdir`` holds
    ``report.html``, ``report.json`` and ``outcomes.npz``; "Reading a report" describes their fields.

    Example::

        report = advjax.evaluate(logits_fn, images, labels, attacks.linf(8 / 255), workdir="report")
        print(report.summary[0]["robust"])  # {"n": 1000, "accuracy": 0.512, "low": 0.481, "high": 0.543}

    Args:
      model: ``images -> logits``, for float32 images [n, h, w, c] in [0, 1] and logits [n, classes], in inference mode;
        or ``attacks.expectation(fn, num_samples)`` of a stochastic ``fn(images, rng)``; or a pair of either, as a
        function of ``(variables, images)`` or ``(variables, images, rng)``, and its variables.  A mapping from names
        evaluates several models side by side.
      images: float32 [n, h, w, c] in [0, 1], or uint8.
      labels: int [n].
      threat_model: ``attacks.linf(epsilon)`` or ``attacks.l2(epsilon)``; any other with your own ``attacks``.
      workdir: the folder to write to.
      attacks: "standard" for AutoAttack, "rand" for its version for stochastic models, "quick" for a short ensemble; or
        a mapping from names to attacks or lists of stages.
      made_on: the model that transfer attacks are made on; the first if empty.
      class_names: one for each class; numbers if empty.
      title: heading of the report.
      data_name: of the images.
      batch_size: images at a time, on all devices together.
      seed: of all randomness.
      num_checked: images in the report card, a stratified draw of them; 0 for no report card.
      save_adversarial: how the adversarial images made on each model itself are stored in ``workdir``: "float32",
        "uint8", or "" for not at all.
      notify: receives what people should know.

    Returns:
      The content of ``report.json``.

    Raises:
      TypeError: a model is not a function, or an attack is not one.
      ValueError: images or labels have the wrong shape, type or range; a model cannot be called on them; a name is
        unknown; or ``workdir`` is in use.
    """
    _check_words(title=title, data_name=data_name, **{f"class_names[{i}]": name for i, name in enumerate(class_names)})
    input_checks.require_count("seed", seed, 0)
    if seed >= 2**32 or not callable(notify) or isinstance(class_names, str):
        raise ValueError(
            "evaluate needs a seed below 2**32, a function notify and a list of class_names, "
            f"got {seed!r}, {notify!r} and {class_names!r:.100}"
        )
    images, labels = input_checks.as_array("images", images), input_checks.as_array("labels", labels)
    shape = _image_shape(images, labels)
    given = _models(model, shape)
    num_classes = next(iter(given.values())).num_classes
    dataset = _dataset(np.asarray(images), np.asarray(labels), class_names, data_name, num_classes)
    named = _attacks(attacks, threat_model, shape, num_classes)
    check_attacks(named, DataFacts(data_name, shape, num_classes, 0, {}), "attacks: ")
    if made_on and made_on not in given:
        raise ValueError(f"made_on must be one of the models {', '.join(given)}, got {made_on!r}")
    if save_adversarial not in ("", *FORMATS):
        raise ValueError(f"save_adversarial must be 'float32', 'uint8' or '', got {save_adversarial!r}")
    input_checks.require_count("batch_size", batch_size)
    input_checks.require_count("num_checked", num_checked, 0)
    plan = EvaluationPlan(
        attacks=named,
        made_on=(made_on or next(iter(given)),),
        transfer_labels="true",
        protocol="sound",
        num_examples=len(labels),
        batch_size=batch_size,
        pictured=named[0].name,
        num_pictures=4,
        defenses=(),
        num_checked=num_checked,
        checked=tuple(given),
        curve=None,
        save_adversarial=save_adversarial,
        faithful_attacks=(),
    )
    title = title or f"Robustness of {', '.join(given)}"
    config = _config(title, seed, plan, dataset, tuple(given))
    subject = Subject(title, config, seed, plan, [entry.scored for entry in given.values()], dataset, {})
    with locked(workdir):
        return evaluate_models(subject, Devices(mesh(), "shard_map"), notify, lambda: False, os.fspath(workdir))


def _check_words(**words: Any) -> None:
    if wrong := [name for name, word in words.items() if not isinstance(word, str)]:
        raise TypeError(f"{wrong[0]} must be a string, got {words[wrong[0]]!r:.100}")


def _check_names(where: str, names: Iterable[Any], *taken: str) -> None:
    """Refuses names that cannot be those of files, or that a report uses for something else."""
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in taken:
            reserved = "".join(f", and not {word!r}" for word in taken)
            raise ValueError(
                f"{where}: {name!r:.100} cannot be a name: it becomes part of file names, so that it must be a string "
                f"of at most 64 characters without slashes that does not begin with a dot{reserved}"
            )


def _image_shape(images: Any, labels: Any) -> tuple[int, int, int]:
    """Checks what has to be right before a model can be called."""
    if images.dtype != np.uint8:
        input_checks.check_inputs(images, labels, (0.0, 1.0))
    elif images.ndim != 4:
        raise ValueError(f"images must have shape [n, height, width, channels], got {images.shape}")
    return tuple(images.shape[1:])


def _models(model: GivenModel | Mapping[str, GivenModel], shape: tuple[int, int, int]) -> dict[str, Given]:
    models = dict(model) if isinstance(model, Mapping) else {_NAME_OF_ONE: model}
    if not models:
        raise ValueError("model must name at least one model, got an empty mapping")
    _check_names("model", models)
    given = {name: given_model(name, entry, shape) for name, entry in models.items()}
    if len(counts := {entry.num_classes for entry in given.values()}) > 1:
        raise ValueError(f"models must have the same classes, got logits for {' and '.join(map(str, sorted(counts)))}")
    return given


def _dataset(
    images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], name: str, num_classes: int
) -> Dataset:
    names = tuple(class_names) or tuple(map(str, range(num_classes)))
    if len(names) != num_classes:
        raise ValueError(f"class_names must have one name for each of {num_classes} classes, got {len(names)}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    images = images if images.dtype == np.uint8 else images.astype(np.float32)
    index = np.arange(len(images), dtype=np.int32)
    return check(Dataset(name, images, labels.astype(np.int32), index, names))


def _attacks(
    attacks: str | Mapping[str, GivenAttack], threat_model: ThreatModel, shape: tuple[int, int, int], num_classes: int
) -> tuple[NamedAttack, ...]:
    known = [threat_model]
    if isinstance(attacks, str):
        if attacks not in _PRESETS:
            names = ", ".join(map(repr, _PRESETS))
            raise ValueError(f"attacks must be {names}, or a mapping from names to attacks, got {attacks!r}")
        require(threat_model, attacks, "linf", "l2", finite_epsilon=True)
        spec = {**_PRESETS[attacks], "norm": threat_model.norm.name, "epsilon": float(threat_model.epsilon)}
        named = (build_attack(spec["name"], spec, "attacks"),)
    elif isinstance(attacks, Mapping) and attacks:
        _check_names("attacks", attacks, CLEAN, WORST_CASE)
        named = tuple(given_attack(name, attack, threat_model, shape, num_classes) for name, attack in attacks.items())
        known += [attack.threat_model for attack in named]
    else:
        raise TypeError(f"attacks must be the name of a preset, or a mapping from names to attacks, got {attacks!r}")
    for threat_model in known:
        if tuple(threat_model.bounds) != (0.0, 1.0):
            raise ValueError(f"threat models must have the bounds [0, 1] of the images, got {threat_model.bounds}")
    return named


def _config(title: str, seed: int, plan: EvaluationPlan, dataset: Dataset, names: tuple[str, ...]) -> dict[str, Any]:
    """What was evaluated, in the shape of a config: what ``--mode=compare`` needs to know of two evaluations."""
    attacks = {"order": [attack.name for attack in plan.attacks]}
    return {
        "title": title,
        "seed": seed,
        "data": {"name": dataset.name, "test_split": "", "image_size": 0, "fingerprint": fingerprint(dataset)},
        "runs": list(names),
        "evaluation": {
            "attacks": {**attacks, **{attack.name: dict(attack.identity) for attack in plan.attacks}},
            "made_on": list(plan.made_on),
            "num_examples": plan.num_examples,
            "batch_size": plan.batch_size,
            "num_checked": plan.num_checked,
        },
    }
