"""Checks that a robust accuracy is what it seems: signs of attacks that fail for other reasons than robustness.

``examine`` attacks a few images of one model in many small ways and compares the results; it needs nothing but a logits
function.  Each ``Check`` says whether the evaluation of this model can be trusted in one respect.  A check that fails
proves nothing about the model; it says that the numbers measured on it may flatter (Athalye et al. 2018; Carlini et al.
2019, "On evaluating adversarial robustness").
"""

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax import attacks
from advjax.attacks import Attack, Expectation, ThreatModel, model_queries
from advjax.attacks.losses import random_class
from advjax.attacks.random_noise import random_points
from advjax.evaluation.statistics import mcnemar
from advjax.types import Array, Key, LogitsFn

SIGNIFICANT = 0.05
"""A difference on the same images counts if the exact McNemar test gives less than this."""
MAX_ZERO_GRADIENTS = 0.01
"""Largest share of images whose gradient may vanish."""
MAX_CONFIDENT_LOGIT = 1e3
STEPS, QUERIES = 20, 300
_FEW = f"AutoPGD-{STEPS}"


class Check(NamedTuple):
    """One reason to trust the evaluation of a model, or not to."""

    name: str
    passed: bool
    finding: str
    """What was seen, in one sentence with its numbers."""
    numbers: dict[str, float]


def examine(
    logits_fn: LogitsFn | Expectation | Callable[[Any], LogitsFn | Expectation],
    images: np.ndarray,
    labels: np.ndarray,
    threat_model: ThreatModel,
    *,
    variables: Any = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> list[Check]:
    """Examines the model that is scored, with its defence in the loop.

    About a dozen short attacks on every image: a hundred images show every sign that is looked for here.

    Args:
      logits_fn: ``images -> logits``, the ``attacks.expectation`` of a stochastic model, or, with ``variables``,
        ``variables ->`` one of these.
      images: float [n, h, w, c] inside the bounds.
      labels: int [n].
      threat_model: linf or l2 with a finite epsilon, the one that robust accuracy is stated for.
      variables: arrays of the model, if they shall be arguments of the compiled attacks instead of constants in them.
      seed: of all randomness.
      names: which of ``CHECKS``, all if None.

    Raises:
      ValueError: another threat model, no images, or an unknown name.
    """
    if not (threat_model.norm.dense and threat_model.is_bounded):
        raise ValueError(f"examine needs linf or l2 with a finite epsilon, got {threat_model.norm.name}")
    if not len(images):
        raise ValueError("examine needs at least one image, got none")
    bind: Any = logits_fn if variables is not None else lambda variables: logits_fn
    subject = _Subject(bind, variables, jnp.asarray(images), jnp.asarray(labels, jnp.int32), threat_model, seed)
    if unknown := [name for name in names or () if name not in CHECKS]:
        raise ValueError(f"names must be among {', '.join(CHECKS)}, got {unknown[0]!r}")
    # Compiling is most of the work, and two programs can be compiled at a time.
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: Check(name, *CHECKS[name](subject)), names or CHECKS)
        return list(found)


class _Finding(NamedTuple):
    """A ``Check`` without its name."""

    passed: bool
    finding: str
    numbers: dict[str, float]


Weights = tuple[float, float, float]
CROSS_ENTROPY, MARGIN, TARGET = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
"""Shares of the losses that an AutoPGD climbs; as arguments, they need no compilation of their own."""


def _auto_pgd(num_steps: int) -> Callable[[ThreatModel, Array], Attack]:
    def make(threat_model: ThreatModel, weights: Array) -> Attack:
        def loss(logits: Array, label: Array, target: Array) -> Array:
            parts = attacks.cross_entropy(logits, label), attacks.margin(logits, label)
            return jnp.dot(weights, jnp.stack([*parts, attacks.targeted_cross_entropy(logits, label, target)]))

        return attacks.auto_pgd(threat_model, num_steps=num_steps, loss=loss, aim=random_class)

    return make


_PROGRAMS: Mapping[str, Callable[[ThreatModel, Array], Attack]] = {
    "one step": lambda threat_model, weights: attacks.fgsm(threat_model),
    "random points": lambda threat_model, weights: random_points(threat_model),
    "queries": lambda threat_model, weights: attacks.square(threat_model, num_queries=QUERIES),
    "few steps": _auto_pgd(STEPS),
    "many steps": _auto_pgd(2 * STEPS),
}
"""Each is compiled once for a model; epsilon, loss and labels are arguments."""


class _Subject:
    """The model under examination; remembers what its images did under each attack, and may be asked from threads."""

    def __init__(
        self,
        bind: Callable[[Any], Any],
        variables: Any,
        images: Array,
        labels: Array,
        threat_model: ThreatModel,
        seed: int,
    ) -> None:
        self.bind, self.variables, self.images, self.labels = bind, variables, images, labels
        self.threat_model, self.rng = threat_model, jax.random.key(seed)
        self.keys = jax.vmap(functools.partial(jax.random.fold_in, self.rng))(np.arange(len(images)))
        self._evaluate = jax.jit(lambda variables, images, keys: model_queries.evaluate(bind(variables), images, keys))
        self._seen: dict[tuple, np.ndarray] = {}
        self._compiled = {program: self._compile(make) for program, make in _PROGRAMS.items()}
        self._locks = {program: threading.Lock() for program in _PROGRAMS}

    def logits(self, images: Array, number: int = 0) -> np.ndarray:
        """Logits [n, classes]; another ``number`` asks a stochastic model for other draws."""
        keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(self.keys[: len(images)])
        return np.asarray(self._evaluate(self.variables, images, keys))

    def clean(self) -> np.ndarray:
        """bool [n]: what is classified correctly."""
        return self._correct(self.images)

    def under(
        self, program: str, times: float = 1.0, weights: Weights = CROSS_ENTROPY, predicted: bool = False
    ) -> np.ndarray:
        """bool [n]: what is still classified correctly under an attack, at ``times`` the epsilon.

        ``predicted`` gives the attack the model's own predictions in place of the labels.
        """
        asked = program, times, weights, predicted
        with self._locks[program]:
            if asked not in self._seen:
                labels = jnp.argmax(self.logits(self.images), axis=-1) if predicted else self.labels
                epsilon = jnp.float32(times * self.threat_model.epsilon)
                arguments = epsilon, jnp.asarray(weights), self.images, labels, self.keys
                self._seen[asked] = self._correct(self._compiled[program](self.variables, *arguments))
            return self._seen[asked]

    def _correct(self, images: Array) -> np.ndarray:
        return np.argmax(self.logits(images, 1), axis=-1) == np.asarray(self.labels)

    def _compile(self, make_attack: Callable[[ThreatModel, Array], Attack]) -> Callable[..., Array]:
        @jax.jit
        def run(variables: Any, epsilon: Array, weights: Array, images: Array, labels: Array, keys: Key) -> Array:
            threat_model = dataclasses.replace(self.threat_model, epsilon=epsilon)
            attack = make_attack(threat_model, weights)
            return attack(self.bind(variables), images, labels, keys, until_success=True).images

        return run


def _repeatable(subject: _Subject) -> _Finding:
    first, again = (subject.logits(subject.images) for _ in range(2))
    differs = float(np.mean(np.any(first != again, axis=-1)))
    is_random = isinstance(subject.bind(subject.variables), Expectation)
    if is_random:
        other = subject.logits(subject.images, 2)
        changed = float(np.mean(np.argmax(first, axis=-1) != np.argmax(other, axis=-1)))
        finding = f"stochastic: {changed:.1%} of the predictions change with the draws of the mean"
        return _Finding(differs == 0 and changed <= 0.1, finding, {"changed": changed, "differs": differs})
    finding = f"{differs:.1%} of the images got other logits when asked again"
    if differs:
        finding += ": attack the attacks.expectation of a stochastic model"
    return _Finding(differs == 0, finding, {"differs": differs})


def _independent(subject: _Subject) -> _Finding:
    half = max(1, len(subject.images) // 2)
    together, alone = subject.logits(subject.images)[:half], subject.logits(subject.images[:half])
    scale = float(np.max(np.abs(together))) or 1.0
    difference = float(np.max(np.abs(together - alone))) / scale
    finding = f"logits change by {difference:.1e} of their size with the other images of the batch"
    if difference > 1e-3:
        finding += ": is BatchNorm in train mode?"
    return _Finding(difference <= 1e-3, finding, {"difference": difference})


def _gradients(subject: _Subject) -> _Finding:
    @jax.jit
    def differentiate(variables: Any, images: Array, labels: Array, keys: Key) -> Array:
        def cotangents(logits: Array) -> Array:
            return jax.vmap(jax.grad(attacks.cross_entropy))(logits, labels)

        return model_queries.differentiate(subject.bind(variables), images, keys, cotangents)[1]

    noisy = jax.vmap(subject.threat_model.project)(
        subject.images, jax.vmap(subject.threat_model.sample)(subject.images, subject.keys)
    )
    parts = [
        differentiate(subject.variables, images, subject.labels, subject.keys) for images in (subject.images, noisy)
    ]
    sizes = np.stack([np.max(np.abs(np.asarray(part)), axis=(1, 2, 3)) for part in parts])
    # A compiled softmax leaves rounding of the label's own probability where all others have underflowed.
    others = np.array(jax.nn.softmax(subject.logits(subject.images)))
    others[np.arange(len(others)), np.asarray(subject.labels)] = 0
    nonfinite = float(np.mean(~np.all(np.isfinite(sizes), axis=0)))
    vanishing = float(np.mean((np.min(sizes, axis=0) == 0) | (np.max(others, axis=-1) == 0)))
    finding = f"{vanishing:.1%} of the gradients of the cross-entropy are zero, or nothing but rounding"
    if nonfinite:
        finding += f", and {nonfinite:.1%} are NaN or infinite"
    passed = vanishing <= MAX_ZERO_GRADIENTS and not nonfinite
    return _Finding(passed, finding, {"zero_fraction": vanishing, "nonfinite_fraction": nonfinite})


def _scale(subject: _Subject) -> _Finding:
    logits = subject.logits(subject.images)
    top = np.sort(logits, axis=-1)
    gap = float(np.median(top[:, -1] - top[:, -2]))
    finding = f"the two largest logits are {gap:.3g} apart in the median"
    if gap > MAX_CONFIDENT_LOGIT:
        finding += ": the softmax saturates in float32, and the cross-entropy has no gradient left"
    return _Finding(gap <= MAX_CONFIDENT_LOGIT, finding, {"median_gap": gap})


def _iterative(subject: _Subject) -> _Finding:
    return _at_least_as_strong(_FEW, subject.under("few steps"), "one step of FGSM", subject.under("one step"))


def _noise(subject: _Subject) -> _Finding:
    return _at_least_as_strong(
        _FEW, subject.under("few steps"), "random points of the ball", subject.under("random points")
    )


def _queries(subject: _Subject) -> _Finding:
    strongest = subject.under("many steps") & subject.under("few steps") & subject.under("few steps", weights=MARGIN)
    queried = subject.under("queries")
    return _at_least_as_strong("the gradient attacks", strongest, f"Square with {QUERIES} queries", queried)


def _losses(subject: _Subject) -> _Finding:
    entropy, margin = subject.under("few steps"), subject.under("few steps", weights=MARGIN)
    p_value = mcnemar(entropy, margin)
    passed = p_value >= SIGNIFICANT or entropy.mean() <= margin.mean()
    finding = (
        f"AutoPGD-{STEPS} leaves {entropy.mean():.1%} with the cross-entropy and {margin.mean():.1%} with the margin "
        f"(p = {p_value:.2g})"
    )
    numbers = {"cross_entropy": float(entropy.mean()), "margin": float(margin.mean()), "p_value": p_value}
    return _Finding(bool(passed), finding, numbers)


def _more_epsilon(subject: _Subject) -> _Finding:
    factors = (0.25, 0.5, 1.0, 2.0)
    found = [subject.clean(), *(subject.under("few steps", factor) for factor in factors)]
    rises = [
        second.mean() > first.mean() and mcnemar(first, second) < SIGNIFICANT
        for first, second in itertools.pairwise(found)
    ]
    shares = [float(correct.mean()) for correct in found]
    listed = ", ".join(f"{share:.1%}" for share in shares)
    numbers = dict(zip(("clean", *map(str, factors)), shares, strict=True))
    return _Finding(not any(rises), f"at 0, 1/4, 1/2, 1 and 2 epsilon: {listed}", numbers)


def _more_steps(subject: _Subject) -> _Finding:
    few, many = subject.under("few steps"), subject.under("many steps")
    p_value = mcnemar(few, many)
    finding = f"{few.mean():.1%} with {STEPS} steps, {many.mean():.1%} with {2 * STEPS} (p = {p_value:.2g})"
    numbers = {"few": float(few.mean()), "many": float(many.mean()), "p_value": p_value}
    return _Finding(p_value >= SIGNIFICANT, finding, numbers)


def _unbounded(subject: _Subject) -> _Finding:
    whole = float(subject.threat_model.norm.size(jnp.ones(subject.images.shape[1:])))
    times = (
        whole * (subject.threat_model.bounds[1] - subject.threat_model.bounds[0]) / float(subject.threat_model.epsilon)
    )
    left = subject.under("many steps", times) & subject.under("many steps", times, MARGIN)
    # Between black, white and everything else there always is a wrong answer.
    finding = (
        f"{left.mean():.1%} left where every image is allowed (epsilon {times * subject.threat_model.epsilon:.3g})"
    )
    return _Finding(left.mean() <= 0.02, finding, {"accuracy": float(left.mean())})


def _leakage(subject: _Subject) -> _Finding:
    truth = subject.under("few steps")
    others = {
        "predicted labels": subject.under("few steps", predicted=True),
        "random targets": subject.under("few steps", weights=TARGET),
    }
    worse = [mcnemar(truth, other) for other in others.values() if other.mean() < truth.mean()]
    listed = ", ".join(f"{other.mean():.1%} with {name}" for name, other in others.items())
    finding = f"{truth.mean():.1%} with true labels, {listed}"
    numbers = {"true": float(truth.mean()), **{name: float(other.mean()) for name, other in others.items()}}
    return _Finding(all(p_value >= SIGNIFICANT for p_value in worse), finding, numbers)


def _at_least_as_strong(strong: str, under_strong: np.ndarray, weak: str, under_weak: np.ndarray) -> _Finding:
    p_value = mcnemar(under_strong, under_weak)
    passed = under_strong.mean() <= under_weak.mean() or p_value >= SIGNIFICANT
    finding = f"{under_strong.mean():.1%} left by {strong}, {under_weak.mean():.1%} by {weak}"
    if not passed:
        finding += f" (p = {p_value:.2g}): the stronger attack must not be the weaker one"
    numbers = {"strong": float(under_strong.mean()), "weak": float(under_weak.mean()), "p_value": p_value}
    return _Finding(bool(passed), finding, numbers)


CHECKS: Mapping[str, Callable[[_Subject], _Finding]] = {
    "repeatable": _repeatable,
    "images apart": _independent,
    "gradients": _gradients,
    "scale of logits": _scale,
    "iterative attack": _iterative,
    "random noise": _noise,
    "query attack": _queries,
    "choice of loss": _losses,
    "larger epsilon": _more_epsilon,
    "more steps": _more_steps,
    "unbounded attack": _unbounded,
    "label leakage": _leakage,
}
"""What ``examine`` looks at, in this order."""


def failed(checks: list[Check]) -> list[str]:
    """Names of the checks that did not pass."""
    return [check.name for check in checks if not check.passed]
