"""A batch in parts that are processed one after the other."""

import jax

from advjax.types import Array, PyTree, UserError


def check_rows(rows: int, count: int) -> None:
    """Raises a UserError if a device's rows of a batch cannot be split into ``count`` equal parts."""
    if rows % count:
        raise UserError(
            f"gradient_accumulation is {count}, but the {rows} images of a batch on each device cannot be split into "
            f"{count} equal parts: make batch_size a multiple of {count} times the number of devices"
        )


def in_parts(tree: PyTree, count: int) -> PyTree:
    """Rows [n, ...] as ``count`` parts [count, n / count, ...]; part i has the rows i, i + count, ...

    Interleaved, so that each part has as many rows of each replica and of padding as the others, or one more.

    Raises:
      UserError: n is not divisible by ``count``.
    """

    def split(rows: Array) -> Array:
        check_rows(len(rows), count)
        return rows.reshape(len(rows) // count, count, *rows.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, tree)


def from_parts(tree: PyTree) -> PyTree:
    """The inverse of ``in_parts``."""
    return jax.tree.map(lambda parts: parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:]), tree)
