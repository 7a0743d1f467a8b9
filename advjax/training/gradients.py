"""Gradients of an objective: of the parameters that learn alone, at once or in microbatches."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.cpu.fast_on_cpu import fast_on_cpu
from advjax.runtime import collectives
from advjax.training.microbatches import from_parts, in_parts
from advjax.training.objectives import Metrics, Objective
from advjax.types import Array, Batch, Key, PyTree, Variables


class Gradients(NamedTuple):
    """The value of an objective and its gradients."""

    params: PyTree
    """With the structure of the parameters; 0 for frozen ones."""
    loss: Array
    metrics: Metrics
    model_state: PyTree
    images: Array | None
    """[rows, h, w, c] of this replica, if asked for; times the number of replicas."""


def gradients(
    objective: Objective,
    variables: Variables,
    batch: Batch,
    rng: Key,
    axis_name: str | None,
    *,
    trainable: PyTree,
    microbatches: int = 1,
    of_images: bool = False,
) -> Gradients:
    """The gradients of an objective on the whole batch, from this replica's rows and all others.

    With several microbatches the rows are computed one part after the other, so that only one part's features are in
    memory. Microbatch i has the rows i, i + m, i + 2m, ...; each counts by its share of the unmasked rows, so gradients
    and metrics are those of the whole batch up to rounding, except for what an objective computes across examples:

    * BatchNorm normalizes each microbatch by its own statistics. Running averages move once, by the mean over the
      microbatches: means as for the whole batch, variances without the variance between microbatches.
    * Manifold mixup draws partners from the same microbatch; weight and position are the same for all.
    * Adversarial weight perturbation is computed anew for each microbatch.

    Args:
      objective: what to minimize.
      variables: where; replicated.
      batch: this replica's rows.
      rng: key of the objective.
      axis_name: of the replicas.
      trainable: tree of bools with the structure of the parameters; no gradient is computed for the others.
      microbatches: m, the number of parts.
      of_images: also compute the gradient with respect to ``batch.images``.

    Raises:
      UserError: the rows cannot be split into so many equal parts.
    """
    flags, structure = jax.tree.flatten(trainable)
    params = structure.flatten_up_to(collectives.varying(variables.params, axis_name))

    def on_rows(learned: list[PyTree], images: Array, frozen: list[PyTree], part: Batch):
        merged = structure.unflatten(_merged(flags, learned, frozen))
        return objective(merged, variables.model_state, part._replace(images=images), rng, axis_name)

    gradient_fn = jax.value_and_grad(fast_on_cpu(on_rows), argnums=(0, 1) if of_images else (0,), has_aux=True)

    learned = [leaf for leaf, flag in zip(params, flags, strict=True) if flag]
    frozen = [leaf for leaf, flag in zip(params, flags, strict=True) if not flag]

    def on_part(part: Batch) -> Gradients:
        (loss, (model_state, metrics)), (found, *of_image) = gradient_fn(learned, part.images, frozen, part)
        return Gradients(found, loss, metrics, model_state, *(of_image or [None]))

    found = on_part(batch) if microbatches == 1 else _accumulated(on_part, batch, axis_name, microbatches)
    mean, loss, metrics = collectives.mean_over((found.params, found.loss, found.metrics), axis_name)
    zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in frozen]
    return found._replace(params=structure.unflatten(_merged(flags, mean, zeros)), loss=loss, metrics=metrics)


def _merged(flags: list[bool], learned: list[PyTree], frozen: list[PyTree]) -> list[PyTree]:
    """The leaves in their order."""
    both = iter(learned), iter(frozen)
    return [next(both[0] if flag else both[1]) for flag in flags]


def _accumulated(on_part: Callable[[Batch], Gradients], batch: Batch, axis_name: str | None, count: int) -> Gradients:
    """The sums of gradients, loss and metrics over the microbatches, each weighted by its unmasked rows."""
    total = _unmasked(batch, axis_name)

    def weighted(part: Batch) -> tuple[Gradients, tuple[PyTree, Array | None]]:
        weight, found = _unmasked(part, axis_name) / total, on_part(part)
        sums = jax.tree.map(lambda leaf: weight * leaf, found._replace(model_state=None, images=None))
        return sums, (found.model_state, None if found.images is None else weight * found.images)

    def add(sums: Gradients, part: Batch) -> tuple[Gradients, tuple[PyTree, Array | None]]:
        more, rest = weighted(part)
        return jax.tree.map(jnp.add, sums, more), rest

    parts = in_parts(batch, count)
    shapes = jax.eval_shape(weighted, jax.tree.map(lambda leaf: leaf[0], parts))[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, (model_states, images) = jax.lax.scan(add, collectives.varying(zeros, axis_name), parts)
    return sums._replace(model_state=jax.tree.map(_mean, model_states), images=from_parts(images))


def _unmasked(batch: Batch, axis_name: str | None) -> Array:
    return collectives.mean_over(jnp.sum(batch.mask.astype(jnp.float32)), axis_name)


def _mean(states: Array) -> Array:
    """Over the microbatches; what is not a floating point number, such as a counter, is as after the last."""
    return jnp.mean(states, axis=0) if jnp.issubdtype(states.dtype, jnp.floating) else states[-1]
