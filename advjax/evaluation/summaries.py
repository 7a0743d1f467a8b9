"""Summaries of outcomes: worst case over attacks, accuracy by kind of attack, and checks that outcomes allow."""

from collections.abc import Iterable, Sequence

import numpy as np

from advjax.attacks.input_checks import MASKED
from advjax.evaluation.attacker_knowledge import EVERYTHING, OBLIVIOUS, SCORES, TRANSFER
from advjax.evaluation.outcomes import CLEAN, Outcome
from advjax.evaluation.report import CurvePoint, Summary, SummaryCell
from advjax.evaluation.report_card import Check
from advjax.evaluation.report_card_checks import SIGNIFICANT
from advjax.evaluation.statistics import mcnemar, wilson_interval

WORST_CASE = "worst case"
"""Name of the attack that stands for the strongest adaptive attack on each image."""
WAYS = {
    "oblivious": (OBLIVIOUS,),
    "transfer": (TRANSFER,),
    "white_box": (EVERYTHING,),
    "queries": (SCORES,),
    "robust": (EVERYTHING, SCORES),
}
"""Kinds of attacks by the knowledge of the attacker; robust accuracy is the worst case over the last."""


def worst_cases(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The worst case over all adaptive attacks, for each model and threat model with two or more of them.

    An image counts as correct only if it is correct under every adaptive attack with true labels, white box or query
    based.  Minimum-norm attacks have no epsilon and are left out.
    """
    found = []
    for group in _groups(outcomes):
        members = [outcome for outcome in group if outcome.adaptive and outcome.label_use == "true"]
        if len({outcome.attack for outcome in members}) > 1:
            found.append(_worst(members))
    return found


def robust_correct(outcomes: Sequence[Outcome]) -> dict[tuple[str, float], tuple[tuple[str, ...], np.ndarray]]:
    """``(norm, epsilon) -> (names of attacks, bool [n])``: what one model gets right under all adaptive attacks."""
    found = {}
    for group in _groups([outcome for outcome in outcomes if outcome.attack != WORST_CASE]):
        members = [outcome for outcome in group if outcome.adaptive and outcome.label_use == "true"]
        if members:
            names = tuple(dict.fromkeys(outcome.attack for outcome in members))
            key = str(members[0].norm), float(members[0].epsilon or 0)
            found[key] = names, np.all([_correct(outcome) for outcome in members], axis=0)
    return found


def summary(outcomes: Sequence[Outcome]) -> list[Summary]:
    """Clean accuracy and worst-case accuracy by kind of attack, models in the order of the outcomes."""
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


def bounds_check(runs: Sequence[tuple[str, np.ndarray]]) -> Check:
    """Checks that all adversarial images are inside their threat model: names of attacks, and bool [n] for each."""
    outside = {name: float(np.mean(~inside)) for name, inside in runs if not np.all(inside)}
    count = sum(len(inside) for _, inside in runs)
    finding = f"all {count} adversarial images are inside their threat model"
    if outside:
        finding = "outside their threat model: " + ", ".join(
            f"{share:.1%} of {name}" for name, share in outside.items()
        )
    return Check("bounds", not outside, finding, {"outside": max(outside.values(), default=0.0)})


def finite_check(runs: Sequence[tuple[str, np.ndarray]]) -> Check:
    """Checks that gradients were finite: names of attacks on one model, and bool [n] for each, True where not.

    An attack cannot follow NaN, so that a model whose gradients are NaN looks robust for that reason alone.
    """
    shares = {name: float(np.mean(nonfinite)) for name, nonfinite in runs if np.any(nonfinite)}
    finding = f"gradients were finite in all {len(runs)} attacks on the model"
    if shares:
        listed = ", ".join(f"{share:.1%} of the images under {name}" for name, share in shares.items())
        finding = f"gradients were NaN or infinite on {listed}: accuracy there is no evidence of robustness"
    return Check("finite gradients", not shares, finding, {"nonfinite": max(shares.values(), default=0.0)})


def confirmed_check(runs: Sequence[tuple[str, np.ndarray]]) -> Check:
    """Checks that successes were confirmed: names of attacks on one model, bool [n] for each, True where one was not.

    An attack that believes to have succeeded goes on to the next image, so that this one looks robust.
    """
    shares = {name: float(np.mean(refused)) for name, refused in runs if np.any(refused)}
    finding = f"all successes of the {len(runs)} attacks on the model were confirmed"
    if shares:
        listed = ", ".join(f"{share:.1%} of the images under {name}" for name, share in shares.items())
        finding = f"successes on robust images did not hold when verified: {listed}; search and verdict differ"
    return Check("confirmed successes", not shares, finding, {"refused": max(shares.values(), default=0.0)})


def progress_check(outcomes: Sequence[Outcome]) -> Check:
    """Checks that attacks on a model itself made progress: its adaptive outcomes on the same images.

    An image on which one of several attacks made progress is not doubtful.
    """
    found = {}
    for group in _groups(outcomes):
        doubtful = _worst(group).without_progress
        key = f"{group[0].norm} {group[0].epsilon:.3g}"
        found[key] = float(np.mean(doubtful)), ", ".join(dict.fromkeys(outcome.attack for outcome in group))
    listed = ", ".join(
        f"{share:.1%} of the images under {names} ({key})" for key, (share, names) in found.items() if share
    )
    finding = "attacks with gradients made progress on all images that they did not break"
    if listed:
        finding = f"no attack made progress on {listed}: {MASKED}"
    worst = max((share for share, _ in found.values()), default=0.0)
    return Check("progress of attacks", not listed, finding, {"without": worst})


def outcome_checks(outcomes: Sequence[Outcome]) -> list[Check]:
    """Checks that the outcomes of one model allow without further attacks.

    An adaptive attack must be at least as strong as the same attack made on another model; doubling the draws for each
    gradient must not change the accuracy of a stochastic model.
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
    """One point of the curve of accuracy over epsilon."""
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
        f"accuracy under {itself.attack}: {own.mean():.1%} crafted on the model itself, {other.mean():.1%} on the "
        f"{elsewhere.knowledge}"
    )
    numbers = {"itself": float(own.mean()), "elsewhere": float(other.mean()), "p_value": p_value}
    return Check("white box against transfer", bool(passed), finding, numbers)


def _converged_check(few: Outcome, many: Outcome) -> Check:
    first, second = _correct(few), _correct(many)
    p_value = mcnemar(first, second)
    finding = (
        f"accuracy under {few.attack}: {first.mean():.1%} with {few.eot_samples} draws per gradient, "
        f"{second.mean():.1%} "
        f"with {many.eot_samples} (p = {p_value:.2g})"
    )
    numbers = {"few": float(first.mean()), "many": float(second.mean()), "p_value": p_value}
    return Check("draws for a gradient", p_value >= SIGNIFICANT, finding, numbers)


def _groups(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """Attacked outcomes grouped by model, bounded threat model and images."""
    groups: dict[tuple, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.attack != CLEAN and outcome.epsilon is not None:
            key = outcome.run, outcome.defense, outcome.norm, round(outcome.epsilon, 9), len(outcome.index)
            groups.setdefault(key, []).append(outcome)
    return list(groups.values())


def _worst(members: Sequence[Outcome]) -> Outcome:
    correct = np.stack([_correct(outcome) for outcome in members])
    # The first attack that succeeded on the image; where none did, the first attack.
    chosen = np.argmin(correct, axis=0)
    rows = np.arange(correct.shape[1])

    def pick(field: str) -> np.ndarray:
        return np.stack([np.asarray(getattr(outcome, field)) for outcome in members])[chosen, rows]

    return members[0]._replace(
        attack=WORST_CASE,
        # Ours, whichever attack of a paper is the first.
        protocol="sound",
        knowledge=EVERYTHING,
        eot_samples=max(outcome.eot_samples for outcome in members),
        seconds=sum(outcome.seconds for outcome in members),
        predictions=pick("predictions"),
        distances=pick("distances"),
        steps=pick("steps"),
        progress=np.max([_progress(outcome) for outcome in members], axis=0),
    )


def _progress(outcome: Outcome) -> np.ndarray:
    return np.zeros(len(outcome.index), np.int8) if outcome.progress is None else np.asarray(outcome.progress)


def _correct(outcome: Outcome) -> np.ndarray:
    return np.asarray(outcome.predictions) == np.asarray(outcome.labels)


def cell(correct: np.ndarray) -> SummaryCell:
    """Accuracy of bool [n] correct predictions, with its interval."""
    n, successes = int(correct.size), int(correct.sum())
    low, high = wilson_interval(successes, n)
    return SummaryCell(n=n, accuracy=successes / n if n else None, low=low, high=high)
