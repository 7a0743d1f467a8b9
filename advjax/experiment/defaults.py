"""The keys of a config and their defaults.  Config files start from these, so that every key can be overridden.

``experiment(...)`` has ``title``, ``seed``, ``mapping``, ``data``, ``runs`` (names, in order), ``run`` (name ->
``run(...)``) and ``evaluation``.  Numbers may be written as fractions in strings: ``"8/255"``.
"""

import copy
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

DATA = {
    # A data set by its name, see `advjax.data.load`, or a function of your own: "package.module:function".
    "name": "",
    # The folder or file of "folder", "npz" and "cifar10_c", or the directory of prepared tfds data; "" for
    # $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    "dir": "",
    # Images held out of the training split to select checkpoints; 0 needs select="last" and patience=0 in every run.
    "num_validation": 0,
    # Side length that images are resized to when they are read; 0 to keep their size.
    "image_size": 0,
    # Splits of the data set; they can be joined, as in "train+test", and sliced, as in "train[1024:]".
    "train_split": "train",
    "test_split": "test",
    # Whether test_split may have training images, to measure what a network does to the images that it has learned.
    "test_on_training": False,
    # Whether the validation images are the test images, as where a paper selects on them or reports each epoch.
    "validate_on_test": False,
    # Fractions of training, validation and test images, all taken from train_split; () for the splits as they are.
    "fractions": (),
    # Whether all images of a patient are in the same part.
    "by_patient": False,
    # Instead of fractions: number of stratified folds of train_split, 0 for none, and the fold that is the test split.
    "num_folds": 0,
    "fold": 0,
    # Instead of any of these: an index file, such as the split.json of every workdir, with the parts of train_split.
    "index_file": "",
    # Training images per class; 0 for all.
    "per_class": 0,
    # Read training images from disk during training, with this many threads, instead of holding them on the device.
    "stream": False,
    "num_workers": 8,
}

RUN = {
    # "resnet9" and its arguments, or "fixers" with the earlier run to patch as "base".
    "model": {},
    # An earlier run to start from; "" for fresh parameters.
    "start": "",
    # Folder of a finished run to use instead of training.
    "checkpoint": "",
    # Stratified fraction of the training images; smaller fractions are subsets of larger ones.
    "train_fraction": 1.0,
    # Adversarial copies of the training images to train on as well: "order" (names) and for each name an attack, the
    # earlier run that they are "made_on", with "true" or "predicted" labels, stored as "float32", "float16" or "uint8".
    "copies": {"order": (), "made_on": "", "labels": "true", "format": "float32"},
    # Whether examples of the larger classes are left out until all classes are equally large.
    "undersample": False,
    # An .npz file of more training images and labels, generated ones for example ("" for none), and the share of every
    # batch that is drawn from it.  An epoch remains one pass over the training images of the data set.
    "extra_images": {"file": "", "share": 0.7},
    # Passes over the training images.
    "epochs": 1,
    # Overrides epochs if not 0.
    "num_steps": 0,
    # Training images per step, on all devices together, extra images included.
    "batch_size": 128,
    # What models compute in during training: "float32" or "bfloat16".  Parameters, batch statistics, logits and losses
    # are float32 in any case, and so is every evaluation.
    "compute_dtype": "float32",
    # Training steps per call of the compiled program; fewer where a record or a validation comes before.
    "steps_per_call": 1,
    # Whether the gradients of a network compute the features inside its blocks again instead of keeping them.
    "remat": False,
    # Number of parts of a batch whose gradients are computed one after the other and added up.
    "gradient_accumulation": 1,
    # What is minimized, with its arguments beside the names.
    "objective": {"name": "supervised", "loss": {"name": "cross_entropy"}},
    # Transforms of images and targets between augmentation and attack, "cutmix" for example, and those after both:
    # "order" (names), and arguments under each name.
    "before_attack": {"order": ()},
    "targets": {"order": ()},
    # Attack on the training images, with "made_on" ("self" or an earlier run) and "labels" ("true" or "predicted").
    "attack": None,
    # Attack on the validation images, with the keys of "attack"; None for that of training or, where that does not
    # maximize a classification loss ("most_divergent"), PGD with its norm, epsilon and steps.
    "validation_attack": None,
    # Augmentation of the training images: "order" (names), and arguments under each name.
    "augmentation": {"order": ()},
    # Optimizer and learning rate schedule, with their arguments beside the names.
    "optimizer": {
        "name": "sgd",
        "schedule": {"name": "one_cycle", "peak_learning_rate": 0.1},
        "weight_decay": 0.0,
        # Largest norm of the gradient; 0 for no limit.
        "clip": 0.0,
    },
    # Regular expression for the paths of the trainable parameters; "" for all.
    "trainable": "",
    # Weight averaging for evaluation: {"name": "ema", "decay": ...} or "swa" with "start"; None for none.
    "average": None,
    # Size of the adversarial weight perturbation relative to the weights; 0 for none.
    "weight_perturbation": 0.0,
    # Two updates per batch, on clean and then on adversarial images: "attack" or "reused_gradient"; "" for one.
    "two_updates": "",
    # Validations without a new best ``select_metric`` after which training stops; 0 for never.
    "patience": 0,
    # Steps between two logged lines.
    "log_every": 50,
    # Epochs between two validations.
    "validate_every_epochs": 1,
    # Whether validation also measures the mean cross-entropy, which no checkpoint is chosen by.
    "validate_loss": False,
    # Checkpoint to evaluate: the "best" on the validation images, or the "last".
    "select": "best",
    # Best by "accuracy", by "attacked_accuracy" under the validation attack, or by "score", their mean.
    "select_metric": "score",
}

EVALUATION = {
    # "order" (names) and for each name an attack.
    "attacks": {"order": ()},
    # The run or runs that transfer attacks are made on, and with which labels: "true" or "predicted".  RUN+DEFENSE is a
    # defended model: by the protocol below, whole attacks are made on it that it alone sees.
    "made_on": "base",
    "transfer_labels": "true",
    # Protocol of the transfer attacks: "faithful" (to a paper) or "sound".
    "protocol": "sound",
    # The attacks that transfer_labels and protocol are about; those of the others get true labels and are "sound".  ()
    # for all.
    "faithful_attacks": (),
    # So many test images, see `advjax.evaluation.few_images`; 0 for all.
    "num_examples": 0,
    # Images per batch, on all devices together.
    "batch_size": 256,
    # Attack whose images the report shows, and how many images.
    "pictured": "",
    "num_pictures": 4,
    # "order" (names) and for each name a defense, the "run" it defends, and the keys of DEFENSE.
    "defenses": {"order": ()},
    # Test images in each report card, 0 for none, and the runs that get one; () for all.
    "num_checked": 64,
    "checked": (),
    # Accuracy over epsilon: {"attack": {...}, "epsilons": (...), "num_examples": ...}.
    "curve": None,
    # Store the images of adaptive attacks as "float32" or "uint8"; "" for not.
    "save_adversarial": "",
}

DEFENSE = {
    # Draws averaged for one prediction; predictions whose majority is the verdict; draws per gradient.
    "num_draws": 10,
    "num_votes": 3,
    "num_samples": 10,
    # What one prediction is the mean of: "probabilities" or "log_probabilities".
    "mean_over": "probabilities",
}

EXPERIMENT = {
    # Heading of the report.
    "title": "",
    # Seed of everything random.
    "seed": 0,
    # How steps are mapped over devices: "shard_map", "pmap" or "jit".
    "mapping": "shard_map",
    # Function to call with every record of the metrics of training, "package.module:function" of (run, step, kind,
    # values), for trackers such as Weights & Biases; "" for none.
    "on_metrics": "",
    "data": DATA,
    # Names of the runs, in the order of their training.
    "runs": (),
    # The runs by their names.
    "run": {},
    "evaluation": EVALUATION,
    # Published numbers to print beside rows of the report: see advjax/papers/join.py.
    "published": (),
    # The experiment that these numbers are about, as recorded by `papers.join.publish`.
    "published_for": {},
}


def experiment(**changes: Any) -> ConfigDict:
    """A whole config; ``data``, ``run`` and ``evaluation`` are given as mappings."""
    return ConfigDict(changed(EXPERIMENT, changes))


def run(**changes: Any) -> dict[str, Any]:
    """One run of an experiment."""
    return changed(RUN, changes)


def gaussian_noises(*levels: str) -> dict[str, Any]:
    """Gaussian noise to evaluate beside the attacks: ``gn01_std``, ``gn01_variance``, ``gn05_std``, ...

    GN01 in a paper may mean a standard deviation of 0.01 or a variance of 0.01, which is ten times as much noise; this
    returns both.

    Example::

        noises = defaults.gaussian_noises()
        evaluation = {"attacks": {"order": ("pgd_50", *noises), "pgd_50": {...}, **noises}}

    Args:
      levels: with two decimals, in pixels of [0, 1]; by default "0.01", "0.05" and "0.08".
    """
    return {
        f"gn{level.split('.')[1]}_{reading}": {"name": "gaussian_noise", "level": level, "reading": reading}
        for level in levels or ("0.01", "0.05", "0.08")
        for reading in ("std", "variance")
    }


def changed(defaults: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``defaults`` with ``changes``; it shares no mapping with either.

    Nested mappings are merged, except those whose ``name`` differs from that of the default.
    """
    merged = copy.deepcopy(dict(defaults))
    for key, value in changes.items():
        old = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            is_other = old.get("name") and value.get("name", old["name"]) != old["name"]
            merged[key] = copy.deepcopy(dict(value)) if is_other else changed(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
