"""Training and evaluating the runs of an experiment in a folder.

<workdir>/config.json              the experiment
<workdir>/<run>/                   run.json, checkpoints/, metrics.jsonl, TensorBoard events
<workdir>/report.json, report.html, outcomes.npz
"""

import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from advjax import checkpoint
from advjax.data import Dataset
from advjax.evaluation import page, plots, report
from advjax.evaluation.evaluate import Adversarial, attacker, model_hash, pixels, predictor
from advjax.experiment import Experiment, NamedAttack, Run, training_subset
from advjax.metrics import read_metrics
from advjax.models import blocks
from advjax.sharding import Devices
from advjax.training.loop import deployed, fit
from advjax.types import PyTree, UserError, Variables

Notify = Callable[[str], None]


def train(experiment: Experiment, workdir: str, devices: Devices, notify: Notify) -> None:
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
            _train_run(run, experiment, done, workdir, devices, notify)
        done[run.name] = restore(run, workdir, experiment.image_shape, notify)


def restore(run: Run, workdir: str, image_shape: tuple[int, int, int], notify: Notify) -> Variables:
    """The variables of a trained run: of its best or last checkpoint, as its plan says.

    Raises:
      UserError: there is no whole checkpoint, or it belongs to another model.
    """
    folder = run.checkpoint or os.path.join(workdir, run.name)
    restored = checkpoint.restore_variables(
        os.path.join(folder, "checkpoints"), which=run.plan.select, best_metric=run.plan.select_metric, notify=notify
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


def evaluate(experiment: Experiment, workdir: str, devices: Devices, notify: Notify) -> report.Report:
    """Measures every run on the test images, writes the report and returns it.

    Every attack is made twice or more: on ``evaluation.made_on``, shown to every run (transfer), and on each run itself
    (adaptive).  An accuracy under the second alone is called robust accuracy.
    """
    plan, test = experiment.evaluation, experiment.data.test
    test = test.take(np.arange(min(plan.num_examples or len(test.labels), len(test.labels))))
    judges = {run.name: _judge(run, workdir, test, plan.batch_size, devices, notify) for run in experiment.runs}
    source = judges[plan.made_on]
    outcomes = [_clean(judge, experiment.seed) for judge in judges.values()]
    base_correct = report.correct_index(next(outcome for outcome in outcomes if outcome.run == plan.made_on))
    gallery: list[page.GalleryItem] = []
    for attack in plan.attacks:
        made = [_make(source, attack, plan.transfer_labels, plan.protocol, experiment, devices)]
        made += [_make(judge, attack, "verdict", "sound", experiment, devices) for judge in judges.values()]
        for attempt in made:
            shown_to = judges.values() if attempt is made[0] else (judges[attempt.made_on],)
            seen = [_under(judge, attempt, experiment.seed) for judge in shown_to]
            outcomes += seen
            if attack.name == plan.pictured:
                gallery += _pictures(attempt, seen, judges, base_correct[: plan.num_pictures])
    found = report.Report(
        report.SCHEMA_VERSION,
        experiment.title,
        experiment.config,
        report.describe_environment(),
        report.rows(outcomes, {report.BASE_CORRECT: base_correct}),
        [],
    )
    if jax.process_index() == 0:
        report.write(found, outcomes, workdir)
        curves = _curves(experiment.runs, workdir)
        page.write_page(found, curves=curves, gallery=gallery, path=os.path.join(workdir, "report.html"))
    return found


class _Judge(NamedTuple):
    """A trained run, ready to classify the test images."""

    run: Run
    variables: Variables
    hash: str
    predict: Callable[[Variables, np.ndarray], np.ndarray]
    test: Dataset
    predictions: np.ndarray


class _Attempt(NamedTuple):
    """Adversarial test images and how they came about."""

    attack: NamedAttack
    made_on: str
    label_use: str
    protocol: str
    result: Adversarial


def _judge(run: Run, workdir: str, test: Dataset, batch_size: int, devices: Devices, notify: Notify) -> _Judge:
    variables = restore(run, workdir, test.images.shape[1:], notify)
    predict = predictor(run.model, devices, batch_size)
    return _Judge(run, variables, model_hash(variables), predict, test, predict(variables, test.images))


def _make(
    judge: _Judge, attack: NamedAttack, label_use: str, protocol: str, experiment: Experiment, devices: Devices
) -> _Attempt:
    is_verdict = label_use == "verdict"
    attack_fn = attack.for_verdict() if is_verdict else attack.for_transfer(label_use)
    run = attacker(judge.run.model, attack_fn, attack.name, devices, experiment.evaluation.batch_size)
    result = run(judge.variables, judge.test, experiment.seed)
    return _Attempt(attack, judge.run.name, "true" if is_verdict else label_use, protocol, result)


def _clean(judge: _Judge, seed: int) -> report.Outcome:
    zeros = np.zeros(len(judge.test.labels))
    return _outcome(judge, None, seed)._replace(predictions=judge.predictions, distances=zeros, steps=zeros)


def _under(judge: _Judge, attempt: _Attempt, seed: int) -> report.Outcome:
    start = time.perf_counter()
    predictions = judge.predict(judge.variables, attempt.result.images)
    seconds = attempt.result.seconds + time.perf_counter() - start
    return _outcome(judge, attempt, seed)._replace(
        predictions=predictions, distances=attempt.result.distances, steps=attempt.result.steps, seconds=seconds
    )


def _outcome(judge: _Judge, attempt: _Attempt | None, seed: int) -> report.Outcome:
    """What is known before anything is measured; no attempt stands for clean images."""
    attack, made_on = (attempt.attack, attempt.made_on) if attempt else (None, None)
    itself = made_on == judge.run.name
    nothing = np.zeros(0)
    return report.Outcome(
        run=judge.run.name,
        split="test",
        attack=attack.name if attack else report.CLEAN,
        norm=attack.norm if attack else None,
        epsilon=attack.epsilon if attack else None,
        made_on=made_on,
        adaptive=itself,
        knowledge="none" if attack is None else "everything" if itself else "source model",
        defense="none",
        protocol=attempt.protocol if attempt else "sound",
        label_use=attempt.label_use if attempt else "true",
        seed=seed,
        eot_samples=1,
        seconds=0.0,
        model_hash=judge.hash,
        index=judge.test.index,
        labels=judge.test.labels,
        predictions=nothing,
        distances=nothing,
        steps=nothing,
    )


def _pictures(
    attempt: _Attempt, seen: Sequence[report.Outcome], judges: Mapping[str, _Judge], chosen: np.ndarray
) -> list[page.GalleryItem]:
    """The test images at ``chosen``, and what the attack made of them, with the predictions of those who saw them."""
    test = judges[attempt.made_on].test
    originals = pixels(test.images)
    names = test.class_names
    return [
        page.GalleryItem(
            caption=attempt.attack.name,
            made_on=attempt.made_on,
            original=originals[i],
            adversarial=attempt.result.images[i],
            label=names[test.labels[i]],
            predictions={
                outcome.run: (names[judges[outcome.run].predictions[i]], names[outcome.predictions[i]])
                for outcome in seen
            },
        )
        for i in np.flatnonzero(np.isin(test.index, chosen))
    ]


def _curves(runs: Sequence[Run], workdir: str) -> plots.Svg | None:
    trained = {run.name: read_metrics(os.path.join(workdir, run.name)) for run in runs if not run.checkpoint}
    return plots.training_curves(trained) if trained else None


def _train_run(
    run: Run,
    experiment: Experiment,
    done: Mapping[str, Variables],
    workdir: str,
    devices: Devices,
    notify: Notify,
) -> None:
    models = {earlier.name: earlier.model for earlier in experiment.runs if earlier.name in done}
    dataset = training_subset(experiment.data, run.train_fraction, experiment.seed)
    variables = _untrained(run, experiment, done)
    fit(
        run.name,
        run.method(variables, models),
        run.plan,
        variables,
        dataset,
        {name: variables for name, variables in done.items() if name == run.made_on},
        _validation(run, experiment, models, done, devices),
        folder=os.path.join(workdir, run.name),
        devices=devices,
        config=run.spec,
        notify=notify,
    )


def _untrained(run: Run, experiment: Experiment, done: Mapping[str, Variables]) -> Variables:
    variables = blocks.init(run.model, jax.random.key(run.plan.seed), experiment.image_shape)
    if run.start is None:
        return variables
    start = done[run.start]
    return blocks.graft(variables, start) if isinstance(run.model, blocks.Patched) else start


def _validation(
    run: Run,
    experiment: Experiment,
    models: Mapping[str, nn.Module],
    done: Mapping[str, Variables],
    devices: Devices,
) -> Callable[[Variables], dict[str, float]]:
    """Accuracy on the validation images: clean and, if the run trains against an attack, under that attack.

    Their mean is the "score" that the best checkpoint is chosen by.
    """
    dataset, batch_size = experiment.data.validation, experiment.evaluation.batch_size
    predict = predictor(run.model, devices, batch_size)
    attack, made_on = None, run.made_on or "self"
    if run.attack is not None:
        attacked_model = run.model if made_on == "self" else models[made_on]
        attack = attacker(attacked_model, run.attack, "validation", devices, batch_size, quiet=True)
    # Images attacked on a model that does not change need to be attacked only once.
    frozen: list[np.ndarray] = []

    def accuracy(variables: Variables, images: np.ndarray) -> float:
        return float(np.mean(predict(variables, images) == dataset.labels))

    def validate(variables: Variables) -> dict[str, float]:
        scores = {"accuracy": accuracy(variables, dataset.images)}
        if attack is not None:
            if made_on == "self" or not frozen:
                target = variables if made_on == "self" else done[made_on]
                frozen[:] = [attack(target, dataset, run.plan.seed).images]
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
    report.write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
