"""Evaluating the runs of an experiment: every attack on every model, the report card, and the report.

::

    <folder>/report.json, report.html, outcomes.npz
    <folder>/adversarial/     images of the attacks made on each model itself, if they are to be kept
    <folder>/unfinished/      results of attacks that an interrupted evaluation resumes from
"""

import datetime
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np

from advjax.attacks import Verdicts
from advjax.attacks.verdicts import ROBUST
from advjax.data import Dataset, pixels
from advjax.evaluation import report, report_card, summaries
from advjax.evaluation.attack_facts import attack_facts
from advjax.evaluation.attack_runs import AttackRun, Resources
from advjax.evaluation.epsilon_curve import epsilon_curve
from advjax.evaluation.few_images import described, few_images, takes_first
from advjax.evaluation.given_model import content_hash
from advjax.evaluation.keep_adversarial import keep_adversarial
from advjax.evaluation.outcomes import CLEAN, Outcome, correct_index
from advjax.evaluation.report_card_checks import FEW_STEPS, LARGER_EPSILON
from advjax.evaluation.scored_model import ScoredModel, undefended
from advjax.evaluation.scoring import clean_outcome
from advjax.experiment.from_config import complete
from advjax.experiment.spec import CurvePlan, EvaluationPlan, Experiment, Run
from advjax.jobs.attack_matrix import Measured, measure
from advjax.jobs.dry_run import check_evaluation
from advjax.jobs.gallery import gallery
from advjax.jobs.workdir import Notify, open_experiment, restore
from advjax.reporting import html_page, verdict
from advjax.reporting.plots.training import Metrics
from advjax.runtime.devices import Devices, is_main_process, process_count
from advjax.runtime.environment import describe_environment
from advjax.runtime.metrics import read_metrics
from advjax.runtime.preemption import PreemptedError
from advjax.runtime.progress import progress
from advjax.types import UserError, Variables

UNFINISHED = "unfinished"
PRECISION = "float32 (verdicts: matrix products at highest precision)"
_SECONDS_BETWEEN_LOOKS = 0.5


class Subject(NamedTuple):
    """What an evaluation measures, and what its report says of it besides the measurements."""

    title: str
    config: Mapping[str, Any]
    """What the report stores as its config, as plain data."""
    seed: int
    plan: EvaluationPlan
    models: Sequence[ScoredModel]
    """All without a defense, then those with one."""
    test: Dataset
    training: Metrics
    """Metrics of the training of the models, as far as they were trained here."""
    split: str = "test"
    """What the images are of."""
    notes: Sequence[str] = ()
    """What the report says of the images."""


def evaluate_experiment(
    config: Mapping[str, Any],
    workdir: str,
    devices: Devices,
    notify: Notify,
    stop_requested: Callable[[], bool] = lambda: False,
    folder: str | None = None,
) -> report.Report:
    """Measures every run on the test images, alone and with each of its defenses, writes the report and returns it.

    Every attack is made on the runs of ``evaluation.made_on`` and shown to every model (transfer), on each run without
    its defense and shown to the defended model (oblivious), and on each model itself, defense included (adaptive).  An
    accuracy under the last alone is called robust accuracy.  An interrupted evaluation resumes to the same verdicts.

    Args:
      config: of the experiment, complete or not; the report stores it completed.
      workdir: the folder that the runs were trained in.
      devices: where to compute.
      notify: receives what people should know.
      stop_requested: asked after every batch.
      folder: where the report goes; None for the folder of the runs.

    Raises:
      UserError: the config makes no sense, a run has not been trained or its checkpoint cannot be used, or 8-bit
        adversarial images are to be kept of images that are not 8-bit.
      PreemptedError: asked to stop; what has been done is saved.
    """
    config, folder = complete(config), workdir if folder is None else folder
    experiment = open_experiment(config, workdir)
    test = test_images(experiment)
    check_evaluation(experiment, experiment.load_data().train)
    models = scored_models(experiment, workdir, notify)
    trained = [run.name for run in experiment.runs if not run.is_taken]
    training = {name: read_metrics(os.path.join(workdir, name)) for name in trained}
    about = experiment.split, notes_on_images(experiment)
    subject = Subject(experiment.title, config, experiment.seed, experiment.evaluation, models, test, training, *about)
    return evaluate_models(subject, devices, notify, stop_requested, folder)


def evaluate_models(
    subject: Subject, devices: Devices, notify: Notify, stop_requested: Callable[[], bool], folder: str
) -> report.Report:
    """Measures models, whatever they come from, writes the report and returns it; see ``evaluate_experiment``."""
    plan, models, test, seed = subject.plan, subject.models, subject.test, subject.seed
    store = os.path.join(folder, UNFINISHED)
    resources = Resources(devices, plan.batch_size, seed, store, stop_requested, subject.split)
    clean = {model.name: _clean(model, test, resources) for model in models}
    # Report cards are mostly compilation, which leaves room for attacks beside them.
    pool = ThreadPoolExecutor(1)
    try:
        checked = [model for model in models if _gets_card(model, plan)]
        cards = {model.name: pool.submit(_examined, model, test, plan, seed) for model in checked}
        measured = measure(plan, models, clean, test, resources)
        examined = _awaited(cards, stop_requested)
        curve = _curve(plan.curve, models, test, resources)
    finally:
        # Whoever was asked to stop has no time to wait for a report card.
        pool.shutdown(wait=False, cancel_futures=True)
    notes = [*subject.notes, *_kept(measured.adaptive, test, plan.save_adversarial, resources, folder, notify)]
    checks = [row for model in models for row in _card(model, measured, examined.get(model.name, []))]
    found = report.Report(
        schema_version=report.SCHEMA_VERSION,
        title=subject.title,
        config=dict(subject.config),
        environment=describe_environment(),
        rows=report.rows(measured.outcomes, {report.BASE_CORRECT: correct_index(clean[plan.made_on[0]])}),
        notes=notes,
        summary=summaries.summary(measured.outcomes),
        checks=checks,
        curve=curve or _examined_curve(checks, plan, test),
        attacks=[attack_facts(attack, test.num_classes) for attack in plan.attacks],
        data={"name": test.name, "split": subject.split, "num_examples": len(test.labels), "precision": PRECISION},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    found = found._replace(verdict=verdict.verdicts(found))
    if is_main_process():
        report.write(found, measured.outcomes, folder)
        pictures = gallery(plan, measured, models, clean, test, seed)
        html_page.write_page(
            found, training=subject.training, gallery=pictures, path=os.path.join(folder, "report.html")
        )
        shutil.rmtree(store, ignore_errors=True)
    return found


def _clean(model: ScoredModel, test: Dataset, resources: Resources) -> Outcome:
    """The predictions on the images as they are.

    Raises:
      UserError: some are none, since logits are NaN, which no attack could handle.
    """
    outcome = clean_outcome(model, test, resources)
    if count := int(np.sum(outcome.predictions < 0)):
        raise UserError(
            f"{model.name} returns NaN on {count} of {len(test.labels)} images as they are: look for NaN among its "
            "weights, and for divisions, logarithms and square roots at 0"
        )
    return outcome


def test_images(experiment: Experiment) -> Dataset:
    """The test images that the evaluation is about."""
    test = experiment.load_data().test
    return few_images(test, experiment.evaluation.num_examples or len(test.labels), experiment.seed)


def notes_on_images(experiment: Experiment) -> list[str]:
    """What the report must say of the images that it is about."""
    plan, whole, seed = experiment.evaluation, experiment.load_data().test, experiment.seed
    notes = ["the images are training images"] if experiment.split == "train" else []
    if experiment.validates_on_test:
        notes.append("training was validated, and checkpoints were chosen, on the test images")
    if 0 < plan.num_examples < len(whole.labels):
        notes.append(f"evaluated on {described(whole, plan.num_examples, seed)}")
    elif plan.num_checked and not takes_first(whole.labels, whole.name):
        notes.append(f"report cards use {described(whole, plan.num_checked, seed)}")
    return notes


def scored_models(experiment: Experiment, workdir: str, notify: Notify) -> list[ScoredModel]:
    """All runs, then all runs with a defense.

    Raises:
      UserError: a run has not been trained, or its checkpoint cannot be used.
    """
    shape, runs = experiment.facts.image_shape, {run.name: run for run in experiment.runs}
    restored = {name: restore(run, workdir, shape, notify) for name, run in runs.items()}
    models = [_undefended(run, restored[run.name], shape) for run in experiment.runs]
    for defense in experiment.evaluation.defenses:
        train = experiment.load_data().train
        models.append(defense.defend(runs[defense.run].model, restored[defense.run], train))
    return models


def _undefended(run: Run, variables: Variables, shape: tuple[int, int, int]) -> ScoredModel:
    model = undefended(run.name, run.model, variables)
    # The code of a given network may change where its variables do not.
    return model if run.given is None else model._replace(hash=content_hash(model.bind, variables, shape))


def _kept(
    adaptive: Sequence[tuple[AttackRun, Outcome]],
    test: Dataset,
    kind: str,
    resources: Resources,
    folder: str,
    notify: Notify,
) -> list[str]:
    """Saves the adversarial images made on each model itself; notes about them for the report."""
    if not kind:
        return []
    kept = (keep_adversarial(run, outcome, test, kind, resources, folder) for run, outcome in adaptive)
    notes = [note for note in kept if note is not None]
    for note in notes:
        notify(note)
    return notes


def _gets_card(model: ScoredModel, plan: EvaluationPlan) -> bool:
    return plan.num_checked > 0 and model.run in plan.checked and any(attack.is_examinable for attack in plan.attacks)


def _examined(model: ScoredModel, test: Dataset, plan: EvaluationPlan, seed: int) -> list[report_card.Check]:
    """The checks that attack a few images themselves."""
    few = few_images(test, plan.num_checked, seed)
    threat_model = next(attack.threat_model for attack in plan.attacks if attack.is_examinable)
    return report_card.examine(
        model.attacked, pixels(few.images), few.labels, threat_model, variables=model.variables, seed=seed
    )


def _awaited(
    cards: Mapping[str, "Future[list[report_card.Check]]"], stop_requested: Callable[[], bool]
) -> dict[str, list[report_card.Check]]:
    """The checks of each model, once all of them are there."""
    if not cards:
        return {}
    pending = set(cards.values())
    with progress("report cards", len(cards)) as bar:
        while pending:
            done, pending = wait(pending, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            bar.advance(len(done))
            # The processes of a job look at different times here and could not agree on when to stop.
            if process_count() == 1 and stop_requested():
                raise PreemptedError("report cards: stopped, all attacks saved")
    return {name: card.result() for name, card in cards.items()}


def _card(model: ScoredModel, measured: Measured, examined: Sequence[report_card.Check]) -> list[report.CheckRow]:
    """The report card of one model."""
    own = [entry for entry in measured.outcomes if (entry.run, entry.defense) == (model.run, model.defense)]
    runs = [run for run in measured.runs if run.source.name == model.name]
    checks = [
        summaries.bounds_check([(run.attack.name, run.inside) for run in runs]),
        summaries.finite_check([(run.attack.name, run.result.nonfinite) for run in runs]),
        summaries.progress_check([entry for entry in own if entry.adaptive and entry.attack != summaries.WORST_CASE]),
        summaries.confirmed_check([(run.attack.name, _doubtful(run.result)) for run in runs if run.is_verdict]),
        *summaries.outcome_checks([entry for entry in own if entry.attack != summaries.WORST_CASE]),
        *examined,
    ]
    return [report.CheckRow(run=model.run, defense=model.defense, **check._asdict()) for check in checks]


def _doubtful(result: Verdicts) -> np.ndarray:
    """bool [n]: images that count as robust although an attack claimed a success."""
    return (result.broken_by == ROBUST) & (result.refused > 0)


def _curve(
    plan: CurvePlan | None, models: Sequence[ScoredModel], test: Dataset, resources: Resources
) -> list[report.CurvePoint]:
    """Accuracy of each model over epsilon."""
    if plan is None:
        return []
    few, points = few_images(test, plan.num_examples, resources.seed), []
    with progress(f"curve of {plan.name}", len(models) * len(plan.epsilons)) as bar:
        for model in models:
            for epsilon, correct in epsilon_curve(model, plan.name, plan.attack_at, plan.epsilons, few, resources):
                points.append(summaries.curve_point(model.run, model.defense, plan.name, plan.norm, epsilon, correct))
                bar.advance()
    return points


def _examined_curve(checks: Sequence[report.CheckRow], plan: EvaluationPlan, test: Dataset) -> list[report.CurvePoint]:
    """The accuracies over epsilon that the report cards have measured anyway."""
    threat_model = next((attack.threat_model for attack in plan.attacks if attack.is_examinable), None)
    count, points = min(plan.num_checked, len(test.labels)), []
    for check in checks:
        if check["name"] != LARGER_EPSILON or threat_model is None:
            continue
        for times, accuracy in check["numbers"].items():
            epsilon = 0.0 if times == CLEAN else float(times) * float(threat_model.epsilon)
            correct = np.arange(count) < round(accuracy * count)
            model = check["run"], check["defense"]
            points.append(summaries.curve_point(*model, FEW_STEPS, threat_model.norm.name, epsilon, correct))
    return points
