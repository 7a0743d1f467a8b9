"""What several outcomes say together: the worst case over attacks, and the four ways of attacking side by side."""

from collections.abc import Iterable, Sequence

import numpy as np

from advjax.evaluation.attacker_knowledge import EVERYTHING, OBLIVIOUS, SCORES, TRANSFER
from advjax.evaluation.outcomes import CLEAN, Outcome
from advjax.evaluation.report import CurvePoint, Summary, SummaryCell
from advjax.evaluation.report_card import SIGNIFICANT, Check
from advjax.evaluation.statistics import mcnemar, wilson_interval

WORST_CASE = "worst case"
"""Name of the attack that is the best of all adaptive ones for each image."""
WAYS = {
    "oblivious": (OBLIVIOUS,),
    "transfer": (TRANSFER,),
    "white_box": (EVERYTHING,),
    "queries": (SCORES,),
    "robust": (EVERYTHING, SCORES),
}
"""What an attacker may know, and which outcomes show it; the last is what robust accuracy is the minimum over."""


def worst_cases(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """For each model and threat model with two adaptive attacks or more, what is left by all of them together.

    An image counts as right only if it is right under every adaptive attack made with the true labels, white box or by
    queries.  Minimum-norm attacks have no epsilon and are left out.
    """
    found = []
    for group in _groups(outcomes):
        members = [outcome for outcome in group if outcome.adaptive and outcome.label_use == "true"]
        if len({outcome.attack for outcome in members}) > 1:
            found.append(_worst(members))
    return found


def robust_correct(outcomes: Sequence[Outcome]) -> dict[tuple[str, float], tuple[tuple[str, ...], np.ndarray]]:
    """``(norm, epsilon) -> (names of attacks, bool [n])``: what is right under all adaptive attacks on one model."""
    found = {}
    for group in _groups([outcome for outcome in outcomes if outcome.attack != WORST_CASE]):
        members = [outcome for outcome in group if outcome.adaptive and outcome.label_use == "true"]
        if members:
            names = tuple(dict.fromkeys(outcome.attack for outcome in members))
            key = str(members[0].norm), float(members[0].epsilon or 0)
            found[key] = names, np.all([_correct(outcome) for outcome in members], axis=0)
    return found


def summary(outcomes: Sequence[Outcome]) -> list[Summary]:
    """Accuracy of each model, clean and under the worst of the attacks of each way, models in the order of outcomes."""
    clean = {(outcome.run, outcome.defense): outcome for outcome in outcomes if outcome.attack == CLEAN}
    models = list(dict.fromkeys((outcome.run, outcome.defense) for outcome in outcomes))
    groups = _groups([outcome for outcome in outcomes if outcome.attack != WORST_CASE])
    found = []
    for group in sorted(groups, key=lambda group: models.index((group[0].run, group[0].defense))):
        first = group[0]
        cells = {}
        for way, knowledge in WAYS.items():
            members = [outcome for outcome in group if outcome.knowledge in knowledge]
            if way == "robust":
                members = [outcome for outcome in members if outcome.label_use == "true"]
            cells[way] = cell(np.all([_correct(outcome) for outcome in members], axis=0)) if members else None
        untouched = clean.get((first.run, first.defense))
        found.append(
            Summary(
                run=first.run,
                defense=first.defense,
                norm=first.norm,
                epsilon=first.epsilon,
                clean=None if untouched is None else cell(_correct(untouched)),
                oblivious=cells["oblivious"],
                transfer=cells["transfer"],
                white_box=cells["white_box"],
                queries=cells["queries"],
                robust=cells["robust"],
            )
        )
    return found


def bounds_check(attempts: Sequence[tuple[str, np.ndarray]]) -> Check:
    """Whether all stored adversarial images are inside their threat model: names of attacks, and bool [n] of each."""
    outside = {name: float(np.mean(~inside)) for name, inside in attempts if not np.all(inside)}
    count = sum(len(inside) for _, inside in attempts)
    finding = f"all {count} adversarial images are inside their threat model"
    if outside:
        finding = "outside their threat model: " + ", ".join(
            f"{share:.1%} of {name}" for name, share in outside.items()
        )
    return Check("bounds", not outside, finding, {"outside": max(outside.values(), default=0.0)})


def finite_check(attempts: Sequence[tuple[str, np.ndarray]]) -> Check:
    """Whether gradients were finite all along: names of attacks on one model, and bool [n] of each, False where so.

    An attack cannot follow NaN, and a model that gives it looks robust for that alone.
    """
    shares = {name: float(np.mean(nonfinite)) for name, nonfinite in attempts if np.any(nonfinite)}
    finding = f"all gradients were finite in {len(attempts)} attacks made on the model"
    if shares:
        listed = ", ".join(f"{share:.1%} of the images under {name}" for name, share in shares.items())
        finding = f"gradients were NaN or infinite on {listed}: what is left there is no robustness"
    return Check("finite gradients", not shares, finding, {"nonfinite": max(shares.values(), default=0.0)})


def outcome_checks(outcomes: Sequence[Outcome]) -> list[Check]:
    """What the outcomes of one model say about themselves.

    An attack made on the model itself must be at least as strong as the same attack made elsewhere; twice the draws for
    each gradient must not change what an attack on a stochastic model finds.
    """
    checks = []
    adaptive = {entry.attack: entry for entry in outcomes if entry.adaptive and entry.eot_samples <= _fewest(outcomes)}
    elsewhere = [entry for entry in outcomes if entry.attack in adaptive and not entry.adaptive]
    if elsewhere:
        worst = min(elsewhere, key=lambda entry: _correct(entry).mean() - _correct(adaptive[entry.attack]).mean())
        checks.append(_white_box_check(adaptive[worst.attack], worst))
    for entry in outcomes:
        if entry.adaptive and entry.attack in adaptive and entry.eot_samples > adaptive[entry.attack].eot_samples:
            checks.append(_converged_check(adaptive[entry.attack], entry))
    return checks


def curve_point(run: str, defense: str, attack: str, norm: str, epsilon: float, correct: np.ndarray) -> CurvePoint:
    """One accuracy of a robustness curve."""
    counted = cell(correct)
    return CurvePoint(
        run=run,
        defense=defense,
        attack=attack,
        norm=norm,
        epsilon=float(epsilon),
        n=counted["n"],
        accuracy=float(np.mean(correct)),
        low=counted["low"],
        high=counted["high"],
    )


def _fewest(outcomes: Sequence[Outcome]) -> int:
    return min((entry.eot_samples for entry in outcomes if entry.knowledge == EVERYTHING), default=1)


def _white_box_check(itself: Outcome, elsewhere: Outcome) -> Check:
    own, other = _correct(itself), _correct(elsewhere)
    p_value = mcnemar(own, other)
    passed = own.mean() <= other.mean() or p_value >= SIGNIFICANT
    finding = (
        f"{itself.attack} leaves {own.mean():.1%} made on the model itself, {other.mean():.1%} made on the "
        f"{elsewhere.knowledge}"
    )
    numbers = {"itself": float(own.mean()), "elsewhere": float(other.mean()), "p_value": p_value}
    return Check("white box against transfer", bool(passed), finding, numbers)


def _converged_check(few: Outcome, many: Outcome) -> Check:
    first, second = _correct(few), _correct(many)
    p_value = mcnemar(first, second)
    finding = (
        f"{few.attack} leaves {first.mean():.1%} with {few.eot_samples} draws for each gradient, {second.mean():.1%} "
        f"with {many.eot_samples} (p = {p_value:.2g})"
    )
    numbers = {"few": float(first.mean()), "many": float(second.mean()), "p_value": p_value}
    return Check("draws for a gradient", p_value >= SIGNIFICANT, finding, numbers)


def _groups(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """The attacked outcomes of each model and bounded threat model, on the same images."""
    groups: dict[tuple, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.attack != CLEAN and outcome.epsilon is not None:
            key = outcome.run, outcome.defense, outcome.norm, round(outcome.epsilon, 9), len(outcome.index)
            groups.setdefault(key, []).append(outcome)
    return list(groups.values())


def _worst(members: Sequence[Outcome]) -> Outcome:
    correct = np.stack([_correct(outcome) for outcome in members])
    # The first attack that broke the image; where none did, the first attack.
    chosen = np.argmin(correct, axis=0)
    rows = np.arange(correct.shape[1])

    def pick(field: str) -> np.ndarray:
        return np.stack([np.asarray(getattr(outcome, field)) for outcome in members])[chosen, rows]

    return members[0]._replace(
        attack=WORST_CASE,
        knowledge=EVERYTHING,
        eot_samples=max(outcome.eot_samples for outcome in members),
        seconds=sum(outcome.seconds for outcome in members),
        predictions=pick("predictions"),
        distances=pick("distances"),
        steps=pick("steps"),
    )


def _correct(outcome: Outcome) -> np.ndarray:
    return np.asarray(outcome.predictions) == np.asarray(outcome.labels)


def cell(correct: np.ndarray) -> SummaryCell:
    """Accuracy and interval of what is right: bool [n]."""
    n, successes = int(correct.size), int(correct.sum())
    low, high = wilson_interval(successes, n)
    return SummaryCell(n=n, accuracy=successes / n if n else None, low=low, high=high)
