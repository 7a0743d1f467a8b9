"""A user's own network as a ``Classifier``, without rewriting it.

A linen module needs no adapter: subclass ``Classifier`` and name its blocks in ``make_blocks``.  A network of anything
else that JAX can differentiate (Equinox, NNX, plain functions) is given as pure functions with their parameters.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import flax.linen as nn
import jax

from advjax.models.blocks import Classifier
from advjax.types import Array, PyTree, UserError, Variables

BlockFunction: TypeAlias = Callable[[PyTree, Array], Array]
"""``(parameters, features) -> features``, a pure function."""


class FunctionBlock(nn.Module):
    """A pure function as a block; its parameters are the leaf or tree "params".

    Attributes:
      function: ``(parameters, features) -> features``.
      initial: returns the parameters that it comes with.
    """

    function: BlockFunction
    initial: Callable[[], PyTree]

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if not jax.tree.leaves(self.initial()):
            return self.function(self.initial(), x)
        return self.function(self.param("params", lambda rng: self.initial()), x)


class FunctionClassifier(Classifier):
    """Pure functions, one after the other; made by :func:`from_functions`.

    Attributes:
      parts: (name, function, what returns its initial parameters) of every block.
    """

    parts: tuple[tuple[str, BlockFunction, Callable[[], PyTree]], ...] = ()

    def make_blocks(self) -> dict[str, nn.Module]:
        return {name: FunctionBlock(function, initial) for name, function, initial in self.parts}


def from_functions(
    functions: Mapping[str, BlockFunction], params: Mapping[str, PyTree]
) -> tuple[FunctionClassifier, Variables]:
    """A classifier that applies ``functions`` in order, and its variables: ``params``, each in its block.

    Fixers, denoising blocks and manifold mixup take the model like any other.  Its functions see no ``train`` and keep
    no state: what they compute is what is deployed.

    Args:
      functions: block name -> ``(params[name], features) -> features``; the first gets images [n, h, w, c] in [0, 1],
        the last returns logits.
      params: the parameters by block name, any trees of arrays; a function without an entry is called with None.

    Raises:
      UserError: there are no functions, or parameters for a block that is not among them.
    """
    if not functions:
        raise UserError("functions must name one block at least, got none")
    if unknown := sorted(set(params) - set(functions)):
        raise UserError(f"params has {unknown[0]!r}, which is no block: the blocks are {', '.join(functions)}")

    def part(name: str) -> tuple[str, BlockFunction, Callable[[], PyTree]]:
        return name, functions[name], lambda: params.get(name)

    given = {f"block_{name}": {"params": params[name]} for name in functions if jax.tree.leaves(params.get(name))}
    return FunctionClassifier(parts=tuple(part(name) for name in functions)), Variables(given, {})
