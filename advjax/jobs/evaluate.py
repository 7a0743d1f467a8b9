"""Evaluating the runs of an experiment: every attack on every model, what it means, and the report about it.

<folder>/report.json, report.html, outcomes.npz
<folder>/adversarial/              images of the attacks made on each model itself, if they are to be kept
<folder>/unfinished/               attacks of an evaluation that was interrupted
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import jax
import numpy as np

from advjax.attacks import ThreatModel
from advjax.data import pixels
from advjax.evaluation import report, report_card, summaries
from advjax.evaluation.attack_runs import ITSELF, Attempt, Maker, clean_outcome, outcome_under
from advjax.evaluation.evaluate import curve_runner
from advjax.evaluation.outcomes import EVERYTHING, Outcome, correct_index
from advjax.experiment.spec import EvaluationPlan, Experiment, Run
from advjax.jobs import rescore
from advjax.jobs.judges import Judge, judges_of
from advjax.jobs.train import Notify
from advjax.reporting import html_page, plots
from advjax.runtime.devices import Devices, pad_to_multiple
from advjax.runtime.environment import describe_environment
from advjax.runtime.metrics import read_metrics
from advjax.runtime.preemption import PreemptedError
from advjax.runtime.progress import progress

_UNFINISHED = "unfinished"
_SECONDS_BETWEEN_LOOKS = 0.5


def evaluate(
    experiment: Experiment,
    workdir: str,
    devices: Devices,
    notify: Notify,
    stop_requested: Callable[[], bool] = lambda: False,
    folder: str | None = None,
) -> report.Report:
    """Measures every run on the test images, alone and with each of its defences, writes the report and returns it.

    Every attack is made on the runs of ``evaluation.made_on``, shown to every model (transfer); on each run without its
    defence, shown to the defended model (oblivious); and on each model itself, the defence in the loop (adaptive).  An
    accuracy under the last alone is called robust accuracy.  What an interrupted evaluation has done is taken up by the
    next one, to the same verdicts.  Noise is drawn once, and shown to every model.

    Args:
      experiment: the runs, and the plan of their evaluation.
      workdir: the folder that they were trained in.
      devices: what computes.
      notify: told what people should know.
      stop_requested: asked after every batch.
      folder: where the report goes; None for the folder of the runs.

    Raises:
      UserError: a run has not been trained, or its checkpoint cannot be used; or 8-bit adversarial images are to be
        kept of images that have no 8 bits.
      PreemptedError: asked to stop; what has been done is saved.
    """
    plan, test, folder = experiment.evaluation, experiment.data.test, workdir if folder is None else folder
    test = test.take(np.arange(min(plan.num_examples or len(test.labels), len(test.labels))))
    judges = judges_of(experiment, workdir, test, devices, notify)
    maker = Maker(experiment, devices, os.path.join(folder, _UNFINISHED), stop_requested)
    # Report cards are mostly compilations, which leave room for attacks beside them.
    pool = ThreadPoolExecutor(1)
    try:
        cards = {judge.name: pool.submit(_examined, judge, experiment) for judge in judges if _gets_card(judge, plan)}
        evidence = _gathered(judges, maker)
        examined = _awaited(cards, stop_requested)
        curve = _epsilon_curve(experiment, judges, devices, stop_requested)
    finally:
        # Nobody who is told to stop has the time to wait for a card.
        pool.shutdown(wait=False, cancel_futures=True)
    outcomes = evidence.outcomes
    checks = [row for judge in judges for row in _card(judge, evidence, examined.get(judge.name, []))]
    found = report.Report(
        schema_version=report.SCHEMA_VERSION,
        title=experiment.title,
        config=experiment.config,
        environment=describe_environment(),
        rows=report.rows(outcomes, {report.BASE_CORRECT: evidence.base_correct}),
        notes=_kept(evidence.own, plan.save_adversarial, folder, notify) if plan.save_adversarial else [],
        summary=summaries.summary(outcomes),
        checks=checks,
        curve=curve,
    )
    if jax.process_index() == 0:
        report.write(found, outcomes, folder)
        curves = _training_curves(experiment.runs, workdir)
        html_page.write_page(found, curves=curves, gallery=evidence.gallery, path=os.path.join(folder, "report.html"))
        shutil.rmtree(os.path.join(folder, _UNFINISHED), ignore_errors=True)
    return found


class _Evidence(NamedTuple):
    """Everything that was measured."""

    outcomes: list[Outcome]
    attempts: list[Attempt]
    own: list[tuple[Attempt, Outcome]]
    """Attempts on each model itself, and what it made of them."""
    gallery: list[html_page.GalleryItem]
    base_correct: np.ndarray
    """Positions in the split of the images that the first run of ``made_on`` has right."""


def _gathered(judges: Sequence[Judge], maker: Maker) -> _Evidence:
    """Makes every attack and shows it to everybody who is to see it."""
    plan, seed = maker.experiment.evaluation, maker.experiment.seed
    plain = {judge.run.name: judge for judge in judges if judge.defense is None}
    base = plain[plan.made_on[0]]
    clean = [clean_outcome(judge, seed) for judge in judges]
    found = _Evidence(clean, [], [], [], correct_index(clean_outcome(base, seed)))
    sources = dict.fromkeys([*plan.made_on, *(defense.run for defense in plan.defenses)])
    for attack in plan.attacks:
        if attack.is_noise:
            _show(maker.make(base, attack, "true", "sound"), judges, maker.experiment, found)
            continue
        for source in sources:
            if seeing := _shown(judges, plain[source], plan):
                attempt = maker.make(plain[source], attack, plan.transfer_labels, plan.protocol)
                _show(attempt, seeing, maker.experiment, found)
        for judge in judges:
            attempt = maker.make(judge, attack, ITSELF, "sound")
            (outcome,) = _show(attempt, [judge], maker.experiment, found)
            found.own.append((attempt, outcome))
    for judge in judges:
        if judge.is_random:
            found.outcomes.extend(_with_more_samples(judge, maker, found.outcomes))
    found.outcomes.extend(summaries.worst_cases(found.outcomes))
    return found


def _show(attempt: Attempt, judges: Sequence[Judge], experiment: Experiment, found: _Evidence) -> list[Outcome]:
    """Adds what the judges make of the adversarial images, and returns it."""
    plan = experiment.evaluation
    seen = [outcome_under(judge, attempt, experiment.seed) for judge in judges]
    found.outcomes.extend(seen)
    found.attempts.append(attempt)
    if attempt.attack.name == plan.pictured:
        found.gallery.extend(_pictures(attempt, seen, judges, found.base_correct[: plan.num_pictures]))
    return seen


def _shown(judges: Sequence[Judge], source: Judge, plan: EvaluationPlan) -> list[Judge]:
    """Who sees an attack that was made on the undefended ``source``.

    Not the source itself, where the verdict on it says the same.
    """
    is_transferred, is_said = (
        source.run.name in plan.made_on,
        (plan.transfer_labels, plan.protocol) == ("true", "sound"),
    )
    seeing = [judge for judge in judges if is_transferred or (judge.defense and judge.run.name == source.run.name)]
    return [judge for judge in seeing if not (is_said and judge.name == source.name)]


def _kept(own: Sequence[tuple[Attempt, Outcome]], kind: str, folder: str, notify: Notify) -> list[str]:
    """Saves the adversarial images of every model; what is to be said about it."""
    notes = [
        rescore.keep(attempt.judge, attempt.attack, outcome, attempt.result.images, kind, folder)
        for attempt, outcome in own
    ]
    notes = [note for note in notes if note is not None]
    for note in notes:
        notify(note)
    return notes


def _with_more_samples(judge: Judge, maker: Maker, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The strongest white-box attack on a stochastic model once more, with twice the draws for each gradient."""
    white_box = [
        entry for entry in outcomes if judge.owns(entry) and entry.knowledge == EVERYTHING and entry.epsilon is not None
    ]
    if not white_box:
        return []
    strongest = min(white_box, key=lambda entry: np.mean(np.asarray(entry.predictions) == entry.labels))
    attack = next(attack for attack in maker.experiment.evaluation.attacks if attack.name == strongest.attack)
    doubled = judge._replace(deployed=judge.deployed._replace(num_samples=2 * judge.deployed.num_samples))
    return [outcome_under(doubled, maker.make(doubled, attack, ITSELF, "sound"), maker.experiment.seed)]


def _gets_card(judge: Judge, plan: EvaluationPlan) -> bool:
    return plan.num_checked > 0 and judge.run.name in plan.checked and bool(_examinable(plan))


def _examinable(plan: EvaluationPlan) -> list[ThreatModel]:
    return [attack.threat_model for attack in plan.attacks if attack.is_examinable]


def _examined(judge: Judge, experiment: Experiment) -> list[report_card.Check]:
    """What some images of their own say about a model."""
    plan, seed = experiment.evaluation, experiment.seed
    few = judge.test.take(np.arange(min(plan.num_checked, len(judge.test.labels))))
    model, threat_model = judge.deployed.attacked, _examinable(plan)[0]
    return report_card.examine(
        model, pixels(few.images), few.labels, threat_model, variables=judge.variables, seed=seed
    )


def _awaited(
    cards: Mapping[str, "Future[list[report_card.Check]]"], stop_requested: Callable[[], bool]
) -> dict[str, list[report_card.Check]]:
    """What is found about each model, as soon as all of it is."""
    if not cards:
        return {}
    pending = set(cards.values())
    with progress("report cards", len(cards)) as bar:
        while pending:
            done, pending = wait(pending, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            bar.advance(len(done))
            # The processes of a job look at different times here, and could not agree on when to stop.
            if jax.process_count() == 1 and stop_requested():
                raise PreemptedError("report cards: stopped, all attacks saved")
    return {name: card.result() for name, card in cards.items()}


def _card(judge: Judge, evidence: _Evidence, examined: Sequence[report_card.Check]) -> list[report.CheckRow]:
    """The report card of one model."""
    own = [entry for entry in evidence.outcomes if judge.owns(entry) and entry.attack != summaries.WORST_CASE]
    made = [attempt for attempt in evidence.attempts if attempt.judge.name == judge.name]
    checks = [
        summaries.bounds_check([(attempt.attack.name, attempt.inside) for attempt in made]),
        summaries.finite_check([(attempt.attack.name, attempt.result.nonfinite) for attempt in made]),
        *summaries.outcome_checks(own),
        *examined,
    ]
    return [report.CheckRow(run=judge.run.name, defense=judge.defense_name, **check._asdict()) for check in checks]


def _epsilon_curve(
    experiment: Experiment, judges: Sequence[Judge], devices: Devices, stop_requested: Callable[[], bool]
) -> list[report.CurvePoint]:
    """Accuracy of each model under the attack of the plan's curve, one compilation for all epsilons."""
    plan = experiment.evaluation.curve
    if plan is None:
        return []
    points = []
    batch_size = min(experiment.evaluation.batch_size, pad_to_multiple(plan.num_examples, devices.mesh))
    with progress(f"curve of {plan.name}", len(judges) * len(plan.epsilons)) as bar:
        for judge in judges:
            few = judge.test.take(np.arange(min(plan.num_examples, len(judge.test.labels))))
            run = curve_runner(judge.deployed, plan.attack_at, plan.name, devices, batch_size)
            for epsilon in plan.epsilons:
                if stop_requested():
                    raise PreemptedError("curve: stopped, all attacks saved")
                correct = run(judge.variables, few, epsilon, experiment.seed)
                points.append(
                    summaries.curve_point(judge.run.name, judge.defense_name, plan.name, plan.norm, epsilon, correct)
                )
                bar.advance()
    return points


def _pictures(
    attempt: Attempt, seen: Sequence[Outcome], seeing: Sequence[Judge], chosen: np.ndarray
) -> list[html_page.GalleryItem]:
    """The test images at ``chosen``, and what the attack made of them, with the predictions of those who saw them."""
    test = attempt.judge.test
    originals = pixels(test.images)
    names = test.class_names
    return [
        html_page.GalleryItem(
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
