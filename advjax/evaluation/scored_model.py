"""Models as they are used: by themselves, or with a test-time defence around them."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import Expectation, expectation
from advjax.attacks.model_queries import evaluate
from advjax.data import Dataset
from advjax.defenses.majority_vote import majority
from advjax.models.blocks import is_stochastic, logits_fn, stochastic_logits_fn
from advjax.types import Array, Key, LogitsFn, PyTree, StochasticLogitsFn, Variables


class Deployed(NamedTuple):
    """A model as it is used, with its defence if it has one."""

    bind: Callable[[PyTree], LogitsFn | StochasticLogitsFn]
    """``variables -> images -> logits``, or, for one draw of a stochastic model, ``(images, rng) -> logits``."""
    num_draws: int = 0
    """Draws whose mean probability is one prediction; 0 for a model without randomness."""
    num_votes: int = 1
    """Predictions, each of fresh draws, whose majority is the verdict; of equal classes the more probable one."""
    num_samples: int = 0
    """Draws that an attack follows the mean gradient of."""

    def predict(self, variables: PyTree, images: Array, keys: Key) -> Array:
        """int32 [n]: the classes of the images, each with its key."""
        bound: Any = self.bind(variables)
        if not self.num_draws:
            return jnp.argmax(bound(images), axis=-1)
        model = expectation(bound, self.num_draws)

        def vote(number: Array) -> Array:
            rngs = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
            return evaluate(model, images, rngs)

        # One vote after the other: all draws of all of them need not fit into memory together.
        return majority(jax.lax.map(vote, jnp.arange(self.num_votes)))

    def attacked(self, variables: PyTree) -> LogitsFn | Expectation:
        """What an attack with the defence in the loop is shown."""
        bound: Any = self.bind(variables)
        return expectation(bound, self.num_samples) if self.num_draws else bound


class Deployment(NamedTuple):
    """A defence, before it knows its model."""

    bind: Callable[[nn.Module], Callable[[PyTree], StochasticLogitsFn]]
    """``model -> variables -> one draw``; variables are ``(those of the model, arrays)``."""
    arrays: Callable[[Dataset], PyTree]
    """``training images -> arrays`` that the defence needs."""
    check: Callable[[nn.Module, tuple[int, int, int]], None] = lambda model, image_shape: None
    """``(model, shape of its images)``: raises a UserError where the defence would do nothing, or something else."""


def undefended(model: nn.Module) -> Deployed:
    """The model by itself; its variables are those of ``models.blocks``."""
    return Deployed(lambda variables: logits_fn(model, variables))


def one_draw(model: nn.Module, variables: Variables, image_shape: tuple[int, int, int]) -> Deployed:
    """The model by itself, a random one with its noise on: one draw is a prediction, and answers an attack's question.

    Of ``variables`` only shapes and types count.
    """
    if not is_stochastic(model, variables, image_shape):
        return undefended(model)
    return Deployed(lambda variables: stochastic_logits_fn(model, variables), num_draws=1, num_samples=1)


def model_hash(variables: Variables) -> str:
    """First 16 hexadecimal digits of the SHA-256 over names, shapes and bytes of all variables."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
