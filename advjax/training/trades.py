"""TRADES and MART: objectives on pairs of clean and adversarial images, and the attack that TRADES trains with.

    transforms = (perturb(most_divergent(linf(8 / 255), num_steps=10, step_size=2 / 255)),)
    objective = trades(model, cross_entropy, beta=6)

The published codes pass clean and adversarial images through the network one after the other; here they are one batch,
so BatchNorm sees them together.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from advjax import attacks
from advjax.attacks.base import Problem
from advjax.training.losses import Loss, kl_divergence
from advjax.training.objectives import Objective, accuracy, masked_mean, noise_rngs, on_pairs
from advjax.types import Array, Batch, Key, PyTree, Variables


def most_divergent(
    threat_model: attacks.ThreatModel, *, num_steps: int, step_size: float, start_std: float = 0.001
) -> attacks.Attack:
    """The inner attack of TRADES: PGD that maximises ``KL(softmax f(x) || softmax f(x'))``, without any label.

    It starts at ``x + start_std n`` with Gaussian n, for at x itself the gradient is 0, and returns the last point.
    The start is projected into the threat model; the published code does so only after the first step.

    Raises:
      ValueError: an infinite epsilon, or a negative ``step_size`` or ``start_std``.
    """
    if not start_std >= 0:
        raise ValueError(f"most_divergent: start_std is {start_std!r}; give a number, 0 or more")
    descent = attacks.pgd(threat_model, num_steps=num_steps, step_size=step_size, returns="last")

    def init(problem: Problem) -> Any:
        noise = start_std * jax.random.normal(problem.rng, problem.image.shape, problem.image.dtype)
        start = threat_model.project(problem.image, problem.image + noise) if problem.start is None else problem.start
        return descent.init(problem._replace(start=start))

    def objective(problem: Problem, state: Any, logits: Array) -> Array:
        return kl_divergence(problem.clean_logits, logits)

    return dataclasses.replace(descent, init=init, objective=objective)


def trades(model: nn.Module, loss: Loss, *, beta: float = 6.0, noise: bool = True) -> Objective:
    """``loss(f(x), t) + beta KL(softmax f(x) || softmax f(x'))`` (Zhang et al., 2019).

    Both terms send gradients through f(x).  x' usually comes from ``perturb(most_divergent(...))``.

    Args:
      model: called in train mode, BatchNorm synchronised over the replicas.
      loss: about one example, ``(logits, target distribution) -> scalar``; the paper has ``cross_entropy``.
      beta: weight of robustness, 0 or more.
      noise: as in ``supervised``.

    Raises:
      ValueError: a negative ``beta``, or (when applied) a batch that nobody attacked.
    """
    _check_beta("trades", beta)

    def objective(params: PyTree, model_state: PyTree, batch: Batch, rng: Key, axis_name: str | None):
        clean_logits, logits, new_state = on_pairs(
            model, Variables(params, model_state), batch, axis_name, noise_rngs(rng, batch, noise)
        )
        divergence = jax.vmap(kl_divergence)(clean_logits, logits)
        values = jax.vmap(loss)(clean_logits, batch.targets) + beta * divergence
        return _result(values, divergence, clean_logits, logits, batch, axis_name, new_state)

    return objective


def mart(model: nn.Module, loss: Loss, *, beta: float = 5.0, noise: bool = True) -> Objective:
    """``loss(f(x'), t) + beta KL(p || p') (1 - <p, t>)`` with p = softmax f(x), p' = softmax f(x') (Wang et al., 2020).

    Examples that are misclassified when clean are pulled together the most. The weight ``1 - <p, t>``, one minus the
    probability of the label, gets gradients too, as in the published code.

    Args:
      model: called in train mode, BatchNorm synchronised over the replicas.
      loss: about one example, ``(logits, target distribution) -> scalar``; the paper has ``boosted_cross_entropy``.
      beta: the paper's lambda, 0 or more.
      noise: as in ``supervised``.

    Raises:
      ValueError: a negative ``beta``, or (when applied) a batch that nobody attacked.
    """
    _check_beta("mart", beta)

    def objective(params: PyTree, model_state: PyTree, batch: Batch, rng: Key, axis_name: str | None):
        clean_logits, logits, new_state = on_pairs(
            model, Variables(params, model_state), batch, axis_name, noise_rngs(rng, batch, noise)
        )
        divergence = jax.vmap(kl_divergence)(clean_logits, logits)
        doubt = 1 - (jax.nn.softmax(clean_logits) * batch.targets).sum(axis=-1)
        values = jax.vmap(loss)(logits, batch.targets) + beta * divergence * doubt
        return _result(values, divergence, clean_logits, logits, batch, axis_name, new_state)

    return objective


def _result(
    values: Array,
    divergence: Array,
    clean_logits: Array,
    logits: Array,
    batch: Batch,
    axis_name: str | None,
    model_state: PyTree,
):
    total = masked_mean(values, batch.mask, axis_name)
    metrics = {
        "loss": total,
        "divergence": masked_mean(divergence, batch.mask, axis_name),
        "clean_accuracy": accuracy(clean_logits, batch, axis_name),
        "accuracy": accuracy(logits, batch, axis_name),
    }
    return total, (model_state, metrics)


def _check_beta(name: str, beta: float) -> None:
    if not beta >= 0:
        raise ValueError(f"{name}: beta is {beta!r}; give a number, 0 or more")
