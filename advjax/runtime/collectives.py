"""Collectives for replica functions: the mean over the replicas, and the cast that keeps gradients local.

With ``axis_name=None``, in the plain single-device program, both are the identity.
"""

import jax

from advjax.types import PyTree

AXIS = "data"
"""Name of the mesh axis that batches are split over."""


def mean_over(tree: PyTree, axis_name: str | None) -> PyTree:
    """Mean over the replicas; the identity for ``axis_name=None``."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def varying(tree: PyTree, axis_name: str | None) -> PyTree:
    """Marks replicated values as varying over the replicas, so that gradients with respect to them stay local.

    The values do not change. JAX raises a ValueError for values that already vary over the replicas, such as rows of
    the batch.
    """
    return tree if axis_name is None else jax.lax.pcast(tree, axis_name, to="varying")
