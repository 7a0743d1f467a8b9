"""Small frozen networks and what attacks of other libraries did to them (``shared/reference/README.md``)."""

import functools
import pathlib
from typing import NamedTuple

import numpy as np

from advjax.types import LogitsFn
from support.reference import reference_networks


class Recorded(NamedTuple):
    """The first ``count`` images of a network and the arrays recorded for them."""

    logits_fn: LogitsFn
    images: np.ndarray
    labels: np.ndarray
    clean_correct: np.ndarray
    minimal: dict[str, np.ndarray]


def load(shared: pathlib.Path, name: str, count: int) -> Recorded:
    folder = shared / "reference"
    networks = reference_networks(shared)
    data, minimal = np.load(folder / f"{name}_images.npz"), np.load(folder / f"{name}_minimal.npz")
    return Recorded(
        functools.partial(networks.NETWORKS[name], networks.load(name)),
        data["images"][:count].astype(np.float32) / 255,
        data["labels"][:count].astype(np.int32),
        data["clean_correct"][:count],
        {key: minimal[key][:count] for key in minimal.files if minimal[key].ndim},
    )
