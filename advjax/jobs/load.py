"""A trained network of a working directory, for your own code."""

import functools
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from advjax.data import Dataset
from advjax.experiment.spec import Experiment
from advjax.jobs.workdir import Notify, open_experiment, read_config, restore
from advjax.models import blocks
from advjax.types import LogitsFn, UserError, Variables

__all__ = ["Trained", "load"]


class Trained:
    """A trained network.

    Attributes:
      model: the linen module.
      variables: of the checkpoint that the run's ``select`` names; averaged weights where the run averages.
      config: the complete config of the experiment.
    """

    def __init__(
        self, model: nn.Module, variables: Variables, config: Mapping[str, Any], experiment: Experiment
    ) -> None:
        self.model, self.variables, self.config = model, variables, ConfigDict(dict(config))
        self._experiment = experiment

    @property
    def logits_fn(self) -> LogitsFn:
        """``float images [n, h, w, c] in [0, 1] -> logits [n, classes]``, in inference mode; differentiable.

        Noise layers are off, as in an evaluation without a defense; ``blocks.stochastic_logits_fn`` has them on.
        """
        return blocks.logits_fn(self.model, self.variables)

    @functools.cached_property
    def test(self) -> Dataset:
        """The test images of the experiment, read when they are first looked at."""
        return self._experiment.load_data().test


def load(workdir: str | os.PathLike[str], run: str, *, notify: Notify = print, trust_workdir: bool = False) -> Trained:
    """The network that ``python -m advjax.main`` has trained in a folder.

    The data set need not be there, unless the folder was made before advjax stored what it needs of it.

    Example::

        network = advjax.load("workdirs/digits_fixer", "fixer")
        logits = network.logits_fn(network.test.images[:8] / np.float32(255))

    Args:
      workdir: the folder.
      run: the name of a run of its experiment.
      notify: receives a line when a damaged checkpoint is passed over.
      trust_workdir: whether the folder's config may name functions outside advjax and its configs, and so run code.

    Raises:
      UserError: there is no experiment in the folder, none of its runs has this name, it has no intact checkpoint, or
        its config names functions of other packages and is not trusted.
    """
    config = read_config(workdir, trust_workdir)
    experiment = open_experiment(config, workdir)
    known = {known.name: known for known in experiment.runs}
    if run not in known:
        raise UserError(f"no run of {workdir} is named {run!r}; there are {', '.join(known)}")
    variables = restore(known[run], workdir, experiment.facts.image_shape, notify)
    return Trained(known[run].model, variables, config, experiment)
