"""The network of a run: a new one to train, one around that of an earlier run, or a trained one of the user's."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.attacks.lifting import lift
from advjax.evaluation.given_model import num_classes_of
from advjax.experiment.registry import MODELS, PATCHES, accepts, build, choose, required
from advjax.experiment.spec import DataFacts, Run
from advjax.models import adapter
from advjax.models.blocks import Classifier
from advjax.types import UserError, Variables

LOGITS_FN = "logits_fn"
"""Name of a model that is a plain function, given as ``"function": "package.module:function"``."""


def build_model(
    spec: Mapping[str, Any], where: str, facts: DataFacts, earlier: Mapping[str, Run]
) -> tuple[nn.Module, Variables | None]:
    """The network, and its variables if it is given with them instead of being trained.

    Args:
      spec: ``model`` of a run: "name" and arguments.
      where: the config key, for error messages.
      facts: about the data.
      earlier: the runs before it.

    Raises:
      UserError: something in it is unknown or makes no sense, or the network has other classes than the data.
    """
    spec, name = dict(spec), spec.get("name")
    if base := spec.pop("base", None):
        return build(PATCHES, spec, where, earlier[base].model), None
    if name in PATCHES:
        raise UserError(f"{where}: {name} needs the earlier run that it goes into as 'base'")
    if name == LOGITS_FN:
        return _from_function(spec, where, facts)
    given, width = spec.get("num_classes", facts.num_classes), spec.get("width", 1.0)
    if given != facts.num_classes:
        raise UserError(f"{where}: num_classes must be {facts.num_classes}, as the data have, got {given!r}")
    if not isinstance(width, int | float) or not 0 < width < 1e3:
        raise UserError(f"{where}: width must be a positive factor, got {width!r}")
    if accepts(choose(MODELS, name, where), "num_classes"):
        spec = {"num_classes": facts.num_classes, **spec}
    built = build(MODELS, spec, where)
    module, variables = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{where}: {name} must return a flax.linen module, or a pair of a module and its variables, and returned "
            f"{type(built).__name__}"
        )
    return module, None if variables is None else as_variables(variables, where)


def _from_function(spec: Mapping[str, Any], where: str, facts: DataFacts) -> tuple[Classifier, Variables]:
    """A function of images as a network of one block, whose parameters are the arrays that it closes over."""
    function = choose({}, required(spec, "function", where), f"{where}: function")
    if unknown := sorted(spec.keys() - {"name", "function"}):
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known are name, function")
    try:
        num_classes = num_classes_of(str(spec["function"]), function, facts.image_shape)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from error
    if num_classes != facts.num_classes:
        raise UserError(f"{where}: {spec['function']} has {num_classes} classes, and the data {facts.num_classes}")
    constants, bind = lift(function, jax.ShapeDtypeStruct((1, *facts.image_shape), jnp.float32))
    functions = {"logits": lambda constants, images: bind(constants or [])(images)}
    return adapter.from_functions(functions, {"logits": constants})


def as_variables(variables: Any, where: str) -> Variables:
    """Variables of advjax or of linen; a UserError, which begins with ``where``, if they are neither."""
    if isinstance(variables, Variables):
        return variables
    if isinstance(variables, Mapping):
        return adapter.split_variables(variables)
    raise UserError(
        f"{where}: variables must be {{'params': ...}}, as linen's init returns, got {type(variables).__name__}"
    )
