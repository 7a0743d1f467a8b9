"""A classifier is a sequence of named blocks, and anything may act on the features between two of them.

This is the one mechanism behind fixers and other modules patched into a trained network, behind manifold mixup, and
behind looking at hidden features: ``between(name, features) -> features`` is called after every block.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.types import Array, Key, LogitsFn, PyTree, StochasticLogitsFn, Variables

Between: TypeAlias = Callable[[str, Array], Array]
"""``(name of the block that has just run, its output) -> what the next block gets``."""

Block: TypeAlias = nn.Module | Callable[..., Array]
"""From features to features: a linen module, or a function without parameters."""

_TRAIN_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


@runtime_checkable
class _WithSum(Protocol):
    """An inserted module whose output is a ReLU of something that an objective may ask for."""

    def with_sum(self, h: Array, /) -> tuple[Array, Array]: ...


class Classifier(nn.Module):
    """Base class: images [n, h, w, c] in [0, 1] -> logits [n, classes].

    A subclass returns its blocks, in order, from ``make_blocks``: modules or functions, called as ``call_block`` says.
    With ``train`` BatchNorm uses the statistics of the batch, synchronised over ``axis_name`` if there is one, and
    updates its running averages; without, it uses the running averages. Noise layers add noise, in either mode, when
    the call brings a key for the stream "noise".
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
        """Where manifold mixup may mix: "images", for the input itself, and names of blocks, for their output.

        Every place but the logits, unless the model is published with fewer.
        """
        return ("images", *self.block_names[:-1])

    def __call__(self, images: Array, *, train: bool = False, between: Between | None = None) -> Array:
        features = images
        for name in self.names:
            features = call_block(self.block[name], features, train)
            if between is not None:
                features = between(name, features)
        return features


class Patched(nn.Module):
    """A classifier with small modules inserted after some of its blocks.

    The base is a trained network that stays as it is, so it always runs in inference mode, unless ``train_base``. Its
    parameters are under ``base``, those of the inserted modules under ``patches_<block name>``.

    Attributes:
      base: the classifier to patch; one that is patched already may be patched again.
      patches: block name -> module from features to features, inserted after that block.
      train_base: the base follows ``train`` like the patches, for fine-tuning of the whole.
      axis_name: where BatchNorm in patches and base is synchronised; handed on to all that have this attribute.
    """

    base: "Classifier | Patched"
    patches: dict[str, nn.Module]
    train_base: bool = False
    axis_name: str | None = None

    def __post_init__(self):
        if self.axis_name is not None:
            self.base = self._synchronised(self.base)
            self.patches = {name: self._synchronised(patch) for name, patch in self.patches.items()}
        super().__post_init__()

    def _synchronised(self, module: Any) -> Any:
        wanted = self.axis_name
        return module if getattr(module, "axis_name", wanted) == wanted else module.clone(axis_name=wanted)

    @property
    def block_names(self) -> tuple[str, ...]:
        """The names of the base's blocks, in order."""
        return self.base.block_names

    @property
    def mixing_points(self) -> tuple[str, ...]:
        """Those of the base; what is inserted at such a place comes before the mixing."""
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
          patched: without, nothing is inserted at all, and these are logits and features of the base.
          tensor: which features: "output" of the inserted module; "sum", what its last ReLU is given, if it has a
            ``with_sum`` that returns this beside its output, and else the output; "before", what the module is given.
          train: as for the call.
          between: as for the call; it sees the output, whatever ``tensor`` is.

        Raises:
          ValueError: a block to insert after does not exist.
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
    output = call_block(patch, features, train)
    return {"sum": output, "output": output}


def call_block(block: Block, features: Array, train: bool) -> Array:
    """``block(features)``, told about ``train`` if it wants to know.

    That is if it takes an argument "train", "training" or "is_training", or the opposite as linen's own layers do,
    "deterministic" or "use_running_average", which is not given as an attribute already.
    """
    wanted = inspect.signature(type(block).__call__ if isinstance(block, nn.Module) else block).parameters
    flags = {
        name: train == meaning
        for name, meaning in _TRAIN_FLAGS.items()
        if name in wanted and getattr(block, name, None) is None
    }
    return block(features, **flags)


def init(model: nn.Module, rng: Key, image_shape: tuple[int, int, int]) -> Variables:
    """Fresh variables for images of shape [h, w, c].

    Initial values may depend on the shape of the images, not on what they show.
    """
    # Each initializer is compiled once for each shape; a whole network of them in one program takes XLA far longer.
    variables = dict(model.lazy_init(rng, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)))
    return Variables(variables.pop("params"), variables)


def apply(
    model: nn.Module,
    variables: Variables,
    images: Array,
    *,
    train: bool = False,
    rngs: Mapping[str, Key] | None = None,
    **kwargs: Any,
) -> Any:
    """Outputs of the model in inference mode; with ``train``, ``(outputs, updated model_state)``.

    Args:
      model: a ``Classifier``, ``Patched``, or any linen module with their call.
      variables: of this model.
      images: [n, h, w, c] in [0, 1].
      train: use and update batch statistics.
      rngs: keys by stream; ``{"noise": key}`` turns the noise layers on.
      **kwargs: for the model's call: ``between``, or ``method`` and its arguments.
    """
    collections = {"params": variables.params, **variables.model_state}
    streams = None if rngs is None else dict(rngs)
    if not train:
        return model.apply(collections, images, rngs=streams, **kwargs)
    return model.apply(collections, images, train=True, rngs=streams, mutable=list(variables.model_state), **kwargs)


def logits_fn(model: nn.Module, variables: Variables) -> LogitsFn:
    """The model as it is deployed: inference mode, running statistics.

    Call it inside the jitted function that got ``variables`` as an argument; captured from outside, they would be
    compiled in as constants.
    """
    return lambda images: apply(model, variables, images)


def stochastic_logits_fn(model: nn.Module, variables: Variables) -> StochasticLogitsFn:
    """The model with its noise layers on, inference mode otherwise: one draw of a random self-ensemble for each key.

    A model without noise layers ignores the key.
    """
    return lambda images, rng: apply(model, variables, images, rngs={"noise": rng})


def is_stochastic(model: nn.Module, variables: Variables, image_shape: tuple[int, ...]) -> bool:
    """Whether a key for the stream "noise" can make a difference to the model's logits; nothing is computed.

    Only shapes and types of ``variables`` count, so traced ones and ``jax.ShapeDtypeStruct`` will do.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    program = jax.make_jaxpr(lambda *args: stochastic_logits_fn(model, args[0])(*args[1:]))
    traced = program(shapes, images, jax.eval_shape(lambda: jax.random.key(0))).jaxpr
    return any(traced.invars[-1] is used for equation in traced.eqns for used in equation.invars)


def graft(variables: Variables, base: Variables) -> Variables:
    """Variables of a ``Patched`` model whose base part is replaced by those of a trained classifier."""

    def put(tree: PyTree, part: PyTree) -> PyTree:
        return {**tree, "base": part}

    model_state = {name: put(variables.model_state.get(name, {}), part) for name, part in base.model_state.items()}
    return Variables(put(variables.params, base.params), {**variables.model_state, **model_state})
