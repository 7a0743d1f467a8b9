"""Training the runs of an experiment in a folder, one after the other."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from advjax import data
from advjax.data import Dataset, Source
from advjax.evaluation.attack_runs import Resources
from advjax.experiment.build_data import extra_images, training_subset
from advjax.experiment.from_config import complete
from advjax.experiment.spec import Experiment, Run
from advjax.jobs.adversarial_augmentation import with_copies
from advjax.jobs.dry_run import check_evaluation, check_runs
from advjax.jobs.validation import validation
from advjax.jobs.workdir import Notify, claim, open_experiment, restore, write_experiment
from advjax.models import blocks
from advjax.runtime.devices import Devices
from advjax.training.loop import fit
from advjax.types import Variables


def train(
    config: Mapping[str, Any],
    workdir: str,
    devices: Devices,
    notify: Notify,
    stop_requested: Callable[[], bool] = lambda: False,
    on_trained: Callable[[str], None] = lambda name: None,
) -> None:
    """Trains the runs in order; a finished one is left as it is, an interrupted one resumes.

    Args:
      config: of the experiment, complete or not.
      workdir: where it is trained.
      devices: where to compute.
      notify: receives what people should know.
      stop_requested: asked after every call of the training program, see ``steps_per_call``.
      on_trained: receives the name of each run of this folder once it is there.

    Raises:
      UserError: something in the config makes no sense, its evaluation included, or the folder holds another
        experiment's runs (nothing has been trained then); or a checkpoint cannot be used.
      PreemptedError: asked to stop; the state has been saved.
    """
    config = complete(config)
    experiment = open_experiment(config, workdir)
    check_runs(experiment, devices)
    check_evaluation(experiment, experiment.load_data().train)
    for run in experiment.runs:
        claim(run, workdir)
    write_experiment(experiment, config, workdir)
    train_runs(experiment, workdir, devices, notify, stop_requested, on_trained)


def train_runs(
    experiment: Experiment,
    workdir: str,
    devices: Devices,
    notify: Notify,
    stop_requested: Callable[[], bool] = lambda: False,
    on_trained: Callable[[str], None] = lambda name: None,
) -> dict[str, Variables]:
    """Trains the runs of an experiment in order, see ``train``; returns the variables of each."""
    trainer = _Trainer(experiment, workdir, devices, notify, stop_requested)
    done: dict[str, Variables] = {}
    for run in experiment.runs:
        if not run.is_taken:
            _train_run(run, trainer, done)
            on_trained(run.name)
        done[run.name] = restore(run, workdir, experiment.facts.image_shape, notify)
    return done


class _Trainer(NamedTuple):
    """What the training of every run has in common."""

    experiment: Experiment
    workdir: str
    devices: Devices
    notify: Notify
    stop_requested: Callable[[], bool]

    def resources(self, store: str | None) -> Resources:
        """For attacks on the networks of runs."""
        plan = self.experiment.evaluation
        return Resources(self.devices, plan.batch_size, self.experiment.seed, store, self.stop_requested)


def _train_run(run: Run, trainer: _Trainer, done: Mapping[str, Variables]) -> None:
    models = {earlier.name: earlier.model for earlier in trainer.experiment.runs if earlier.name in done}
    variables = _untrained(run, trainer.experiment, done)
    dataset = _training_data(run, trainer, models, done)
    folder = os.path.join(trainer.workdir, run.name)
    fit(
        run.name,
        run.method(variables, models),
        run.plan,
        variables,
        dataset,
        {name: done[name] for name in run.sources},
        validation(
            run,
            variables,
            trainer.experiment.load_data().validation,
            {name: (models[name], done[name]) for name in run.needs},
            trainer.resources(os.path.join(folder, "validation")),
        ),
        folder=folder,
        devices=trainer.devices,
        config=dict(run.identity),
        notify=trainer.notify,
        stop_requested=trainer.stop_requested,
        on_metrics=trainer.experiment.on_metrics,
        extra=extra_images(run.extra_images, dataset) if run.extra_images else None,
    )


def _training_data(
    run: Run, trainer: _Trainer, models: Mapping[str, nn.Module], done: Mapping[str, Variables]
) -> Dataset | Source:
    """The run's share of the training images, adversarial copies of them, and balanced classes."""
    experiment = trainer.experiment
    dataset = training_subset(experiment.load_data(), run.train_fraction, experiment.seed)
    if run.copies:
        source = run.copies.made_on
        resources = trainer.resources(os.path.join(trainer.workdir, "copies"))
        dataset = with_copies(dataset, run.copies, models[source], done[source], resources)
    if run.undersample:
        dataset = dataset.take(data.undersample(dataset.labels, seed=experiment.seed, name=dataset.name))
    return dataset


def _untrained(run: Run, experiment: Experiment, done: Mapping[str, Variables]) -> Variables:
    variables = blocks.init(run.model, jax.random.key(run.plan.seed), experiment.facts.image_shape)
    if run.start is None:
        return variables
    start = done[run.start]
    # A model that is put around that of an earlier run has its variables under this name.
    return blocks.graft(variables, start) if "base" in variables.params else start
