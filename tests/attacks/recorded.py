"""Small frozen networks and what attacks of other libraries did to them (``shared/reference/README.md``)."""

import functools
import importlib.util
import pathlib
from typing import NamedTuple

import numpy as np

from advjax.types import LogitsFn


class Recorded(NamedTuple):
    """The first ``count`` images of a network and the arrays recorded for them."""

    logits_fn: LogitsFn
    images: np.ndarray
    labels: np.ndarray
    clean_correct: np.ndarray
    minimal: dict[str, np.ndarray]


def load(shared: pathlib.Path, name: str, count: int) -> Recorded:
    folder = shared / "reference"
    specification = importlib.util.spec_from_file_location("reference_networks", folder / "reference_networks.py")
    networks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(networks)
    data, minimal = np.load(folder / f"{name}_images.npz"), np.load(folder / f"{name}_minimal.npz")
    return Recorded(
        functools.partial(networks.NETWORKS[name], networks.load(name)),
        data["images"][:count].astype(np.float32) / 255,
        data["labels"][:count].astype(np.int32),
        data["clean_correct"][:count],
        {key: minimal[key][:count] for key in minimal.files if minimal[key].ndim},
    )
