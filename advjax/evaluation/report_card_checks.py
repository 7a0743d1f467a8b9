"""The checks of the report card: what each compares, and what it says.

A check takes the examined model and returns whether it passed, one sentence about what was observed, and the numbers.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax import attacks
from advjax.attacks import Expectation, model_queries
from advjax.evaluation.examined_model import MARGIN, QUERIES, STEPS, TARGET, ExaminedModel
from advjax.evaluation.statistics import mcnemar
from advjax.types import Array, Key

SIGNIFICANT = 0.05
"""A difference on the same images counts if the p-value of the exact McNemar test is below this."""
MAX_ZERO_GRADIENTS = 0.01
"""Largest share of images whose gradient may vanish."""
MAX_CONFIDENT_LOGIT = 1e3
FEW_STEPS = f"AutoPGD-{STEPS}"
"""The attack of most checks."""
LARGER_EPSILON = "larger epsilon"
"""The check whose numbers are accuracies over epsilon: "clean", and by the multiple of epsilon."""


class Finding(NamedTuple):
    """The result of a check."""

    passed: bool
    finding: str
    """What was observed, in one sentence with its numbers."""
    numbers: dict[str, float]


def _repeatable(model: ExaminedModel) -> Finding:
    first, again = (model.logits(model.images) for _ in range(2))
    differs = float(np.mean(np.any(first != again, axis=-1)))
    is_random = isinstance(model.bind(model.variables), Expectation)
    if is_random:
        other = model.logits(model.images, 2)
        changed = float(np.mean(np.argmax(first, axis=-1) != np.argmax(other, axis=-1)))
        finding = f"stochastic: {changed:.1%} of the predictions differ between two sets of draws"
        return Finding(differs == 0 and changed <= 0.1, finding, {"changed": changed, "differs": differs})
    finding = f"{differs:.1%} of the images get different logits when evaluated again"
    if differs:
        finding += ": attack the attacks.expectation of a stochastic model"
    return Finding(differs == 0, finding, {"differs": differs})


def _independent(model: ExaminedModel) -> Finding:
    half = max(1, len(model.images) // 2)
    together, alone = model.logits(model.images)[:half], model.logits(model.images[:half])
    scale = float(np.max(np.abs(together))) or 1.0
    difference = float(np.max(np.abs(together - alone))) / scale
    finding = f"logits change by a factor of {difference:.1e} with the other images of the batch"
    if difference > 1e-3:
        finding += ": is BatchNorm in train mode?"
    return Finding(difference <= 1e-3, finding, {"difference": difference})


def _gradients(model: ExaminedModel) -> Finding:
    @jax.jit
    def differentiate(variables: Any, images: Array, labels: Array, keys: Key) -> Array:
        def cotangents(logits: Array) -> Array:
            return jax.vmap(jax.grad(attacks.cross_entropy))(logits, labels)

        return model_queries.differentiate(model.bind(variables), images, keys, cotangents)[1]

    noisy = jax.vmap(model.threat_model.project)(
        model.images, jax.vmap(model.threat_model.sample)(model.images, model.keys)
    )
    parts = [differentiate(model.variables, images, model.labels, model.keys) for images in (model.images, noisy)]
    sizes = np.stack([np.max(np.abs(np.asarray(part)), axis=(1, 2, 3)) for part in parts])
    # Where all other probabilities have underflowed, a compiled softmax leaves rounding errors of the label's own.
    others = np.array(jax.nn.softmax(model.logits(model.images)))
    others[np.arange(len(others)), np.asarray(model.labels)] = 0
    nonfinite = float(np.mean(~np.all(np.isfinite(sizes), axis=0)))
    vanishing = float(np.mean((np.min(sizes, axis=0) == 0) | (np.max(others, axis=-1) == 0)))
    finding = f"{vanishing:.1%} of the cross-entropy gradients are zero or rounding errors"
    if nonfinite:
        finding += f", and {nonfinite:.1%} are NaN or infinite"
    passed = vanishing <= MAX_ZERO_GRADIENTS and not nonfinite
    return Finding(passed, finding, {"zero_fraction": vanishing, "nonfinite_fraction": nonfinite})


def _scale(model: ExaminedModel) -> Finding:
    logits = model.logits(model.images)
    top = np.sort(logits, axis=-1)
    gap = float(np.median(top[:, -1] - top[:, -2]))
    finding = f"the median gap between the two largest logits is {gap:.3g}"
    if gap > MAX_CONFIDENT_LOGIT:
        finding += ": the softmax saturates in float32, so that the cross-entropy has no gradient"
    return Finding(gap <= MAX_CONFIDENT_LOGIT, finding, {"median_gap": gap})


def _iterative(model: ExaminedModel) -> Finding:
    return _at_least_as_strong(FEW_STEPS, model.under("few steps"), "one step of FGSM", model.under("one step"))


def _noise(model: ExaminedModel) -> Finding:
    return _at_least_as_strong(
        FEW_STEPS, model.under("few steps"), "random points in the ball", model.under("random points")
    )


def _queries(model: ExaminedModel) -> Finding:
    strongest = model.under("many steps") & model.under("few steps") & model.under("few steps", weights=MARGIN)
    queried = model.under("queries")
    return _at_least_as_strong("the gradient attacks", strongest, f"Square with {QUERIES} queries", queried)


def _losses(model: ExaminedModel) -> Finding:
    entropy, margin = model.under("few steps"), model.under("few steps", weights=MARGIN)
    p_value = mcnemar(entropy, margin)
    passed = p_value >= SIGNIFICANT or entropy.mean() <= margin.mean()
    finding = (
        f"accuracy under {FEW_STEPS}: {entropy.mean():.1%} with the cross-entropy, {margin.mean():.1%} with the "
        f"margin loss (p = {p_value:.2g})"
    )
    numbers = {"cross_entropy": float(entropy.mean()), "margin": float(margin.mean()), "p_value": p_value}
    return Finding(bool(passed), finding, numbers)


def _more_epsilon(model: ExaminedModel) -> Finding:
    factors = (0.25, 0.5, 1.0, 2.0)
    found = [model.clean(), *(model.under("few steps", factor) for factor in factors)]
    rises = [
        second.mean() > first.mean() and mcnemar(first, second) < SIGNIFICANT
        for first, second in itertools.pairwise(found)
    ]
    shares = [float(correct.mean()) for correct in found]
    listed = ", ".join(f"{share:.1%}" for share in shares)
    numbers = dict(zip(("clean", *map(str, factors)), shares, strict=True))
    return Finding(not any(rises), f"accuracy at 0, 1/4, 1/2, 1 and 2 epsilon: {listed}", numbers)


def _more_steps(model: ExaminedModel) -> Finding:
    few, many = model.under("few steps"), model.under("many steps")
    p_value = mcnemar(few, many)
    finding = f"accuracy {few.mean():.1%} with {STEPS} steps, {many.mean():.1%} with {2 * STEPS} (p = {p_value:.2g})"
    numbers = {"few": float(few.mean()), "many": float(many.mean()), "p_value": p_value}
    return Finding(p_value >= SIGNIFICANT, finding, numbers)


def _unbounded(model: ExaminedModel) -> Finding:
    whole = float(model.threat_model.norm.size(jnp.ones(model.images.shape[1:])))
    times = whole * (model.threat_model.bounds[1] - model.threat_model.bounds[0]) / float(model.threat_model.epsilon)
    left = model.under("many steps", times) & model.under("many steps", times, MARGIN)
    # Among all images of the pixel range, some image of another class can always be reached.
    finding = (
        f"accuracy {left.mean():.1%} where every image is allowed (epsilon {times * model.threat_model.epsilon:.3g})"
    )
    return Finding(left.mean() <= 0.02, finding, {"accuracy": float(left.mean())})


def _leakage(model: ExaminedModel) -> Finding:
    truth = model.under("few steps")
    others = {
        "predicted labels": model.under("few steps", predicted=True),
        "random targets": model.under("few steps", weights=TARGET),
    }
    worse = [mcnemar(truth, other) for other in others.values() if other.mean() < truth.mean()]
    listed = ", ".join(f"{other.mean():.1%} with {name}" for name, other in others.items())
    finding = f"accuracy {truth.mean():.1%} with true labels, {listed}"
    numbers = {"true": float(truth.mean()), **{name: float(other.mean()) for name, other in others.items()}}
    return Finding(all(p_value >= SIGNIFICANT for p_value in worse), finding, numbers)


def _at_least_as_strong(strong: str, under_strong: np.ndarray, weak: str, under_weak: np.ndarray) -> Finding:
    p_value = mcnemar(under_strong, under_weak)
    passed = under_strong.mean() <= under_weak.mean() or p_value >= SIGNIFICANT
    finding = f"accuracy {under_strong.mean():.1%} under {strong}, {under_weak.mean():.1%} under {weak}"
    if not passed:
        finding += f" (p = {p_value:.2g}): the attack that should be stronger is weaker"
    numbers = {"strong": float(under_strong.mean()), "weak": float(under_weak.mean()), "p_value": p_value}
    return Finding(bool(passed), finding, numbers)


CHECKS: Mapping[str, Callable[[ExaminedModel], Finding]] = {
    "repeatable": _repeatable,
    "images apart": _independent,
    "gradients": _gradients,
    "scale of logits": _scale,
    "iterative attack": _iterative,
    "random noise": _noise,
    "query attack": _queries,
    "choice of loss": _losses,
    LARGER_EPSILON: _more_epsilon,
    "more steps": _more_steps,
    "unbounded attack": _unbounded,
    "label leakage": _leakage,
}
"""The checks by name, in the order of the report card."""
