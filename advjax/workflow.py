"""Training the runs of an experiment in a folder, and restoring them.

<workdir>/config.json              the experiment
<workdir>/copies/                  attacked copies of training images, see `advjax.attacked_copies`
<workdir>/<run>/                   run.json, checkpoints/, metrics.jsonl, TensorBoard events
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from advjax import checkpoint, data
from advjax.attacked_copies import with_copies
from advjax.data import Dataset, Source
from advjax.evaluation.deployment import undefended
from advjax.evaluation.evaluate import attacker, predictor
from advjax.evaluation.files import write_atomically
from advjax.experiment import Experiment, Run
from advjax.models import blocks
from advjax.sharding import Devices
from advjax.training.loop import deployed, fit
from advjax.types import PyTree, UserError, Variables
from advjax.wiring import training_subset

Notify = Callable[[str], None]


def train(
    experiment: Experiment,
    workdir: str,
    devices: Devices,
    notify: Notify,
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Trains the runs in order; a finished one is left as it is, an interrupted one goes on where it was.

    Raises:
      UserError: the folder holds another experiment's runs, or a checkpoint cannot be used.
      PreemptedError: asked to stop; the state has been saved.
    """
    for run in experiment.runs:
        _claim(run, workdir)
    if jax.process_index() == 0:
        _write_json(pathlib.Path(workdir) / "config.json", experiment.config)
    done: dict[str, Variables] = {}
    for run in experiment.runs:
        if not run.checkpoint:
            _train_run(run, experiment, done, workdir, devices, notify, stop_requested)
        done[run.name] = restore(run, workdir, experiment.image_shape, notify)


def restore(run: Run, workdir: str, image_shape: tuple[int, int, int], notify: Notify) -> Variables:
    """The variables of a trained run: of its best or last checkpoint, as its plan says.

    Raises:
      UserError: there is no whole checkpoint, or it belongs to another model.
    """
    folder = run.checkpoint or os.path.join(workdir, run.name)
    which = "best" if run.plan.select == "best" else "latest"
    restored = checkpoint.restore_variables(
        os.path.join(folder, "checkpoints"), which=which, best_metric=run.plan.select_metric, notify=notify
    )
    variables = deployed(restored.state)
    expected = jax.eval_shape(lambda: blocks.init(run.model, jax.random.key(0), image_shape))
    there, here = (_shapes(tree) for tree in (variables, expected))
    if there != here:
        path = sorted(there.items() ^ here.items())[0][0]
        raise UserError(
            f"{folder} holds another model than run {run.name!r} describes: "
            f"{path} is {there.get(path, 'absent')} there and {here.get(path, 'absent')} here"
        )
    return variables


def _train_run(
    run: Run,
    experiment: Experiment,
    done: Mapping[str, Variables],
    workdir: str,
    devices: Devices,
    notify: Notify,
    stop_requested: Callable[[], bool],
) -> None:
    models = {earlier.name: earlier.model for earlier in experiment.runs if earlier.name in done}
    dataset = _training_data(run, experiment, models, done, workdir, devices, stop_requested)
    variables = _untrained(run, experiment, done)
    fit(
        run.name,
        run.method(variables, models),
        run.plan,
        variables,
        dataset,
        {name: done[name] for name in run.asks},
        _validation(run, experiment, models, done, devices),
        folder=os.path.join(workdir, run.name),
        devices=devices,
        config=run.spec,
        notify=notify,
        stop_requested=stop_requested,
    )


def _training_data(
    run: Run,
    experiment: Experiment,
    models: Mapping[str, nn.Module],
    done: Mapping[str, Variables],
    workdir: str,
    devices: Devices,
    stop_requested: Callable[[], bool],
) -> Dataset | Source:
    """What the run learns from: its share of the training images, attacked copies of them, and balanced classes."""
    dataset = training_subset(experiment.data, run.train_fraction, experiment.seed)
    if run.copies:
        made_on = run.copies.made_on
        dataset = with_copies(
            dataset,
            run.copies,
            models[made_on],
            done[made_on],
            workdir=workdir,
            seed=experiment.seed,
            batch_size=experiment.evaluation.batch_size,
            devices=devices,
            stop_requested=stop_requested,
        )
    if run.undersample:
        dataset = dataset.take(data.undersample(dataset.labels, seed=experiment.seed, name=dataset.name))
    return dataset


def _untrained(run: Run, experiment: Experiment, done: Mapping[str, Variables]) -> Variables:
    variables = blocks.init(run.model, jax.random.key(run.plan.seed), experiment.image_shape)
    if run.start is None:
        return variables
    start = done[run.start]
    # Whatever goes around the model of an earlier run has its variables under this name.
    return blocks.graft(variables, start) if "base" in variables.params else start


def _validation(
    run: Run,
    experiment: Experiment,
    models: Mapping[str, nn.Module],
    done: Mapping[str, Variables],
    devices: Devices,
) -> Callable[[Variables], dict[str, float]]:
    """Accuracy on the validation images: clean and, if the run trains against an attack, under that attack.

    Their mean is the "score" that the best checkpoint is chosen by.  Without validation images there are no numbers.
    """
    dataset, batch_size = experiment.data.validation, experiment.evaluation.batch_size
    if not len(dataset.labels):
        return lambda variables: {}
    predict = predictor(undefended(run.model), devices, batch_size)
    attack, made_on = None, run.made_on or "self"
    if run.attack is not None:
        attacked_model = run.model if made_on == "self" else models[made_on]
        attack = attacker(undefended(attacked_model), run.attack, "validation", devices, batch_size)
    # Images attacked on a model that does not change need to be attacked only once.
    frozen: list[np.ndarray] = []

    def accuracy(variables: Variables, images: np.ndarray) -> float:
        return float(np.mean(predict(variables, images, dataset.index, run.plan.seed) == dataset.labels))

    def validate(variables: Variables) -> dict[str, float]:
        scores = {"accuracy": accuracy(variables, dataset.images)}
        if attack is not None:
            if made_on == "self" or not frozen:
                target = variables if made_on == "self" else done[made_on]
                frozen[:] = [attack(target, dataset, run.plan.seed, None).images]
            scores["attacked_accuracy"] = accuracy(variables, frozen[0])
        return {**scores, "score": float(np.mean(list(scores.values())))}

    return validate


def _claim(run: Run, workdir: str) -> None:
    """Refuses a folder that holds this run trained in another way; otherwise writes down what it is."""
    path = pathlib.Path(workdir) / run.name / "run.json"
    if run.checkpoint:
        return
    if path.exists():
        there = json.loads(path.read_text())
        if difference := _first_difference(there, run.spec):
            key, old, new = difference
            raise UserError(
                f"{path.parent} holds run {run.name!r} of another configuration ({key} is {old!r} there, {new!r} "
                f"here): choose another --workdir, or remove {path.parent} to train it anew"
            )
    elif jax.process_index() == 0:
        _write_json(path, run.spec)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _first_difference(there: Any, here: Any, path: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            if found := _first_difference(there.get(key), here.get(key), f"{path}.{key}" if path else key):
                return found
        return None
    return None if there == here else (path, there, here)


def _write_json(path: pathlib.Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
