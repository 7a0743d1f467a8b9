"""The keys of a config and their defaults.  Config files start from these, so that every key can be overridden.

``experiment(...)`` has ``title``, ``seed``, ``mapping``, ``data``, ``runs`` (names, in order), ``run`` (name ->
``run(...)``) and ``evaluation``.  Numbers may be written as fractions in strings: ``"8/255"``.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

DATA = {
    "name": "",
    # Where prepared tfds data lie; "" for $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    "dir": "",
    # Images taken from the training split to choose checkpoints by; 0 needs select="last" and patience=0 in every run.
    "num_validation": 0,
    # Side to which images are resized when they are read; 0 to leave them as they are.
    "image_size": 0,
    # Splits of the data set; several may be joined, as in "train+test", and cut, as in "train[1024:]".
    "train_split": "train",
    "test_split": "test",
    # Shares of training, validation and test images, all of them taken from train_split; () for the splits as they are.
    "fractions": (),
    # Whether all images of a patient come into the same share.
    "by_patient": False,
    # Instead of shares: number of stratified folds of train_split, 0 for none, and the one that is the test split.
    "num_folds": 0,
    "fold": 0,
    # Instead of any of these: an index file, as every workdir has one, whose parts are the splits of train_split.
    "index_file": "",
    # Training images of each class; 0 for all there are.
    "per_class": 0,
    # Read training images from disk while training, with so many threads, instead of holding them on the device.
    "stream": False,
    "num_workers": 8,
}

RUN = {
    # "resnet9" and its arguments, or "fixers" with the earlier run to patch as "base".
    "model": {},
    # An earlier run to start from; "" for fresh parameters.
    "start": "",
    # The folder of a finished run to take instead of training.
    "checkpoint": "",
    # Stratified share of the training images; smaller shares are parts of larger ones.
    "train_fraction": 1.0,
    # Attacked copies of the training images to learn beside them: "order" (names) and for each name an attack, the
    # earlier run that they are "made_on", with "true" or "predicted" labels, and kept as "float32" or "uint8".
    "copies": {"order": (), "made_on": "", "labels": "true", "format": "float32"},
    # Whether examples of the larger classes are left out until all classes are equally large.
    "undersample": False,
    "epochs": 1,
    # Instead of epochs, if not 0.
    "num_steps": 0,
    "batch_size": 128,
    "objective": {"name": "supervised", "loss": {"name": "cross_entropy"}},
    # What happens to images and targets after augmentation and attack: "order" (names), arguments under each name.
    "targets": {"order": ()},
    # The attack of the training images, with "made_on" ("self" or an earlier run) and "labels" ("true" or "predicted").
    "attack": None,
    # The attack that the best checkpoint is chosen by, with the keys of "attack"; None for that of training, or, where
    # training looks for something else than wrong classes ("most_divergent"), PGD with its norm, epsilon and steps.
    "validation_attack": None,
    "augmentation": {"order": ()},
    "optimizer": {
        "name": "sgd",
        "schedule": {"name": "one_cycle", "peak_learning_rate": 0.1},
        "weight_decay": 0.0,
        # Largest norm of the gradient; 0 for no limit.
        "clip": 0.0,
    },
    # Regular expression of the paths of the parameters that learn; "" for all.
    "trainable": "",
    # The average of the weights that is evaluated: {"name": "ema", "decay": ...} or "swa" with "start"; None for none.
    "average": None,
    # Length of adversarial weight perturbation relative to the weights; 0 for none.
    "weight_perturbation": 0.0,
    # Two updates a batch, on clean and then on attacked images: "attack", or "reused_gradient"; "" for one.
    "two_updates": "",
    # Validations without a new best ``select_metric`` after which training ends; 0 for never.
    "patience": 0,
    "log_every": 50,
    "validate_every_epochs": 1,
    # The checkpoint to evaluate: "best" on the validation images, or "last".
    "select": "best",
    # What is best: "accuracy" on them, "attacked_accuracy" by the attack of the training images, or "score", the mean.
    "select_metric": "score",
}

EVALUATION = {
    # "order" (names) and for each name an attack.
    "attacks": {"order": ()},
    # The run, or runs, that transfer attacks are made on, and with which labels: "true" or "predicted".
    "made_on": "base",
    "transfer_labels": "true",
    # What the transfer numbers are: "faithful" (a paper's protocol) or "sound".
    "protocol": "sound",
    # The first so many test images; 0 for all.
    "num_examples": 0,
    "batch_size": 256,
    # The attack whose images the report shows, and how many.
    "pictured": "",
    "num_pictures": 4,
    # "order" (names) and for each name a defence, the "run" it defends, and the keys of DEFENSE.
    "defenses": {"order": ()},
    # Test images that a report card is made with, 0 for none, and the runs that get one; () for all.
    "num_checked": 64,
    "checked": (),
    # Accuracy over epsilon: {"attack": {...}, "epsilons": (...), "num_examples": ...}.
    "curve": None,
    # Keep the images of the attacks made on each model itself, as "float32" or "uint8"; "" for not.
    "save_adversarial": "",
}

DEFENSE = {
    # Draws whose mean is one prediction; predictions whose majority is the verdict; draws for each gradient.
    "num_draws": 10,
    "num_votes": 3,
    "num_samples": 10,
}

EXPERIMENT = {
    "title": "",
    "seed": 0,
    # How steps are mapped over devices: "shard_map", "pmap" or "jit".
    "mapping": "shard_map",
    "data": DATA,
    "runs": (),
    "run": {},
    "evaluation": EVALUATION,
    # Published numbers that rows of the report stand beside: see advjax/papers/join.py.
    "published": (),
    # The experiment that these numbers are about, as `papers.join.publish` writes it down.
    "published_for": {},
}


def experiment(**changes: Any) -> ConfigDict:
    """A whole config; ``data``, ``run`` and ``evaluation`` are given as mappings."""
    return ConfigDict(changed(EXPERIMENT, changes))


def run(**changes: Any) -> dict[str, Any]:
    """One run of an experiment."""
    return changed(RUN, changes)


def gaussian_noises(*levels: str) -> dict[str, Any]:
    """Noise to evaluate beside the attacks: ``gn01_std``, ``gn01_variance``, ``gn05_std``, ...

    A paper's GN01 may mean a standard deviation of 0.01 or a variance of 0.01, ten times as much noise: this is both.

    Example::

        noises = defaults.gaussian_noises()
        evaluation = {"attacks": {"order": ("pgd_50", *noises), "pgd_50": {...}, **noises}}

    Args:
      levels: with two decimals, pixels in [0, 1]; "0.01", "0.05" and "0.08" if there are none.
    """
    return {
        f"gn{level.split('.')[1]}_{reading}": {"name": "gaussian_noise", "level": level, "reading": reading}
        for level in levels or ("0.01", "0.05", "0.08")
        for reading in ("std", "variance")
    }


def changed(defaults: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``defaults`` with ``changes``.

    Nested mappings are merged, but for those whose ``name`` says that they are something else than the default.
    """
    merged = dict(defaults)
    for key, value in changes.items():
        old = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            is_other = old.get("name") and value.get("name", old["name"]) != old["name"]
            value = dict(value) if is_other else changed(old, value)
        merged[key] = value
    return merged
