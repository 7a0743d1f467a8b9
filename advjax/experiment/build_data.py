"""The splits of a data set, the shares that runs train on, and what models and plans depend on of them."""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from advjax import data
from advjax.data import Dataset, Source
from advjax.experiment import defaults
from advjax.experiment.registry import number
from advjax.experiment.spec import Data, DataFacts, Division
from advjax.types import UserError


def load_data(config: Mapping[str, Any], seed: int) -> Data:
    """Train, validation and test split, each a function of (data set, seed) alone, or of an index file.

    The data read last are kept, so that one process reads them once.

    Args:
      config: the complete part ``data`` of a config.
      seed: of the experiment.
    """
    return _read(json.dumps(config), seed, _content(config["index_file"]))


@functools.lru_cache(maxsize=1)
def _read(config_text: str, seed: int, index_content: bytes) -> Data:
    """Reads the data; the content of the index file only tells calls apart."""
    del index_content
    config = json.loads(config_text)
    arguments = {"directory": config["dir"] or None, "image_size": config["image_size"]}
    read = data.open_source if config["stream"] else data.load
    _check_splits(config)
    pool = read(config["name"], config["train_split"], **arguments)
    parts = _parts(pool, config, seed)
    if "test" in parts:
        test = _in_memory(pool.take(parts["test"]))
    else:
        if not config["test_on_training"]:
            _check_apart(config)
        test = data.load(config["name"], config["test_split"], **arguments)
    train, validation = (pool.take(parts[part]) for part in ("train", "validation"))
    validation = test if config["validate_on_test"] else _in_memory(validation)
    return Data(train, validation, test, Division(pool.name, pool.labels, parts))


def describe_data(loaded: Data, runs: Mapping[str, Mapping[str, Any]], seed: int) -> DataFacts:
    """What models and plans depend on of the data.

    Args:
      loaded: the data.
      runs: the complete descriptions of the runs, by name.
      seed: of the experiment.
    """
    counts = {name: _num_training_examples(loaded, spec, seed) for name, spec in runs.items()}
    train = loaded.train
    height, width, channels = train.image_shape
    return DataFacts(train.name, (height, width, channels), train.num_classes, len(loaded.validation.labels), counts)


_WITHOUT_EFFECT = {
    "fractions": ("num_validation", "per_class", "test_split", "test_on_training", "num_folds", "index_file"),
    "num_folds": ("per_class", "test_split", "test_on_training", "index_file"),
    "index_file": ("num_validation", "per_class"),
}
"""How ``data.train_split`` may be divided, and what then has no effect."""


def _check_splits(config: Mapping[str, Any]) -> None:
    """Refuses what would have no effect."""
    for way, keys in _WITHOUT_EFFECT.items():
        for key in keys:
            if config[way] and config[key] != defaults.DATA[key]:
                raise UserError(
                    f"data.{key} has no effect beside data.{way}, which divides data.train_split; leave it out"
                )
    if config["name"] == "digits" and config["dir"]:
        raise UserError("data.dir has no effect on digits, which come with scikit-learn; leave it out")
    if config["by_patient"] and not config["fractions"]:
        raise UserError("data.by_patient needs data.fractions: without them the splits are those of the data set")
    if config["validate_on_test"] and (config["num_validation"] or config["fractions"] or config["index_file"]):
        raise UserError("data.validate_on_test leaves no use for other validation images: set num_validation=0")
    if config["fold"] and not config["num_folds"]:
        raise UserError("data.fold needs data.num_folds, the number of folds")


def _check_apart(config: Mapping[str, Any]) -> None:
    if data.have_common_examples(config["train_split"], config["test_split"]):
        raise UserError(
            f"data.test_split {config['test_split']!r} has images of data.train_split {config['train_split']!r}; "
            "choose parts without common images, as in train[1024:] and train[:1024], or say data.test_on_training"
        )


def _content(path: str) -> bytes:
    try:
        return pathlib.Path(path).read_bytes() if path else b""
    except OSError:
        # Whoever reads the file says what is wrong with it.
        return b""


def _parts(pool: Dataset | Source, config: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Positions in ``data.train_split``: "train", "validation", and "test" where it is taken from there as well."""
    if config["index_file"]:
        parts = data.read_index(config["index_file"], pool)
        if missing := {"train", "validation"} - parts.keys():
            raise UserError(f"data.index_file: {config['index_file']} has no part {min(missing)!r}")
        return parts
    if config["fractions"]:
        return _shares(pool, [number(share) for share in config["fractions"]], bool(config["by_patient"]), seed)
    labels, known = pool.labels, {"seed": seed, "name": pool.name}
    parts, kept = {}, np.arange(len(labels), dtype=np.int32)
    if config["num_folds"]:
        kept, parts["test"] = data.k_fold(labels, num_folds=config["num_folds"], fold=config["fold"], **known)
    elif config["per_class"]:
        kept = data.class_balanced(labels, per_class=config["per_class"], **known)
    train, validation = data.train_validation(labels[kept], num_validation=config["num_validation"], **known)
    return {"train": kept[train], "validation": kept[validation], **parts}


def _shares(pool: Dataset | Source, shares: list[float], by_patient: bool, seed: int) -> dict[str, np.ndarray]:
    if len(shares) != 3:
        raise UserError(f"data.fractions needs three shares, of training, validation and test images, got {shares}")
    if by_patient:
        if pool.groups is None:
            raise UserError(f"data.by_patient: {pool.name} does not say which images belong to one patient")
        parts = data.by_group(pool.groups, shares, seed=seed, name=pool.name)
    else:
        parts = data.fractions(pool.labels, shares, seed=seed, name=pool.name)
    return dict(zip(("train", "validation", "test"), parts, strict=True))


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


def extra_images(file: str, train: Dataset | Source) -> Dataset:
    """More training images from an .npz file; its labels are numbers of the classes of ``train``.

    Raises:
      UserError: the file cannot be read, or its images have another size, or its labels are not those of the classes.
    """
    if not pathlib.Path(file).expanduser().is_file():
        raise UserError(f"extra_images: there is no file {file}")
    extra = data.load("npz", "train", directory=file)
    if extra.image_shape != train.image_shape:
        raise UserError(f"{file} has images of {extra.image_shape}, and {train.name} of {train.image_shape}")
    if extra.labels.max() >= train.num_classes:
        raise UserError(f"{file} has the label {extra.labels.max()}, and {train.name} has {train.num_classes} classes")
    return extra._replace(class_names=train.class_names)


def _num_training_examples(loaded: Data, spec: Mapping[str, Any], seed: int) -> int:
    """How many examples a run trains on: its share of the training split with the copies, undersampled."""
    subset = training_subset(loaded, number(spec["train_fraction"]), seed)
    labels = np.tile(subset.labels, 1 + len(spec["copies"]["order"]))
    return len(data.undersample(labels, seed=seed, name=subset.name)) if spec["undersample"] else len(labels)
