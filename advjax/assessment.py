"""Evaluating the runs of an experiment: every attack on every model, what it means, and the report about it.

<workdir>/report.json, report.html, outcomes.npz
<workdir>/unfinished/              attacks of an evaluation that was interrupted
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from advjax.attacks import ThreatModel
from advjax.data import Dataset
from advjax.evaluation import findings, page, plots, report, sanity
from advjax.evaluation.evaluate import (
    Adversarial,
    Deployed,
    Interruption,
    attacker,
    curve_runner,
    model_hash,
    pixels,
    predictor,
    staged_attacker,
    undefended,
)
from advjax.experiment import Experiment, NamedAttack, NamedDefense, Run
from advjax.metrics import read_metrics
from advjax.preemption import PreemptedError
from advjax.sharding import Devices
from advjax.types import PyTree
from advjax.workflow import Notify, restore

_UNFINISHED = "unfinished"
_VERDICT = "verdict"
"""In place of a use of labels: the true ones, for an attack that ends with the first success."""


def evaluate(
    experiment: Experiment,
    workdir: str,
    devices: Devices,
    notify: Notify,
    stop_requested: Callable[[], bool] = lambda: False,
) -> report.Report:
    """Measures every run on the test images, alone and with each of its defences, writes the report and returns it.

    Every attack is made on ``evaluation.made_on``, shown to every model (transfer); on each run without its defence,
    shown to the defended model (oblivious); and on each model itself, the defence in the loop (adaptive).  An accuracy
    under the last alone is called robust accuracy.  What an interrupted evaluation has done is taken up by the next
    one, to the same verdicts.

    Raises:
      UserError: a run has not been trained, or its checkpoint cannot be used.
      PreemptedError: asked to stop; what has been done is saved.
    """
    plan, test = experiment.evaluation, experiment.data.test
    test = test.take(np.arange(min(plan.num_examples or len(test.labels), len(test.labels))))
    judges = _judges(experiment, workdir, test, devices, notify)
    maker = _Maker(experiment, devices, os.path.join(workdir, _UNFINISHED), stop_requested)
    # Report cards are mostly compilations, which leave room for attacks beside them.
    with ThreadPoolExecutor(1) as pool:
        cards = {judge.name: pool.submit(_examined, judge, experiment) for judge in judges}
        try:
            evidence = _gathered(judges, maker)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        checks = [row for judge in judges for row in _card(judge, evidence, cards[judge.name].result())]
    outcomes = evidence.outcomes
    found = report.Report(
        schema_version=report.SCHEMA_VERSION,
        title=experiment.title,
        config=experiment.config,
        environment=report.describe_environment(),
        rows=report.rows(outcomes, {report.BASE_CORRECT: evidence.base_correct}),
        notes=[],
        summary=findings.summary(outcomes),
        checks=checks,
        curve=_epsilon_curve(experiment, judges, devices),
    )
    if jax.process_index() == 0:
        report.write(found, outcomes, workdir)
        curves = _training_curves(experiment.runs, workdir)
        page.write_page(found, curves=curves, gallery=evidence.gallery, path=os.path.join(workdir, "report.html"))
        shutil.rmtree(os.path.join(workdir, _UNFINISHED), ignore_errors=True)
    return found


class _Evidence(NamedTuple):
    """Everything that was measured."""

    outcomes: list[report.Outcome]
    attempts: list["_Attempt"]
    gallery: list[page.GalleryItem]
    base_correct: np.ndarray
    """Positions in the split of the images that the run ``made_on`` has right."""


def _gathered(judges: Sequence["_Judge"], maker: "_Maker") -> _Evidence:
    """Makes every attack and shows it to everybody who is to see it."""
    plan, seed = maker.experiment.evaluation, maker.experiment.seed
    plain = {judge.run.name: judge for judge in judges if judge.defense is None}
    base = plain[plan.made_on]
    found = _Evidence([_clean(judge, seed) for judge in judges], [], [], report.correct_index(_clean(base, seed)))
    sources = dict.fromkeys([plan.made_on, *(defense.run for defense in plan.defenses)])
    for attack in plan.attacks:
        for source in sources:
            attempt = maker.make(plain[source], attack, plan.transfer_labels, plan.protocol)
            _show(attempt, _shown(judges, source, plan.made_on), maker.experiment, found)
        for judge in judges:
            _show(maker.make(judge, attack, _VERDICT, "sound"), [judge], maker.experiment, found)
    for judge in judges:
        if judge.is_random:
            found.outcomes.extend(_with_more_samples(judge, maker, found.outcomes))
    found.outcomes.extend(findings.worst_cases(found.outcomes))
    return found


def _show(attempt: "_Attempt", judges: Sequence["_Judge"], experiment: Experiment, found: _Evidence) -> None:
    """Adds what the judges make of the adversarial images."""
    plan = experiment.evaluation
    seen = [_under(judge, attempt, experiment.seed) for judge in judges]
    found.outcomes.extend(seen)
    found.attempts.append(attempt)
    if attempt.attack.name == plan.pictured:
        found.gallery.extend(_pictures(attempt, seen, judges, found.base_correct[: plan.num_pictures]))


def _shown(judges: Sequence["_Judge"], source: str, made_on: str) -> list["_Judge"]:
    """Who sees an attack that was made on the undefended ``source``."""
    return [judge for judge in judges if source == made_on or (judge.defense and judge.run.name == source)]


class _Judge(NamedTuple):
    """A trained run, alone or with a defence, ready to classify the test images."""

    run: Run
    defense: NamedDefense | None
    deployed: Deployed
    variables: PyTree
    hash: str
    predict: Callable[[PyTree, np.ndarray, np.ndarray, int], np.ndarray]
    test: Dataset
    predictions: np.ndarray

    @property
    def name(self) -> str:
        return self.run.name if self.defense is None else f"{self.run.name}+{self.defense.name}"

    @property
    def defense_name(self) -> str:
        return "none" if self.defense is None else self.defense.name

    @property
    def is_random(self) -> bool:
        return self.deployed.num_draws > 0

    def owns(self, entry: report.Outcome) -> bool:
        return (entry.run, entry.defense) == (self.run.name, self.defense_name)


class _Attempt(NamedTuple):
    """Adversarial test images and how they came about."""

    attack: NamedAttack
    judge: _Judge
    """The model that they were made on."""
    label_use: str
    protocol: str
    result: Adversarial
    inside: np.ndarray
    """bool [n]: the image is allowed by the threat model."""


def _judges(experiment: Experiment, workdir: str, test: Dataset, devices: Devices, notify: Notify) -> list[_Judge]:
    """All runs, then all runs with a defence."""
    batch_size, judges = experiment.evaluation.batch_size, []
    restored = {run.name: restore(run, workdir, test.images.shape[1:], notify) for run in experiment.runs}
    by_name = {run.name: run for run in experiment.runs}
    for run in experiment.runs:
        deployed, variables = undefended(run.model), restored[run.name]
        predict = predictor(deployed, devices, batch_size)
        predictions = predict(variables, test.images, test.index, experiment.seed)
        judges.append(_Judge(run, None, deployed, variables, model_hash(variables), predict, test, predictions))
    for defense in experiment.evaluation.defenses:
        run, variables = by_name[defense.run], restored[defense.run]
        deployed, whole = defense.deploy(run.model), (variables, defense.arrays(experiment.data.train))
        predict = predictor(deployed, devices, batch_size)
        predictions = predict(whole, test.images, test.index, experiment.seed)
        judges.append(_Judge(run, defense, deployed, whole, model_hash(variables), predict, test, predictions))
    return judges


class _Maker(NamedTuple):
    """Makes adversarial images, or takes up what an interrupted evaluation has made of them."""

    experiment: Experiment
    devices: Devices
    folder: str
    stop_requested: Callable[[], bool]

    def make(self, judge: _Judge, attack: NamedAttack, label_use: str, protocol: str) -> _Attempt:
        batch_size = self.experiment.evaluation.batch_size
        test, is_verdict = judge.test, label_use == _VERDICT
        if attack.stages is not None:
            run = staged_attacker(
                judge.deployed, attack.stages, attack.threat_model, attack.name, self.devices, batch_size
            )
            if label_use == "predicted":
                test = test._replace(labels=judge.predictions)
        else:
            attack_fn = attack.for_verdict() if is_verdict else attack.for_transfer(label_use)
            run = attacker(judge.deployed, attack_fn, attack.name, self.devices, batch_size)
        if self.stop_requested():
            raise PreemptedError(f"{attack.name}: stopped before it, state saved")
        result = run(judge.variables, test, self.experiment.seed, self._interruption(judge, attack, label_use))
        inside = _inside(attack.threat_model, test.images, result.images, batch_size)
        return _Attempt(attack, judge, "true" if is_verdict else label_use, protocol, result, inside)

    def _interruption(self, judge: _Judge, attack: NamedAttack, label_use: str) -> Interruption:
        plan, test = self.experiment.evaluation, judge.test
        facts = [attack.name, attack.spec, label_use, judge.hash, self.experiment.seed, plan.batch_size]
        facts += [judge.name, judge.defense.spec if judge.defense else None, judge.deployed.num_samples]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for array in (test.images, test.labels, test.index):
            digest.update(np.ascontiguousarray(array).tobytes())
        identity = digest.hexdigest()
        path = os.path.join(self.folder, f"{attack.name}.{judge.name}.{label_use}.{identity[:8]}")
        return Interruption(path, identity, self.stop_requested)


def _inside(threat_model: ThreatModel, images: np.ndarray, adversarial: np.ndarray, batch_size: int) -> np.ndarray:
    contains = jax.jit(jax.vmap(threat_model.contains))
    starts = range(0, len(images), batch_size)
    parts = [contains(pixels(images[at : at + batch_size]), adversarial[at : at + batch_size]) for at in starts]
    return np.concatenate([np.asarray(part) for part in parts])


def _clean(judge: _Judge, seed: int) -> report.Outcome:
    zeros = np.zeros(len(judge.test.labels))
    return _outcome(judge, None, seed)._replace(predictions=judge.predictions, distances=zeros, steps=zeros)


def _under(judge: _Judge, attempt: _Attempt, seed: int) -> report.Outcome:
    start = time.perf_counter()
    predictions = judge.predict(judge.variables, attempt.result.images, judge.test.index, seed)
    seconds = attempt.result.seconds + time.perf_counter() - start
    return _outcome(judge, attempt, seed)._replace(
        predictions=predictions, distances=attempt.result.distances, steps=attempt.result.steps, seconds=seconds
    )


def _outcome(judge: _Judge, attempt: _Attempt | None, seed: int) -> report.Outcome:
    """What is known before anything is measured; no attempt stands for clean images."""
    attack = attempt.attack if attempt else None
    itself = attempt is not None and attempt.judge.name == judge.name
    nothing = np.zeros(0)
    return report.Outcome(
        run=judge.run.name,
        split="test",
        attack=attack.name if attack else report.CLEAN,
        norm=attack.norm if attack else None,
        epsilon=attack.epsilon if attack else None,
        made_on=attempt.judge.run.name if attempt else None,
        adaptive=itself,
        knowledge=_knowledge(judge, attempt),
        defense=judge.defense_name,
        protocol=attempt.protocol if attempt else "sound",
        label_use=attempt.label_use if attempt else "true",
        seed=seed,
        eot_samples=judge.deployed.num_samples if itself and judge.is_random else 1,
        seconds=0.0,
        model_hash=judge.hash,
        index=judge.test.index,
        labels=judge.test.labels,
        predictions=nothing,
        distances=nothing,
        steps=nothing,
    )


def _knowledge(judge: _Judge, attempt: _Attempt | None) -> str:
    if attempt is None:
        return "none"
    if attempt.judge.name == judge.name:
        return report.SCORES if attempt.attack.is_query else report.EVERYTHING
    return report.OBLIVIOUS if attempt.judge.run.name == judge.run.name else report.TRANSFER


def _with_more_samples(judge: _Judge, maker: _Maker, outcomes: Sequence[report.Outcome]) -> list[report.Outcome]:
    """The strongest white-box attack on a stochastic model once more, with twice the draws for each gradient."""
    white_box = [
        entry
        for entry in outcomes
        if judge.owns(entry) and entry.knowledge == report.EVERYTHING and entry.epsilon is not None
    ]
    if not white_box:
        return []
    strongest = min(white_box, key=lambda entry: np.mean(np.asarray(entry.predictions) == entry.labels))
    attack = next(attack for attack in maker.experiment.evaluation.attacks if attack.name == strongest.attack)
    doubled = judge._replace(deployed=judge.deployed._replace(num_samples=2 * judge.deployed.num_samples))
    return [_under(doubled, maker.make(doubled, attack, _VERDICT, "sound"), maker.experiment.seed)]


def _examined(judge: _Judge, experiment: Experiment) -> list[sanity.Check]:
    """What some images of their own say about a model, if it is to get a report card."""
    plan = experiment.evaluation
    bounded = [attack.threat_model for attack in plan.attacks if attack.is_examinable]
    if not (plan.num_checked and bounded and judge.run.name in plan.checked):
        return []
    few = judge.test.take(np.arange(min(plan.num_checked, len(judge.test.labels))))
    images, seed = pixels(few.images), experiment.seed
    return sanity.examine(judge.deployed.attacked, images, few.labels, bounded[0], variables=judge.variables, seed=seed)


def _card(judge: _Judge, evidence: _Evidence, examined: Sequence[sanity.Check]) -> list[report.CheckRow]:
    """The report card of one model."""
    own = [entry for entry in evidence.outcomes if judge.owns(entry) and entry.attack != findings.WORST_CASE]
    made = [(attempt.attack.name, attempt.inside) for attempt in evidence.attempts if attempt.judge.name == judge.name]
    checks = [findings.bounds_check(made), *findings.outcome_checks(own), *examined]
    return [report.CheckRow(run=judge.run.name, defense=judge.defense_name, **check._asdict()) for check in checks]


def _epsilon_curve(experiment: Experiment, judges: Sequence[_Judge], devices: Devices) -> list[report.CurvePoint]:
    """Accuracy of each model under the attack of the plan's curve, one compilation for all epsilons."""
    plan = experiment.evaluation.curve
    if plan is None:
        return []
    points = []
    for judge in judges:
        few = judge.test.take(np.arange(min(plan.num_examples, len(judge.test.labels))))
        run = curve_runner(judge.deployed, plan.attack_at, plan.name, devices, experiment.evaluation.batch_size)
        for epsilon in plan.epsilons:
            correct = run(judge.variables, few, epsilon, experiment.seed)
            points.append(
                findings.curve_point(judge.run.name, judge.defense_name, plan.name, plan.norm, epsilon, correct)
            )
    return points


def _pictures(
    attempt: _Attempt, seen: Sequence[report.Outcome], seeing: Sequence[_Judge], chosen: np.ndarray
) -> list[page.GalleryItem]:
    """The test images at ``chosen``, and what the attack made of them, with the predictions of those who saw them."""
    test = attempt.judge.test
    originals = pixels(test.images)
    names = test.class_names
    return [
        page.GalleryItem(
            caption=attempt.attack.name,
            made_on=attempt.judge.name,
            original=originals[i],
            adversarial=attempt.result.images[i],
            label=names[test.labels[i]],
            predictions={
                judge.name: (names[judge.predictions[i]], names[outcome.predictions[i]])
                for judge, outcome in zip(seeing, seen, strict=True)
            },
        )
        for i in np.flatnonzero(np.isin(test.index, chosen))
    ]


def _training_curves(runs: Sequence[Run], workdir: str) -> plots.Svg | None:
    trained = {run.name: read_metrics(os.path.join(workdir, run.name)) for run in runs if not run.checkpoint}
    return plots.training_curves(trained) if trained else None
