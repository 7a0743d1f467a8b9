"""TRADES (Zhang et al., 2019): its objective on pairs of clean and adversarial images, and its inner attack.

    transforms = (perturb(most_divergent(linf(8 / 255), num_steps=10, step_size=2 / 255)),)
    objective = trades(model, cross_entropy, beta=6)

The published code passes clean and adversarial images through the network separately; here they form one batch, so
BatchNorm sees them together.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from advjax import attacks
from advjax.attacks.base import Problem
from advjax.training.losses import Loss, kl_divergence
from advjax.training.objectives import Objective, check_beta, noise_rngs, on_pairs, regularized
from advjax.types import Array, Batch, Key, PyTree, Variables


def most_divergent(
    threat_model: attacks.ThreatModel, *, num_steps: int, step_size: float, start_std: float = 0.001
) -> attacks.Attack:
    """The inner attack of TRADES: PGD that maximizes ``KL(softmax f(x) || softmax f(x'))`` and uses no labels.

    It starts at ``x + start_std n`` with Gaussian n, because the gradient vanishes at x itself, and returns the last
    iterate. The start is projected onto the threat model; the published code does so only after the first step.

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

    Both terms propagate gradients through f(x). x' usually comes from ``perturb(most_divergent(...))``.

    Args:
      model: called in train mode, with BatchNorm synchronized over the replicas.
      loss: loss of one example, ``(logits, target distribution) -> scalar``; ``cross_entropy`` in the paper.
      beta: weight of the robustness term, at least 0 (1 / lambda in the paper).
      noise: as in ``supervised``.

    Raises:
      ValueError: ``beta`` is negative.
      UserError: (when applied) the batch has no adversarial images.
    """
    check_beta("trades", beta)

    def objective(params: PyTree, model_state: PyTree, batch: Batch, rng: Key, axis_name: str | None):
        clean_logits, logits, new_state = on_pairs(
            model, Variables(params, model_state), batch, axis_name, noise_rngs(rng, batch, noise)
        )
        divergence = jax.vmap(kl_divergence)(clean_logits, logits)
        values = jax.vmap(loss)(clean_logits, batch.targets) + beta * divergence
        return regularized(values, divergence, clean_logits, logits, batch, axis_name, new_state)

    return objective
