"""Adapters that turn your own network into a ``Classifier`` without rewriting it.

``from_module`` takes a linen module, with its class and variables unchanged, and the names of the submodules that are
its blocks. For a sequence of linen layers, write a subclass of ``Classifier`` that names them in ``make_blocks`` and
convert its trained variables with ``in_blocks``. ``from_functions`` takes anything else that JAX can differentiate
(Equinox, NNX, plain functions) as pure functions with their parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax

from advjax.models.blocks import Between, Classifier, call_block
from advjax.types import Array, PyTree, UserError, Variables

BlockFunction: TypeAlias = Callable[[PyTree, Array], Array]
"""``(parameters, features) -> features``, a pure function."""


class FunctionBlock(nn.Module):
    """A pure function as a block; its parameters are the leaf or tree named "params".

    Attributes:
      function: ``(parameters, features) -> features``.
      initial: returns its initial parameters.
    """

    function: BlockFunction
    initial: Callable[[], PyTree]

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if not jax.tree.leaves(self.initial()):
            return self.function(self.initial(), x)
        return self.function(self.param("params", lambda rng: self.initial()), x)


class FunctionClassifier(Classifier):
    """A sequence of pure functions; built by ``from_functions``.

    Attributes:
      parts: (name, function, function that returns the initial parameters) of every block.
    """

    parts: tuple[tuple[str, BlockFunction, Callable[[], PyTree]], ...] = ()

    def make_blocks(self) -> dict[str, nn.Module]:
        return {name: FunctionBlock(function, initial) for name, function, initial in self.parts}


def from_functions(
    functions: Mapping[str, BlockFunction], params: Mapping[str, PyTree]
) -> tuple[FunctionClassifier, Variables]:
    """A classifier that applies ``functions`` in order, and its variables: ``params``, each in its block.

    Fixers, denoising blocks, and manifold mixup work as with any other model. The functions receive no ``train`` flag
    and have no state, so they compute the same in training and inference.

    Args:
      functions: block name -> ``(params[name], features) -> features``; the first gets images [n, h, w, c] in [0, 1],
        the last returns logits.
      params: parameters by block name, any trees of arrays; a function without an entry is called with None.

    Raises:
      UserError: there are no functions, or there are parameters for a block that is not among them.
    """
    if not functions:
        raise UserError("functions must name at least one block, got none")
    if unknown := sorted(set(params) - set(functions)):
        raise UserError(f"params has {unknown[0]!r}, which is not a block: the blocks are {', '.join(functions)}")

    def part(name: str) -> tuple[str, BlockFunction, Callable[[], PyTree]]:
        return name, functions[name], lambda: params.get(name)

    given = {f"block_{name}": {"params": params[name]} for name in functions if jax.tree.leaves(params.get(name))}
    return FunctionClassifier(parts=tuple(part(name) for name in functions)), Variables(given, {})


class ModuleClassifier(Classifier, kw_only=True):
    """A linen module, some of whose submodules are the blocks; built by ``from_module``.

    Attributes:
      module: returns the network; as an attribute, its variables would be nested one level deeper.
      blocks: names of submodules, in the order of their calls.
    """

    module: Callable[[], nn.Module]
    blocks: tuple[str, ...]

    def setup(self):
        pass

    @property
    def block_names(self) -> tuple[str, ...]:
        return self.blocks

    def __call__(self, images: Array, *, train: bool = False, between: Between | None = None) -> Array:
        outputs: dict[str, Array] = {}
        called: list[str] = []

        def intercept(method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            module = context.module
            if isinstance(module, nn.BatchNorm) and module.axis_name is None:
                # On this call's copy of the module, because the user's module has no attribute for it.
                object.__setattr__(module, "axis_name", self.axis_name)
            result = method(*args, **kwargs)
            *parent, name = module.path or ("",)
            if context.method_name != "__call__" or tuple(parent) != self.path or not module.path:
                return result
            called.append(name)
            if name in self.blocks:
                outputs[name] = result = result if between is None else between(name, result)
            return result

        with nn.intercept_methods(intercept):
            logits = call_block(self.module().clone(parent=self.scope), images, train)
        self._check(tuple(name for name in called if name in self.blocks), called, outputs, logits)
        return logits

    def _check(self, order: tuple[str, ...], called: list[str], outputs: Mapping[str, Array], logits: Array) -> None:
        kind = type(self.module()).__name__
        if order != self.blocks:
            raise UserError(
                f"{kind} calls its submodules in the order {', '.join(called)}: blocks must be some of them, in this "
                f"order, each called once; got {', '.join(self.blocks)}"
            )
        if outputs[self.blocks[-1]].shape != logits.shape:
            raise UserError(f"the last block must return the logits, but {self.blocks[-1]!r} of {kind} does not")


def from_module(
    module: nn.Module, blocks: Sequence[str], variables: Mapping[str, PyTree]
) -> tuple[ModuleClassifier, Variables]:
    """A linen module as a classifier, and its variables, unchanged.

    Modules inserted after a block, and mixing, are applied at the end of the submodule's call, before any ReLU that the
    parent module applies to the result. In train mode, its BatchNorm layers are synchronized over the devices like
    those of any classifier. Example::

        network, trained = adapter.from_module(Net(), ("conv1", "conv2", "head"), variables)
        patched = with_fixers(network, after=("conv1",))

    Args:
      module: takes images [n, h, w, c] in [0, 1], is called by ``blocks.call_block``, and returns logits.
      blocks: names of submodules (attributes assigned in ``setup``, or the ``name`` of those in a compact method), in
        the order of their calls; the last one returns the logits.
      variables: trained variables with the structure returned by the module's ``init``: {"params": ..., and perhaps
        "batch_stats": ...}.

    Raises:
      UserError: there are no blocks or no parameters; when the classifier is called, if the blocks are not submodules
        that are called once, in this order.
    """
    if not blocks:
        raise UserError("blocks must name at least one submodule, got none")
    return ModuleClassifier(module=lambda: module, blocks=tuple(blocks)), split_variables(variables)


def in_blocks(variables: Mapping[str, PyTree]) -> Variables:
    """Converts the variables of a linen module for a ``Classifier`` whose blocks have the names of its submodules.

    Args:
      variables: {"params": {submodule: ...}, and perhaps "batch_stats": {submodule: ...}}.

    Raises:
      UserError: there are no parameters.
    """
    renamed = {kind: {f"block_{name}": tree for name, tree in trees.items()} for kind, trees in variables.items()}
    return split_variables(renamed)


def split_variables(variables: Mapping[str, PyTree]) -> Variables:
    """Splits the variables of a linen module into parameters and state.

    Raises:
      UserError: there are no parameters.
    """
    if "params" not in variables:
        raise UserError(f"variables must be {{'params': ...}}, as returned by init, got {', '.join(variables)}")
    state = dict(variables)
    return Variables(state.pop("params"), state)
