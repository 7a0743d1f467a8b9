"""Classifiers as sequences of named blocks, with a hook between them.

``between(name, features) -> features`` is called after every block. This one mechanism implements fixers and other
modules patched into a trained network, manifold mixup, and access to hidden features.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.models.compute_dtype import keeping_dtype, lowered, restored
from advjax.models.remat import run_block
from advjax.types import Array, Key, LogitsFn, PyTree, StochasticLogitsFn, UserError, Variables

Between: TypeAlias = Callable[[str, Array], Array]
"""``(name of the block that has just run, its output) -> input of the next block``."""

Block: TypeAlias = nn.Module | Callable[..., Array]
"""A map from features to features: a linen module, or a function without parameters."""

_TRAIN_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


@runtime_checkable
class _WithSum(Protocol):
    """An inserted module that can also return the input of its final ReLU."""

    def with_sum(self, h: Array, /) -> tuple[Array, Array]: ...


class Classifier(nn.Module):
    """Base class of classifiers: images [n, h, w, c] in [0, 1] -> logits [n, classes].

    A subclass returns its blocks, in order, from ``make_blocks``: modules or functions, called by ``call_block``. With
    ``train``, BatchNorm uses batch statistics, synchronized over ``axis_name`` if it is set, and updates its running
    averages; otherwise it uses the running averages. In both modes, noise layers add noise if the call provides a key
    for the "noise" stream.
    """

    axis_name: str | None = None

    def make_blocks(self) -> Mapping[str, Block]:
        """The named blocks, in order."""
        raise NotImplementedError

    def setup(self):
        blocks = self.make_blocks()
        self.names = tuple(blocks)
        self.block = dict(blocks)

    @property
    def block_names(self) -> tuple[str, ...]:
        """The names of the blocks, in order."""
        return self.names if self.scope is not None else self.bind({}).names

    @property
    def mixing_points(self) -> tuple[str, ...]:
        """Where manifold mixup may mix: "images" for the input, or the name of a block for its output.

        By default everywhere except the logits; architectures published with fewer positions override this.
        """
        return ("images", *self.block_names[:-1])

    def __call__(self, images: Array, *, train: bool = False, between: Between | None = None) -> Array:
        features = images
        for name in self.names:
            features = run_block(partial(call_block, train=train), self.block[name], features)
            if between is not None:
                features = between(name, features)
        return features


class Patched(nn.Module):
    """A classifier with small modules inserted after some of its blocks.

    The base is a trained, frozen network, so it always runs in inference mode, unless ``train_base`` is set. Its
    parameters are under ``base``, those of the inserted modules under ``patches_<block name>``.

    Attributes:
      base: the classifier to patch; it may itself be patched.
      patches: block name -> module from features to features, inserted after that block.
      train_base: the base follows ``train`` like the patches, to fine-tune the whole network.
      axis_name: mesh axis over which BatchNorm is synchronized; passed on to base and patches that have this attribute.
    """

    base: "Classifier | Patched"
    patches: dict[str, nn.Module]
    train_base: bool = False
    axis_name: str | None = None

    def __post_init__(self):
        if self.axis_name is not None:
            self.base = self._synchronized(self.base)
            self.patches = {name: self._synchronized(patch) for name, patch in self.patches.items()}
        super().__post_init__()

    def _synchronized(self, module: Any) -> Any:
        wanted = self.axis_name
        return module if getattr(module, "axis_name", wanted) == wanted else module.clone(axis_name=wanted)

    @property
    def block_names(self) -> tuple[str, ...]:
        """The names of the base's blocks, in order."""
        return self.base.block_names

    @property
    def mixing_points(self) -> tuple[str, ...]:
        """Those of the base; a module inserted at such a position is applied before mixing."""
        return self.base.mixing_points

    def __call__(self, images: Array, *, train: bool = False, between: Between | None = None) -> Array:
        return self.with_features(images, train=train, between=between)[0]

    def with_features(
        self,
        images: Array,
        patched: bool = True,
        *,
        tensor: str = "output",
        train: bool = False,
        between: Between | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Logits, and the features at every insertion point.

        Args:
          images: [n, h, w, c] in [0, 1].
          patched: if False, nothing is inserted, and the logits and features are those of the base.
          tensor: which features to return: the inserted module's "output"; the "sum" that enters its final ReLU, if it
            has a ``with_sum`` method that returns it along with the output, otherwise the output; or its input,
            "before".
          train: as in ``__call__``.
          between: as in ``__call__``; it receives the output regardless of ``tensor``.

        Raises:
          ValueError: a patched block does not exist.
        """
        features = {}

        def insert(name: str, value: Array) -> Array:
            if name in self.patches:
                features[name] = value
                if patched:
                    parts = _outputs(self.patches[name], value, train)
                    features[name] = {"before": value, **parts}[tensor]
                    value = parts["output"]
            return value if between is None else between(name, value)

        logits = self.base(images, train=train and self.train_base, between=insert)
        missing = set(self.patches) - set(features)
        if missing:
            raise ValueError(
                f"no block named {', '.join(sorted(missing))}: the blocks are {', '.join(self.block_names)}"
            )
        return logits, features


def _outputs(patch: nn.Module, features: Array, train: bool) -> dict[str, Array]:
    if isinstance(patch, _WithSum):
        return dict(zip(("sum", "output"), patch.with_sum(features), strict=True))
    output = run_block(partial(call_block, train=train), patch, features)
    return {"sum": output, "output": output}


def call_block(block: Block, features: Array, train: bool) -> Array:
    """Calls ``block(features)``, passing ``train`` if the block takes it.

    It does if it has an argument named "train", "training", or "is_training", or one with the opposite meaning as
    linen's own layers do, "deterministic" or "use_running_average", that is not already set as an attribute.

    Raises:
      UserError: nothing is left of the features, since the images are too small for the network.
    """
    wanted = inspect.signature(type(block).__call__ if isinstance(block, nn.Module) else block).parameters
    flags = {
        name: train == meaning
        for name, meaning in _TRAIN_FLAGS.items()
        if name in wanted and getattr(block, name, None) is None
    }
    return not_empty(block(features, **flags))


def not_empty(features: Any) -> Any:
    """The features [n, ...], unless pooling has left nothing of them: a mean over no pixels would be NaN.

    Raises:
      UserError: they have no entries.
    """
    for leaf in jax.tree.leaves(features):
        if 0 in leaf.shape[1:]:
            raise UserError(f"the images are too small for this network: it pools them to {leaf.shape[1:]}")
    return features


def init(model: nn.Module, rng: Key, image_shape: tuple[int, int, int]) -> Variables:
    """Initializes variables for images of shape [h, w, c].

    Initial values may depend on the shape of the images but not on their pixels.
    """
    # Each initializer is compiled once per shape; compiling a whole network of them as one program takes far longer.
    variables = dict(model.lazy_init(rng, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)))
    # A plain function as a network may have none.
    return Variables(variables.pop("params", {}), variables)


def apply(
    model: nn.Module,
    variables: Variables,
    images: Array,
    *,
    train: bool = False,
    rngs: Mapping[str, Key] | None = None,
    **kwargs: Any,
) -> Any:
    """Applies the model in inference mode; with ``train``, returns ``(outputs, updated model_state)``.

    It computes in float32 or, within ``compute_dtype.computing_in``, in another type; outputs are float32.

    Args:
      model: a ``Classifier``, ``Patched``, or any linen module with the same call signature.
      variables: of this model.
      images: floating point [n, h, w, c] in [0, 1].
      train: use and update batch statistics.
      rngs: keys by stream; ``{"noise": key}`` enables the noise layers.
      **kwargs: passed to the model's call: ``between``, or ``method`` and its arguments.

    Raises:
      ValueError: the images are not floating point, or not [n, h, w, c].
    """
    _check_images(images)
    collections = {"params": lowered(variables.params), **variables.model_state}
    streams = None if rngs is None else dict(rngs)
    if kwargs.get("between") is not None:
        kwargs["between"] = keeping_dtype(kwargs["between"])
    if not train:
        return restored(model.apply(collections, lowered(images), rngs=streams, **kwargs))
    mutable = list(variables.model_state)
    return restored(model.apply(collections, lowered(images), train=True, rngs=streams, mutable=mutable, **kwargs))


def logits_fn(model: nn.Module, variables: Variables) -> LogitsFn:
    """The model in inference mode, with running statistics and noise layers off.

    Call this inside the jitted function that takes ``variables`` as an argument; variables captured from outside would
    be compiled into the program as constants.
    """
    return lambda images: apply(model, variables, images)


def stochastic_logits_fn(model: nn.Module, variables: Variables) -> StochasticLogitsFn:
    """The model in inference mode with its noise layers on: each key gives one draw of a random self-ensemble.

    A model without noise layers ignores the key.
    """
    return lambda images, rng: apply(model, variables, images, rngs={"noise": rng})


def is_stochastic(model: nn.Module, variables: Variables, image_shape: tuple[int, ...]) -> bool:
    """Whether the model's logits depend on the key of the "noise" stream; nothing is computed.

    Only shapes and dtypes of ``variables`` matter, so they may be traced or ``jax.ShapeDtypeStruct``.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    program = jax.make_jaxpr(lambda *args: stochastic_logits_fn(model, args[0])(*args[1:]))
    traced = program(shapes, images, jax.eval_shape(lambda: jax.random.key(0))).jaxpr
    return any(traced.invars[-1] is used for equation in traced.eqns for used in equation.invars)


def inference_fn(
    model: nn.Module, variables: Variables, image_shape: tuple[int, ...]
) -> tuple[Callable[..., Array], bool]:
    """The model in inference mode with its noise layers on, if it has any: ``(function, whether it takes a key)``.

    Args:
      model: as in ``apply``.
      variables: of this model.
      image_shape: [h, w, c].

    Returns:
      ``(logits_fn, False)`` for a deterministic model, ``(stochastic_logits_fn, True)`` for a stochastic one.
    """
    stochastic = is_stochastic(model, variables, image_shape)
    return (stochastic_logits_fn if stochastic else logits_fn)(model, variables), stochastic


def graft(variables: Variables, base: Variables) -> Variables:
    """Replaces the base part of a ``Patched`` model's variables with those of a trained classifier."""

    def put(tree: PyTree, part: PyTree) -> PyTree:
        return {**tree, "base": part}

    model_state = {name: put(variables.model_state.get(name, {}), part) for name, part in base.model_state.items()}
    return Variables(put(variables.params, base.params), {**variables.model_state, **model_state})


def _check_images(images: Array) -> None:
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating point in [0, 1], got {images.dtype}: "
            "convert 8-bit images with images.astype(float32) / 255"
        )
    if images.ndim != 4:
        raise ValueError(f"images must have shape [n, height, width, channels], got {images.shape}")
