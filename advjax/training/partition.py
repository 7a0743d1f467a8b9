"""Which parameters are trained, and how: labels on a parameter tree, and one optimizer per label.

    labels = label_params(params, rules=(("fixer", "trainable"),), default="frozen")
    optimizer = partitioned({"trainable": sgd(0.02, 0.9), "frozen": FROZEN}, labels)

Weight decay and gradient clipping belong INSIDE the transformation of a label. Around the partition, decay changes
frozen parameters, and the clipping norm includes gradients that are not used. ``optax.masked`` is no substitute: it
passes on the raw gradients of everything outside its mask, so "frozen" parameters change.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from advjax.types import PyTree, UserError

_SHOWN_PATHS = 8


# optax.set_to_zero adds +0.0, which makes a +0.0 of -0.0; x + (-0.0) is x for every x.
FROZEN: optax.GradientTransformation = optax.stateless(
    lambda updates, params: jax.tree.map(lambda update: jnp.full_like(update, -0.0), updates)
)
"""The transformation for frozen parameters: it needs no optimizer state, and a jitted step keeps every bit of them.
(Eager addition on CPU also keeps -0.0 but flushes subnormal numbers to zero.)"""


def label_params(params: PyTree, rules: Sequence[tuple[str, str]], default: str) -> PyTree:
    """Labels every parameter.

    Args:
      params: tree of arrays; the path of a leaf is its keys joined by "/", as in "block1/conv/kernel".
      rules: pairs (regular expression, label). The first expression found anywhere in the path applies (``re.search``:
        anchor with ^ and $ where that matters).
      default: the label of parameters to which no rule applies.

    Returns:
      A tree of labels with the structure of ``params``.

    Raises:
      UserError: an expression is invalid, or a rule applies to no parameter (which would silently leave the intended
        ones with another label); the message lists some of the existing paths.
    """
    patterns = [_compiled(expression) for expression, _ in rules]
    decided = Counter()

    def label(path: str) -> str:
        rule = next((i for i, pattern in enumerate(patterns) if pattern.search(path)), None)
        decided[rule] += 1
        return default if rule is None else rules[rule][1]

    labels = jax.tree.map_with_path(lambda path, _: label(_joined(path)), params)
    for i, (expression, name) in enumerate(rules):
        if not decided[i]:
            matching = [path for path in _paths(params) if patterns[i].search(path)]
            reason = "applies to no parameter: earlier rules match first" if matching else "matches no parameter"
            raise UserError(f"rule {expression!r} -> {name!r} {reason}; paths are {_some(matching or _paths(params))}")
    return labels


def partitioned(transforms: Mapping[str, optax.GradientTransformation], labels: PyTree) -> optax.GradientTransformation:
    """One optimizer that applies ``transforms[label]`` to the parameters with that label and their gradients only.

    The state of each transformation covers only the parameters of its label, so frozen ones cost no memory; under
    ``jit`` their weight gradients are not even computed.

    Args:
      transforms: by label; ``FROZEN`` for what must not change. Labels that no parameter has are allowed.
      labels: tree of labels from ``label_params``.

    Raises:
      UserError: a label has no transformation.
    """
    _check_labels(transforms, labels)
    return optax.partition({**transforms}, labels)


def trainable_mask(labels: PyTree, transforms: Mapping[str, optax.GradientTransformation]) -> PyTree:
    """Tree of bools like ``labels``: False where the transformation is the object ``FROZEN``, True elsewhere.

    Raises:
      UserError: a label has no transformation.
    """
    _check_labels(transforms, labels)
    return jax.tree.map(lambda label: transforms[label] is not FROZEN, labels)


def num_params(params: PyTree, labels: PyTree | None = None) -> int | dict[str, int]:
    """Number of scalars in ``params`` (arrays or their shapes); with ``labels``, a dictionary of numbers by label."""
    sizes = jax.tree.map(lambda leaf: math.prod(leaf.shape), params)
    if labels is None:
        return sum(jax.tree.leaves(sizes))
    counts = Counter()
    jax.tree.map(lambda size, label: counts.update({label: size}), sizes, labels)
    return dict(counts)


def _compiled(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise UserError(f"rule {expression!r} is not a regular expression: {error}") from error


def _joined(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _paths(params: PyTree) -> list[str]:
    return [_joined(path) for path, _ in jax.tree.leaves_with_path(params)]


def _some(paths: list[str]) -> str:
    rest = len(paths) - _SHOWN_PATHS
    return ", ".join(paths[:_SHOWN_PATHS]) + (f" and {rest} more" if rest > 0 else "")


def _check_labels(transforms: Mapping[str, optax.GradientTransformation], labels: PyTree) -> None:
    unknown = sorted(set(jax.tree.leaves(labels)) - set(transforms))
    if unknown:
        raise UserError(f"labels {unknown} have no transformation; those with one are {sorted(transforms)}")
