"""A trained network of a working directory, for your own code."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
from ml_collections import ConfigDict

from advjax.data import Dataset
from advjax.experiment.from_config import from_config
from advjax.jobs import train
from advjax.models import blocks
from advjax.types import LogitsFn, UserError, Variables

__all__ = ["Trained", "experiment_config", "load"]


class Trained(NamedTuple):
    """What is left of a run, and the data that it has not seen."""

    model: nn.Module
    variables: Variables
    """Of the checkpoint that the run's ``select`` names; averaged weights where the run averages."""
    test: Dataset
    """The test images of the experiment."""
    config: ConfigDict
    """The whole experiment."""

    @property
    def logits_fn(self) -> LogitsFn:
        """``float images [n, h, w, c] in [0, 1] -> logits [n, classes]``, in inference mode; differentiable."""
        return blocks.logits_fn(self.model, self.variables)


def load(workdir: str | os.PathLike[str], run: str, *, notify: Callable[[str], None] = print) -> Trained:
    """The network that ``python -m advjax.main`` has trained in a folder.

    Example::

        network = trained.load("workdirs/digits_fixer", "fixer")
        logits = network.logits_fn(network.test.images[:8] / np.float32(255))

    Args:
      workdir: the folder.
      run: the name of a run of its experiment.
      notify: told when a damaged checkpoint is passed over.

    Raises:
      UserError: there is no experiment in the folder, none of its runs has this name, or it has no whole checkpoint.
    """
    config = experiment_config(workdir)
    experiment = from_config(config)
    known = {known.name: known for known in experiment.runs}
    if run not in known:
        raise UserError(f"no run of {workdir} is named {run!r}; there are {', '.join(known)}")
    variables = train.restore(known[run], os.fspath(workdir), experiment.image_shape, notify)
    return Trained(known[run].model, variables, experiment.data.test, config)


def experiment_config(workdir: str | os.PathLike[str]) -> ConfigDict:
    """The config that a folder was trained with.

    Raises:
      UserError: there is none.
    """
    path = pathlib.Path(workdir, "config.json")
    if not path.exists():
        raise UserError(f"{workdir} holds no experiment: there is no {path}")
    return ConfigDict(json.loads(path.read_text()))
