"""What the replicas of a computation say to each other: sums, means, and which values are each replica's own.

All functions take ``axis_name=None`` for the plain single-device program, where they are the identity.
"""

import jax

from advjax.types import PyTree


def sum_over(tree: PyTree, axis_name: str | None) -> PyTree:
    """Sum over the replicas; the identity for ``axis_name=None``."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def mean_over(tree: PyTree, axis_name: str | None) -> PyTree:
    """Mean over the replicas; the identity for ``axis_name=None``."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def varying(tree: PyTree, axis_name: str | None) -> PyTree:
    """Declares replicated values as each replica's own, so that the gradient with respect to them stays local.

    The identity in value, and altogether for ``axis_name=None``.  JAX raises ValueError for values that differ between
    the replicas already, such as rows of the batch.
    """
    return tree if axis_name is None else jax.lax.pcast(tree, axis_name, to="varying")
