"""The model that an evaluation scores: a trained run by itself or with a test-time defense, ready for any image."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import Expectation, expectation
from advjax.attacks.model_queries import evaluate, predicted_class
from advjax.cpu.fast_on_cpu import fast_on_cpu
from advjax.defenses.majority_vote import majority
from advjax.models import blocks
from advjax.types import Array, Key, LogitsFn, PyTree, Variables

NO_DEFENSE = "none"

Bind = Callable[[PyTree], Any]
"""``variables -> LogitsFn``, or ``variables -> StochasticLogitsFn`` for a stochastic model."""


class ScoredModel(NamedTuple):
    """All that an evaluation knows of a model.

    A deterministic model has ``num_draws = 0``.  A stochastic one predicts the class with the largest mean probability
    over ``num_draws`` draws, its verdict is the majority of ``num_votes`` such predictions, and attacks follow the mean
    gradient over ``num_samples`` draws (expectation over transformation).
    """

    run: str
    """Name of the trained run."""
    defense: str
    """Name of the test-time defense, ``NO_DEFENSE`` without one."""
    bind: Bind
    """``variables -> logits function``: ``images -> logits`` or, for one draw, ``(images, rng) -> logits``."""
    variables: PyTree
    """Every array that the model is computed from; an argument of each compiled program."""
    hash: str
    """``variables_hash`` of the trained run, whatever the defense; of a given function, also of its program."""
    num_draws: int = 0
    num_votes: int = 1
    num_samples: int = 0
    mean_over: str = "probabilities"
    """What one prediction is the mean of: "probabilities", or "log_probabilities" as in the code of paper 004."""
    defense_identity: Mapping[str, Any] | None = None
    """What the defense is, as plain data; None without one."""

    @property
    def name(self) -> str:
        """The run, followed by its defense if it has one: unique in an evaluation."""
        return self.run if self.defense == NO_DEFENSE else f"{self.run}+{self.defense}"

    @property
    def is_stochastic(self) -> bool:
        return self.num_draws > 0

    @property
    def attacked(self) -> Callable[[PyTree], LogitsFn | Expectation]:
        """``variables -> model`` as an attack sees it, with the defense in the loop.

        Equal models return the same function, so that programs compiled for it are found again.
        """
        return _attacked(self.bind, self.num_samples)


def predict(model: ScoredModel, variables: PyTree, images: Array, keys: Key) -> Array:
    """The verdict on each image: int32 [n] predicted classes, -1 where logits are NaN.

    Args:
      model: how to compute; its own variables are not used.
      variables: of the model.
      images: float [n, h, w, c].
      keys: [n], one for each image; unused by a deterministic model.
    """
    bound = model.bind(variables)
    if not model.is_stochastic:
        return predicted_class(evaluate(bound, images, keys))
    mean = expectation(bound, model.num_draws)

    def vote(number: Array) -> Array:
        rngs = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        if model.mean_over == "log_probabilities":
            return jnp.mean(jax.nn.log_softmax(fast_on_cpu(mean.draws)(images, rngs)), axis=1)
        return evaluate(mean, images, rngs)

    # One vote at a time: the draws of all votes together might not fit into memory.
    return majority(jax.lax.map(vote, jnp.arange(model.num_votes)))


def log_probabilities(model: ScoredModel, variables: PyTree, images: Array, keys: Key) -> Array:
    """Log-probabilities [n, classes], those of the mean probability of ``num_draws`` draws for a stochastic model.

    Arguments as in `predict`.
    """
    bound = model.bind(variables)
    return jax.nn.log_softmax(
        evaluate(expectation(bound, model.num_draws) if model.is_stochastic else bound, images, keys)
    )


def undefended(run: str, module: nn.Module, variables: Variables) -> ScoredModel:
    """A trained run without a test-time defense: inference mode, noise layers off."""
    bind = functools.partial(blocks.logits_fn, module)
    return ScoredModel(run, NO_DEFENSE, bind, variables, variables_hash(variables))


def as_trained(run: str, module: nn.Module, variables: Variables, image_shape: tuple[int, ...]) -> ScoredModel:
    """A run as it is trained: inference mode, noise layers on.

    If it has any, one draw of them is one prediction, and answers one query of an attack.
    """
    if not blocks.is_stochastic(module, variables, image_shape):
        return undefended(run, module, variables)
    bind = functools.partial(blocks.stochastic_logits_fn, module)
    return ScoredModel(run, NO_DEFENSE, bind, variables, variables_hash(variables), num_draws=1, num_samples=1)


def variables_hash(variables: PyTree) -> str:
    """First 16 hexadecimal digits of the SHA-256 over names, shapes and bytes of all variables."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _attacked(bind: Bind, num_samples: int) -> Callable[[PyTree], LogitsFn | Expectation]:
    return bind if not num_samples else lambda variables: expectation(bind(variables), num_samples)
