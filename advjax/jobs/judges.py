"""The models that an evaluation scores: every trained run by itself, and with each of its test-time defences."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from advjax.data import Dataset
from advjax.evaluation.evaluate import predictor
from advjax.evaluation.outcomes import Outcome
from advjax.evaluation.scored_model import Deployed, model_hash, undefended
from advjax.experiment.spec import Experiment, NamedDefense, Run
from advjax.jobs.train import Notify, restore
from advjax.runtime.devices import Devices
from advjax.types import PyTree


class Judge(NamedTuple):
    """A trained run, alone or with a defence, ready to classify the test images."""

    run: Run
    defense: NamedDefense | None
    deployed: Deployed
    variables: PyTree
    hash: str
    """Of the variables of the run."""
    predict: Callable[[PyTree, np.ndarray, np.ndarray, int], np.ndarray]
    """``(variables, images, index, seed) -> classes``"""
    test: Dataset
    predictions: np.ndarray
    """int32 [n]: the classes of the clean test images."""

    @property
    def name(self) -> str:
        return self.run.name if self.defense is None else f"{self.run.name}+{self.defense.name}"

    @property
    def defense_name(self) -> str:
        return "none" if self.defense is None else self.defense.name

    @property
    def is_random(self) -> bool:
        return self.deployed.num_draws > 0

    def owns(self, entry: Outcome) -> bool:
        """Whether the outcome is of this model."""
        return (entry.run, entry.defense) == (self.run.name, self.defense_name)


def judges_of(experiment: Experiment, workdir: str, test: Dataset, devices: Devices, notify: Notify) -> list[Judge]:
    """All runs, then all runs with a defence, each with its predictions for the clean images.

    Raises:
      UserError: a run has not been trained, or its checkpoint cannot be used.
    """
    batch_size, judges = experiment.evaluation.batch_size, []
    restored = {run.name: restore(run, workdir, test.images.shape[1:], notify) for run in experiment.runs}
    by_name = {run.name: run for run in experiment.runs}
    models: list[tuple[Run, NamedDefense | None, Deployed, PyTree]] = [
        (run, None, undefended(run.model), restored[run.name]) for run in experiment.runs
    ]
    for defense in experiment.evaluation.defenses:
        run, arrays = by_name[defense.run], defense.arrays(experiment.data.train)
        models.append((run, defense, defense.deploy(run.model), (restored[run.name], arrays)))
    for run, defense, deployed, variables in models:
        predict = predictor(deployed, devices, batch_size)
        predictions = predict(variables, test.images, test.index, experiment.seed)
        code = model_hash(restored[run.name])
        judges.append(Judge(run, defense, deployed, variables, code, predict, test, predictions))
    return judges
