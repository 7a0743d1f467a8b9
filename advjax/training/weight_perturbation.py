"""Adversarial weight perturbation: the gradient of a training step, taken where the weights do the most harm."""

import jax
import jax.numpy as jnp

from advjax.runtime import collectives
from advjax.training.objectives import Objective
from advjax.types import Array, Batch, Key, PyTree


def with_weight_perturbation(objective: Objective, gamma: float = 0.005, trainable: PyTree | None = None) -> Objective:
    """``objective`` at ``w + gamma ||w|| g / ||g||``, layer by layer, g its gradient at w (AWP, Wu et al., 2020).

    One step of ascent, as published; the update itself is made from w. Only tensors of two or more axes are moved:
    kernels, but neither biases nor the scales of BatchNorm. Batch statistics are those of the second pass.

    Args:
      objective: any, e.g. ``supervised`` on adversarial images (AT-AWP) or ``trades`` (TRADES-AWP).
      gamma: size of the perturbation relative to the weights of a layer, 0 or more.
      trainable: tree of bools like the parameters: the others are not moved either; None for all.

    Raises:
      ValueError: a negative ``gamma``.
    """
    if not gamma >= 0:
        raise ValueError(f"with_weight_perturbation: gamma is {gamma!r}; give a number, 0 or more")

    def moved(weight: Array, gradient: Array, learns: bool) -> Array:
        if weight.ndim < 2 or not learns:
            return weight
        size = jnp.linalg.norm(gradient.reshape(-1))
        # A layer without gradient stays where it is.
        direction = gradient / jnp.where(size > 0, size, 1)
        return weight + jax.lax.stop_gradient(gamma * jnp.linalg.norm(weight.reshape(-1)) * direction)

    def perturbed(params: PyTree, model_state: PyTree, batch: Batch, rng: Key, axis_name: str | None):
        def loss(params: PyTree) -> Array:
            return objective(params, model_state, jax.lax.stop_gradient(batch), rng, axis_name)[0]

        gradients = collectives.mean_over(jax.grad(loss)(jax.lax.stop_gradient(params)), axis_name)
        learns = jax.tree.map(lambda _: True, params) if trainable is None else trainable
        return objective(jax.tree.map(moved, params, gradients, learns), model_state, batch, rng, axis_name)

    return perturbed
