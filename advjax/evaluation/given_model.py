"""Models as ``advjax.evaluate`` takes them: any function of images, its weights inside it or beside it."""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.attacks import Expectation, input_checks
from advjax.attacks.lifting import lift
from advjax.evaluation.scored_model import NO_DEFENSE, ScoredModel, variables_hash
from advjax.types import Array, LogitsFn, PyTree, UserError

GivenModel: TypeAlias = LogitsFn | Expectation | tuple[Callable[..., Array] | Expectation, PyTree]
"""``images -> logits``, or ``attacks.expectation`` of ``(images, rng) -> logits`` and a number of draws; or a pair of
such a function that takes ``variables`` as its first argument, and the variables."""

NUM_VOTES = 3
"""The verdict on a stochastic model is the majority of so many predictions, as for the defenses of a config."""
_LAYOUTS = (
    ("images [n, c, h, w]", "lambda images: model(images.transpose(0, 3, 1, 2))", (0, 3, 1, 2), False),
    ("single images [h, w, c]", "jax.vmap(model)", (0, 1, 2, 3), True),
    ("single images [c, h, w]", "lambda images: jax.vmap(model)(images.transpose(0, 3, 1, 2))", (0, 3, 1, 2), True),
)
"""What a function may take instead of images [n, h, w, c]: a description, how to wrap it, and what that does."""


class Given(NamedTuple):
    """A model that can be scored, and the number of its classes."""

    scored: ScoredModel
    num_classes: int


def given_model(name: str, model: GivenModel, image_shape: tuple[int, int, int]) -> Given:
    """Makes a function a model that an evaluation can score.

    Arrays that the function closes over become arguments of the compiled programs, as ``variables`` are.

    Args:
      name: that the report gives it.
      model: the function, see ``GivenModel``.
      image_shape: [h, w, c].

    Raises:
      TypeError: it is not a function.
      UserError: it cannot be called on such images, or returns something other than logits [n, classes].
    """
    function, variables = _parts(name, model)
    draw = function.stochastic_fn if isinstance(function, Expectation) else function
    examples = (_images(1, image_shape), *_key(function))
    num_classes = num_classes_of(
        name, draw if variables is None else functools.partial(draw, variables), image_shape, _key(function)
    )
    if variables is None:
        variables, bind = lift(draw, *examples)
    else:
        bind = functools.partial(functools.partial, draw)
    content = content_hash(bind, variables, image_shape, _key(function))
    scored = ScoredModel(name, NO_DEFENSE, bind, variables, content)
    if isinstance(function, Expectation):
        draws = function.num_samples
        scored = scored._replace(num_draws=draws, num_samples=draws, num_votes=NUM_VOTES)
    return Given(scored, num_classes)


def num_classes_of(
    name: str, call: Callable[..., Any], image_shape: tuple[int, int, int], key: tuple[Any, ...] = ()
) -> int:
    """The number of classes of ``images -> logits``, by tracing it on one image and on two.

    Args:
      name: of the model, for error messages.
      call: the function.
      image_shape: [h, w, c].
      key: ``(key,)`` for a stochastic function, as shape and dtype.

    Raises:
      UserError: it cannot be called on such images, or returns something other than logits [n, classes].
    """
    pair = _images(2, image_shape)
    for images in (pair, _images(1, image_shape)):
        try:
            output = jax.eval_shape(lambda *arguments: input_checks.as_logits(call(*arguments)), images, *key)
        except Exception as error:
            raise UserError(_diagnosis(name, call, pair, key, error)) from error
        if output.ndim != 2 or output.shape[0] != images.shape[0] or output.shape[1] < 2:
            wanted = f"({images.shape[0]}, classes) with at least two classes"
            returned = f"it returns {output.shape} for images {images.shape} instead of logits {wanted}"
            raise UserError(_advice(f"model {name!r}: {returned}", call, pair, key))
    return output.shape[1]


def content_hash(
    bind: Callable[[Any], Any], variables: PyTree, image_shape: tuple[int, int, int], key: tuple[Any, ...] = ()
) -> str:
    """Tells functions apart by their variables and by the programs that they and their gradients trace to."""

    def gradients(variables: PyTree, images: Array, *key: Any) -> PyTree:
        logits, pullback = jax.vjp(lambda images: bind(variables)(images, *key), images)
        return pullback(jnp.ones_like(logits))

    arguments = variables, _images(1, image_shape), *key
    texts = [jax.jit(lambda variables, *arguments: bind(variables)(*arguments)).lower(*arguments).as_text()]
    # JAX raises these for a function without a differentiation rule.
    with contextlib.suppress(NotImplementedError, TypeError, ValueError):
        texts.append(jax.jit(gradients).lower(*arguments).as_text())
    return hashlib.sha256(" ".join([variables_hash(variables), *texts]).encode()).hexdigest()[:16]


def _images(count: int, image_shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)


def _key(function: Any) -> tuple[Any, ...]:
    """What a stochastic function takes besides images, as shape and dtype."""
    return (jax.eval_shape(lambda: jax.random.key(0)),) if isinstance(function, Expectation) else ()


def _parts(name: str, model: Any) -> tuple[Any, PyTree]:
    """The function, and its variables; None for those that it closes over."""
    function, variables = model if isinstance(model, tuple) and len(model) == 2 else (model, None)
    if isinstance(function, nn.Module):
        raise TypeError(
            f"model {name!r} is a linen module, which says neither how it is called nor whether it trains: give "
            "(lambda variables, images: module.apply(variables, images, train=False), variables), with the arguments "
            "that its inference mode needs"
        )
    if not isinstance(function, Expectation) and not callable(function):
        raise TypeError(
            f"model {name!r} must be a function of images, an attacks.expectation, or a pair of one of these and its "
            f"variables, got {type(model).__name__}"
        )
    return function, variables


def _diagnosis(name: str, call: Callable[..., Any], images: jax.ShapeDtypeStruct, key: tuple, error: Exception) -> str:
    """One sentence about a model that cannot be traced."""
    if input_checks.is_train_mode_error(error):
        return f"model {name!r}: {input_checks.TRAIN_MODE}"
    first = next(iter(str(error).strip().splitlines()), "")
    problem = f"model {name!r} cannot be called on images {images.shape}: {type(error).__name__}: {first}"
    return _advice(problem, call, images, key)


def _advice(problem: str, call: Callable[..., Any], images: jax.ShapeDtypeStruct, key: tuple[Any, ...]) -> str:
    """The problem, and the wrapping that makes the function one of images [n, h, w, c], if it is a known one."""
    for takes, wrapping, axes, single in _LAYOUTS:

        def wrapped(images: Array, *key: Any, axes: tuple[int, ...] = axes, single: bool = single) -> Array:
            turned = images.transpose(axes)
            output = jax.vmap(lambda image: call(image, *key))(turned) if single else call(turned, *key)
            return input_checks.as_logits(output)

        try:
            output = jax.eval_shape(wrapped, images, *key)
        except Exception:  # Whatever it is, the function does not take such images either.
            continue
        if isinstance(output, jax.ShapeDtypeStruct) and output.ndim == 2 and output.shape[0] == images.shape[0]:
            return f"{problem}; it seems to take {takes}: give {wrapping}"
    return f"{problem}; a model takes images [n, h, w, c] in [0, 1] and returns logits [n, classes]"
