"""The splits of a data set, and the shares that runs see."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from advjax import data, defaults
from advjax.data import Dataset, Source
from advjax.experiment import Copies, Data
from advjax.names import number
from advjax.types import UserError


def load_data(config: Mapping[str, Any], seed: int) -> Data:
    """Train, validation and test split, each a function of (data set, seed) alone."""
    arguments = {"directory": config["dir"] or None, "image_size": config["image_size"]}
    read = data.open_source if config["stream"] else data.load
    train = read(config["name"], config["train_split"], **arguments)
    _check_splits(config)
    if shares := [number(share) for share in config["fractions"]]:
        return _divided(train, shares, bool(config["by_patient"]), seed)
    if data.have_common_examples(config["train_split"], config["test_split"]):
        raise UserError(
            f"data.test_split {config['test_split']!r} has images of data.train_split {config['train_split']!r}; "
            "choose parts without common images, as in train[1024:] and train[:1024]"
        )
    if config["per_class"]:
        train = train.take(data.class_balanced(train.labels, per_class=config["per_class"], seed=seed, name=train.name))
    test = data.load(config["name"], config["test_split"], **arguments)
    kept, held_out = data.train_validation(
        train.labels, num_validation=config["num_validation"], seed=seed, name=train.name
    )
    return Data(train.take(kept), _in_memory(train.take(held_out)), test)


def _check_splits(config: Mapping[str, Any]) -> None:
    """Refuses what would have no effect."""
    if config["fractions"]:
        for key in ("num_validation", "per_class", "test_split"):
            if config[key] != defaults.DATA[key]:
                raise UserError(
                    f"data.{key} has no effect: data.fractions divide all of data.train_split; leave it out"
                )
    elif config["by_patient"]:
        raise UserError("data.by_patient needs data.fractions: without them the splits are those of the data set")


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
    if isinstance(part, Dataset):
        return part
    if not len(part.labels):
        # No validation images: a data set may not be empty, what is left of it here may.
        nothing = np.empty((0, *part.image_shape), np.uint8)
        return Dataset(part.name, nothing, part.labels, part.index, part.class_names, part.groups)
    return data.read_all(part)


def training_subset(loaded: Data, fraction: float, seed: int) -> Dataset | Source:
    """The share of the training split that a run sees; smaller shares are parts of larger ones."""
    train = loaded.train
    return train.take(data.nested_subset(train.labels, fraction=fraction, seed=seed, name=train.name))


def num_training_examples(subset: Dataset | Source, copies: Copies | None, undersample: bool, seed: int) -> int:
    """How many examples a run learns from: its share of the training split with the copies, and undersampled."""
    labels = np.tile(subset.labels, 1 + (len(copies.attacks) if copies else 0))
    return len(data.undersample(labels, seed=seed, name=subset.name)) if undersample else len(labels)
