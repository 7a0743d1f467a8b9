"""Adversarial weight perturbation (AWP): training gradients taken at weights that increase the loss."""

import jax
import jax.numpy as jnp

from advjax.cpu.fast_on_cpu import fast_on_cpu
from advjax.runtime import collectives
from advjax.training.objectives import Objective
from advjax.types import Array, Batch, Key, PyTree


def with_weight_perturbation(objective: Objective, gamma: float = 0.005, trainable: PyTree | None = None) -> Objective:
    """``objective`` at ``w + gamma ||w|| g / ||g||``, layer by layer, with g its gradient at w (AWP, Wu et al., 2020).

    One ascent step, as published; the update itself is applied to w. Only tensors with two or more axes are perturbed:
    kernels, but neither biases nor BatchNorm scales. Batch statistics are those of the second pass.

    Args:
      objective: any objective, such as ``supervised`` on adversarial images (AT-AWP) or ``trades`` (TRADES-AWP).
      gamma: size of the perturbation relative to the norm of a layer's weights, at least 0.
      trainable: tree of bools with the structure of the parameters; frozen ones are not perturbed. None for all.

    Raises:
      ValueError: ``gamma`` is negative.
    """
    if not gamma >= 0:
        raise ValueError(f"with_weight_perturbation: gamma is {gamma!r}; give a number, 0 or more")

    def moved(weight: Array, gradient: Array, learns: bool) -> Array:
        if weight.ndim < 2 or not learns:
            return weight
        size = jnp.linalg.norm(gradient.reshape(-1))
        # A layer without a gradient is not perturbed.
        direction = gradient / jnp.where(size > 0, size, 1)
        return weight + jax.lax.stop_gradient(gamma * jnp.linalg.norm(weight.reshape(-1)) * direction)

    def perturbed(params: PyTree, model_state: PyTree, batch: Batch, rng: Key, axis_name: str | None):
        def loss(params: PyTree) -> Array:
            return objective(params, model_state, jax.lax.stop_gradient(batch), rng, axis_name)[0]

        gradients = collectives.mean_over(jax.grad(fast_on_cpu(loss))(jax.lax.stop_gradient(params)), axis_name)
        learns = jax.tree.map(lambda _: True, params) if trainable is None else trainable
        return objective(jax.tree.map(moved, params, gradients, learns), model_state, batch, rng, axis_name)

    return perturbed
