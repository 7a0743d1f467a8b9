"""Training the runs of an experiment in a folder, and restoring them.

<workdir>/config.json              the experiment
<workdir>/split.json               which examples train, validate and, if they are taken from the same split, test
<workdir>/copies/                  attacked copies of training images, see `advjax.jobs.adversarial_augmentation`
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

from advjax import data
from advjax.data import Dataset, Source
from advjax.evaluation.evaluate import attacker, predictor
from advjax.evaluation.scored_model import one_draw
from advjax.experiment import defaults
from advjax.experiment.build_data import training_subset
from advjax.experiment.spec import Experiment, Run
from advjax.jobs.adversarial_augmentation import with_copies
from advjax.models import blocks
from advjax.runtime import checkpoint
from advjax.runtime.devices import Devices
from advjax.runtime.files import write_atomically
from advjax.training.loop import evaluation_variables, fit
from advjax.types import PyTree, UserError, Variables

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
      UserError: the folder holds another experiment's runs, a checkpoint cannot be used, or a batch does not divide by
        the devices; nothing has been trained then.
      PreemptedError: asked to stop; the state has been saved.
    """
    for run in experiment.runs:
        if not run.checkpoint:
            _check_batch(run, devices)
    for run in experiment.runs:
        _claim(run, workdir)
    if jax.process_index() == 0:
        _write_json(pathlib.Path(workdir) / "config.json", experiment.config)
        division = experiment.data.division
        data.write_index(pathlib.Path(workdir) / "split.json", division, division.parts, meta=experiment.config["data"])
    done: dict[str, Variables] = {}
    for run in experiment.runs:
        if not run.checkpoint:
            _train_run(run, experiment, done, workdir, devices, notify, stop_requested)
        done[run.name] = restore(run, workdir, experiment.image_shape, notify)


def restore(run: Run, workdir: str, image_shape: tuple[int, int, int], notify: Notify) -> Variables:
    """The variables of a trained run: of its best or last checkpoint, as its plan says.

    Raises:
      UserError: there is no whole checkpoint, or it belongs to another run than the one described.
    """
    folder = run.checkpoint or os.path.join(workdir, run.name)
    which = "best" if run.plan.select == "best" else "latest"
    restored = checkpoint.restore_variables(
        os.path.join(folder, "checkpoints"), which=which, best_metric=run.plan.select_metric, notify=notify
    )
    variables = evaluation_variables(restored.state)
    expected = jax.eval_shape(lambda: blocks.init(run.model, jax.random.key(0), image_shape))
    there, here = (_shapes(tree) for tree in (variables, expected))
    if there != here:
        path = sorted(there.items() ^ here.items())[0][0]
        raise UserError(
            f"{folder} holds another model than run {run.name!r} describes: "
            f"{path} is {there.get(path, 'absent')} there and {here.get(path, 'absent')} here"
        )
    _check_origin(run, restored.config, folder)
    return variables


def _check_origin(run: Run, there: Mapping[str, Any], folder: str) -> None:
    """Refuses variables that do not mean what the run says.

    Those of the run itself come from the very run that is described.  Another run's, taken as a checkpoint, are those
    of the same network; and where the test images are a share of the training split, of the same shares.
    """
    if not there.keys() >= run.spec.keys():
        # Not from ``train``, which alone knows what the run is: the shapes have to do.
        return
    there, here = _completed(there, run.spec), _plain(run.spec)
    if run.checkpoint:
        divided = any(spec["data"]["fractions"] for spec in (there, here))
        there, here = (_network_and_shares(spec, divided) for spec in (there, here))
    if difference := _first_difference(there, here):
        key, old, new = difference
        raise UserError(
            f"{folder} holds a run of another configuration than run {run.name!r} ({key} is {old!r} there, {new!r} "
            "here): evaluate it with the configuration that it was trained with"
        )


def _network_and_shares(spec: Mapping[str, Any], with_shares: bool) -> dict[str, Any]:
    """What of the description of a run says which network it is, and which images it has not seen."""

    def model(spec: Mapping[str, Any]) -> dict[str, Any]:
        described = dict(spec["run"]["model"])
        # The base may have another name there.
        return described | ({"base": model(spec["needs"][described["base"]])} if described.get("base") else {})

    found: dict[str, Any] = {"run": {"model": model(spec)}}
    return found | ({"data": spec["data"], "seed": spec["seed"]} if with_shares else {})


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
        _validation(run, variables, experiment, models, done, devices),
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
    untrained: Variables,
    experiment: Experiment,
    models: Mapping[str, nn.Module],
    done: Mapping[str, Variables],
    devices: Devices,
) -> Callable[[Variables], dict[str, float]]:
    """Accuracy on the validation images: clean and, if the run is validated with an attack, under that attack.

    A random model has its noise on, one draw for each image and question.  The mean of both accuracies is the "score",
    which the best checkpoint is chosen by unless the plan says otherwise.  Without validation images there are no
    numbers.
    """
    dataset, batch_size = experiment.data.validation, experiment.evaluation.batch_size
    if not len(dataset.labels):
        return lambda variables: {}
    image_shape = experiment.image_shape
    own = one_draw(run.model, untrained, image_shape)
    predict = predictor(own, devices, batch_size)
    attack, made_on = None, "self"
    if run.validation_attack is not None:
        made_on = run.validation_attack.made_on
        attacked = own if made_on == "self" else one_draw(models[made_on], done[made_on], image_shape)
        attack = attacker(attacked, run.validation_attack.attack, "validation", devices, batch_size)
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


def _check_batch(run: Run, devices: Devices) -> None:
    try:
        devices.local_rows(run.plan.batch_size)
    except UserError as error:
        raise UserError(f"run.{run.name}.batch_size: {error}") from None


def _claim(run: Run, workdir: str) -> None:
    """Refuses a folder that holds this run trained in another way; otherwise writes down what it is."""
    path = pathlib.Path(workdir) / run.name / "run.json"
    if run.checkpoint:
        return
    if path.exists():
        there = _completed(json.loads(path.read_text()), run.spec)
        if difference := _first_difference(there, _plain(run.spec)):
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


def _completed(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """A stored description of a run with the defaults of keys that did not exist yet when it was written."""
    described = {"data": defaults.DATA, "run": defaults.RUN}
    filled = {
        part: {key: known[key] for key in here[part] if key in known} | there[part] for part, known in described.items()
    }
    needs = {name: _completed(spec, here["needs"].get(name, spec)) for name, spec in there["needs"].items()}
    return _plain({**there, **filled, "needs": needs})


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(spec))


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
