"""Rematerialization: the features inside a block are computed again for the gradient instead of being kept for it."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax

from advjax.types import Array, UserError

_blocks: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("rematerialized_blocks", default=None)
"""The blocks that the current context has rematerialized; None outside of any."""


@contextlib.contextmanager
def rematerializing(active: bool) -> Iterator[None]:
    """Within this context, gradients keep only the inputs of a classifier's blocks (``jax.checkpoint``).

    The peak memory is that of the inputs of all blocks and the inside of one, at the cost of another forward pass.
    The values are the same. The context counts where a function is traced, like ``compute_dtype.computing_in``.

    Raises:
      UserError: (at the end) no block was called, so nothing would be rematerialized.
    """
    token = _blocks.set([] if active else None)
    try:
        yield
        if _blocks.get() == []:
            raise UserError(
                "remat needs a network that calls its blocks one by one: a subclass of Classifier, or from_functions; "
                "with from_module, use flax.linen.remat inside the module"
            )
    finally:
        _blocks.reset(token)


def run_block(call: Callable[..., Array], block: Any, features: Array) -> Array:
    """``call(block, features)``, rematerialized within the context; ``block`` is a linen module or a function."""
    blocks = _blocks.get()
    if blocks is None:
        return call(block, features)
    blocks.append(block)
    if isinstance(block, nn.Module):
        return nn.remat(call)(block, features)
    return jax.checkpoint(lambda features: call(block, features))(features)
