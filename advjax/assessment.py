"""Evaluating the runs of an experiment: every attack on every run, and the report about it.

<workdir>/report.json, report.html, outcomes.npz
<workdir>/unfinished/              attacks of an evaluation that was interrupted
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from advjax.data import Dataset
from advjax.evaluation import page, plots, report
from advjax.evaluation.evaluate import (
    Adversarial,
    Interruption,
    attacker,
    model_hash,
    pixels,
    predictor,
    staged_attacker,
)
from advjax.experiment import Experiment, NamedAttack, Run
from advjax.metrics import read_metrics
from advjax.preemption import PreemptedError
from advjax.sharding import Devices
from advjax.types import Variables
from advjax.workflow import Notify, restore

_UNFINISHED = "unfinished"


def evaluate(
    experiment: Experiment,
    workdir: str,
    devices: Devices,
    notify: Notify,
    stop_requested: Callable[[], bool] = lambda: False,
) -> report.Report:
    """Measures every run on the test images, writes the report and returns it.

    Every attack is made twice or more: on ``evaluation.made_on``, shown to every run (transfer), and on each run itself
    (adaptive).  An accuracy under the second alone is called robust accuracy.  What an interrupted evaluation has done
    is taken up by the next one, to the same verdicts.

    Raises:
      UserError: a run has not been trained, or its checkpoint cannot be used.
      PreemptedError: asked to stop; what has been done is saved.
    """
    plan, test = experiment.evaluation, experiment.data.test
    test = test.take(np.arange(min(plan.num_examples or len(test.labels), len(test.labels))))
    judges = {run.name: _judge(run, workdir, test, plan.batch_size, devices, notify) for run in experiment.runs}
    source = judges[plan.made_on]
    outcomes = [_clean(judge, experiment.seed) for judge in judges.values()]
    base_correct = report.correct_index(next(outcome for outcome in outcomes if outcome.run == plan.made_on))
    gallery: list[page.GalleryItem] = []
    maker = _Maker(experiment, devices, os.path.join(workdir, _UNFINISHED), stop_requested)
    for attack in plan.attacks:
        made = [maker.make(source, attack, plan.transfer_labels, plan.protocol)]
        made += [maker.make(judge, attack, _VERDICT, "sound") for judge in judges.values()]
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
        shutil.rmtree(os.path.join(workdir, _UNFINISHED), ignore_errors=True)
    return found


_VERDICT = "verdict"
"""In place of a use of labels: the true ones, for an attack that ends with the first success."""


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


class _Maker(NamedTuple):
    """Makes adversarial images, or takes up what an interrupted evaluation has made of them."""

    experiment: Experiment
    devices: Devices
    folder: str
    stop_requested: Callable[[], bool]

    def make(self, judge: _Judge, attack: NamedAttack, label_use: str, protocol: str) -> _Attempt:
        model, batch_size = judge.run.model, self.experiment.evaluation.batch_size
        test, is_verdict = judge.test, label_use == _VERDICT
        if attack.stages is not None:
            run = staged_attacker(model, attack.stages, attack.threat_model, attack.name, self.devices, batch_size)
            if label_use == "predicted":
                test = test._replace(labels=judge.predictions)
        else:
            attack_fn = attack.for_verdict() if is_verdict else attack.for_transfer(label_use)
            run = attacker(model, attack_fn, attack.name, self.devices, batch_size)
        if self.stop_requested():
            raise PreemptedError(f"{attack.name}: stopped before it, state saved")
        result = run(judge.variables, test, self.experiment.seed, self._interruption(judge, attack, label_use))
        return _Attempt(attack, judge.run.name, "true" if is_verdict else label_use, protocol, result)

    def _interruption(self, judge: _Judge, attack: NamedAttack, label_use: str) -> Interruption:
        plan, test = self.experiment.evaluation, judge.test
        facts = [attack.name, attack.spec, label_use, judge.hash, self.experiment.seed, plan.batch_size]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for array in (test.images, test.labels, test.index):
            digest.update(np.ascontiguousarray(array).tobytes())
        identity = digest.hexdigest()
        path = os.path.join(self.folder, f"{attack.name}.{judge.run.name}.{label_use}.{identity[:8]}")
        return Interruption(path, identity, self.stop_requested)


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
