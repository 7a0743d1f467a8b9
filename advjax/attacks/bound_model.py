"""Models as functions of their arrays, which are on the devices of a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from advjax.attacks import model_queries
from advjax.attacks.eot import Expectation
from advjax.attacks.keys import KEY_TYPE
from advjax.attacks.lifting import lift
from advjax.attacks.program_cache import owner_of
from advjax.types import Array, Key, LogitsFn, PyTree


class Model(NamedTuple):
    """A model that takes its arrays as an argument."""

    bind: Callable[[Any], LogitsFn | Expectation]
    variables: PyTree
    """On all devices."""
    owner: Any
    """Programs of the model stay cached by their functions as long as this object is alive."""


def bind_model(logits_fn: Any, variables: PyTree, example: jax.ShapeDtypeStruct, mesh: jax.sharding.Mesh) -> Model:
    """The model of ``run_stages`` on a mesh.

    Args:
      logits_fn: ``variables -> model``, or the model itself if ``variables`` is None.
      variables: arrays of the model.
      example: a batch of images on one device.
      mesh: the devices.
    """
    bind, owner = logits_fn, owner_of(logits_fn)
    if variables is None:
        # What a function closes over may change between calls, so its programs are cached by their text alone.
        owner = owner_of(None)
        bind, variables = _lifted(logits_fn, example)
    sharding = jax.sharding.NamedSharding(mesh, jax.P())
    replicated = jax.tree.map(lambda leaf: put(leaf, sharding), variables)
    return Model(model_queries.traced_once_bound(bind, replicated), replicated, owner)


def _lifted(logits_fn: Any, example: jax.ShapeDtypeStruct) -> tuple[Callable[[Any], Any], list[Array]]:
    """``(variables -> logits_fn, variables)``."""
    if not isinstance(logits_fn, Expectation):
        constants, bind = lift(logits_fn, example)
        return bind, constants
    image, key = jax.ShapeDtypeStruct((1, *example.shape[1:]), example.dtype), jax.eval_shape(any_key)
    constants, bind = lift(logits_fn.stochastic_fn, image, key)
    return lambda variables: Expectation(bind(variables), logits_fn.num_samples), constants


def any_key() -> Key:
    return jax.random.key(0, impl=KEY_TYPE)


def put(leaf: Any, sharding: jax.sharding.NamedSharding) -> Any:
    """An array on the devices; of a shape and dtype, the same there, to compile for devices that need not be here."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.device_put(leaf, sharding)
