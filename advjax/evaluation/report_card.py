"""The report card: signs that attacks fail for reasons other than robustness.

``examine`` runs about a dozen short attacks on a few images of one model and compares their results; it needs nothing
but a logits function.  A failed check proves nothing about the model; it says that the accuracies measured on it may be
too high (Athalye et al. 2018; Carlini et al. 2019, "On evaluating adversarial robustness").
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from advjax.attacks import Expectation, ThreatModel, input_checks
from advjax.attacks.threat_model import require
from advjax.evaluation.examined_model import ExaminedModel
from advjax.evaluation.report_card_checks import CHECKS
from advjax.types import LogitsFn


class Check(NamedTuple):
    """One reason to trust the evaluation of a model, or to doubt it."""

    name: str
    passed: bool
    finding: str
    """What was observed, in one sentence with its numbers."""
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
    """Examines a model as it is scored, with its defense in the loop.

    A hundred images are enough for every sign that is looked for here.

    Args:
      logits_fn: ``images -> logits``, the ``attacks.expectation`` of a stochastic model, or, with ``variables``,
        ``variables ->`` one of these.
      images: float [n, h, w, c] inside the bounds.
      labels: int [n].
      threat_model: linf or l2 with a finite epsilon: that of the robust accuracy in question.
      variables: arrays of the model, to be arguments of the compiled attacks instead of constants in them.
      seed: of all randomness.
      names: which of ``CHECKS`` to run; all if None.

    Raises:
      ValueError: the threat model or a name is not supported, or attacks cannot handle the images, labels or logits.
    """
    require(threat_model, "examine", "linf", "l2", finite_epsilon=True, finite_bounds=True)
    if not float(threat_model.epsilon) > 0:
        raise ValueError(f"examine needs an epsilon above 0, got {threat_model.epsilon}")
    input_checks.require_count("seed", seed, 0)
    images, labels = input_checks.as_array("images", images), input_checks.as_array("labels", labels)
    input_checks.check_inputs(images, labels, threat_model.bounds)
    if not len(images):
        raise ValueError("examine needs at least one image, got none")
    bind: Any = logits_fn if variables is not None else lambda variables: logits_fn
    model = ExaminedModel(bind, variables, jnp.asarray(images), jnp.asarray(labels, jnp.int32), threat_model, seed)
    if unknown := [name for name in names or () if name not in CHECKS]:
        raise ValueError(f"names must be among {', '.join(CHECKS)}, got {unknown[0]!r}")
    input_checks.check_logits(model.logits(model.images), images, labels)
    # Most of the work is compilation, which threads can do at the same time.
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: Check(name, *CHECKS[name](model)), names or CHECKS)
        return list(found)
