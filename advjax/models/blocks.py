"""A classifier is a sequence of named blocks, and anything may act on the features between two of them.

This is the one mechanism behind fixers and other modules patched into a trained network, and behind looking at hidden
features: ``between(name, features) -> features`` is called after every block.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.types import Array, Key, LogitsFn, PyTree, Variables

Between: TypeAlias = Callable[[str, Array], Array]
"""``(name of the block that has just run, its output) -> what the next block gets``."""


class Classifier(nn.Module):
    """Base class: images [n, h, w, c] in [0, 1] -> logits [n, classes].

    A subclass returns its blocks, in order, from ``make_blocks``; each is a module called as ``block(x, train=train)``.
    With ``train`` BatchNorm uses the statistics of the batch, synchronised over ``axis_name`` if there is one, and
    updates its running averages; without, it uses the running averages.
    """

    axis_name: str | None = None

    def make_blocks(self) -> dict[str, nn.Module]:
        """The named blocks, in order."""
        raise NotImplementedError

    def setup(self):
        blocks = self.make_blocks()
        self.names = tuple(blocks)
        self.block = blocks

    def __call__(self, images: Array, *, train: bool = False, between: Between | None = None) -> Array:
        features = images
        for name in self.names:
            features = self.block[name](features, train=train)
            if between is not None:
                features = between(name, features)
        return features


class Patched(nn.Module):
    """A classifier with small modules inserted after some of its blocks.

    The base always runs in inference mode: it is a trained network that stays as it is, batch statistics included.  Its
    parameters are under ``base``, those of the inserted modules under ``patches_<block name>``.

    Attributes:
      base: the classifier to patch.
      patches: block name -> module ``features -> features``, inserted after that block.
    """

    base: Classifier
    patches: dict[str, nn.Module]
    axis_name: str | None = None

    def __call__(self, images: Array, *, train: bool = False) -> Array:
        return self.with_features(images)[0]

    def with_features(self, images: Array, patched: bool = True) -> tuple[Array, dict[str, Array]]:
        """Logits, and the features at every insertion point: after the inserted module, or as they come from the base.

        Without ``patched`` nothing is inserted at all, and these are logits and features of the base.
        """
        features = {}

        def between(name: str, value: Array) -> Array:
            if name in self.patches:
                features[name] = value = self.patches[name](value) if patched else value
            return value

        logits = self.base(images, train=False, between=between)
        missing = set(self.patches) - set(features)
        if missing:
            raise ValueError(
                f"no block named {', '.join(sorted(missing))}: the blocks are {', '.join(self.base.names)}"
            )
        return logits, features


def init(model: nn.Module, rng: Key, image_shape: tuple[int, int, int]) -> Variables:
    """Fresh variables for images of shape [h, w, c]."""
    variables = dict(jax.jit(model.init)(rng, jnp.zeros((1, *image_shape), jnp.float32)))
    return Variables(variables.pop("params"), variables)


def apply(model: nn.Module, variables: Variables, images: Array, *, train: bool = False, **kwargs: Any) -> Any:
    """Outputs of the model in inference mode; with ``train``, ``(outputs, updated model_state)``."""
    collections = {"params": variables.params, **variables.model_state}
    if not train:
        return model.apply(collections, images, **kwargs)
    return model.apply(collections, images, train=True, mutable=list(variables.model_state), **kwargs)


def logits_fn(model: nn.Module, variables: Variables) -> LogitsFn:
    """The model as it is deployed: inference mode, running statistics.

    Call it inside the jitted function that got ``variables`` as an argument; captured from outside, they would be
    compiled in as constants.
    """
    return lambda images: apply(model, variables, images)


def graft(variables: Variables, base: Variables) -> Variables:
    """Variables of a ``Patched`` model whose base part is replaced by those of a trained classifier."""

    def put(tree: PyTree, part: PyTree) -> PyTree:
        return {**tree, "base": part}

    model_state = {name: put(variables.model_state.get(name, {}), part) for name, part in base.model_state.items()}
    return Variables(put(variables.params, base.params), {**variables.model_state, **model_state})
