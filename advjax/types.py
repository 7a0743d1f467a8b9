"""Types shared by the whole package.

Images are float32 arrays in pixel space [0, 1], NHWC (one image is HWC); labels are integers; normalization is a layer
inside the model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
"""A typed PRNG key (``jax.random.key``), or an array of them."""
PyTree: TypeAlias = Any

LogitsFn: TypeAlias = Callable[[Array], Array]
"""``images [n, h, w, c] -> logits [n, classes]``: any JAX function."""

StochasticLogitsFn: TypeAlias = Callable[[Array, Key], Array]
"""``(images, rng) -> logits``: a defense with randomness; equal keys give equal logits."""

Defense: TypeAlias = Callable[[LogitsFn], StochasticLogitsFn]
"""A test-time defense around a classifier."""


class AttackResult(NamedTuple):
    """What an attack found, one entry per image."""

    images: Array
    """Adversarial images [n, h, w, c]; always inside the threat model."""
    logits: Array
    """Logits of ``images``, from one forward pass of the whole batch after the attack."""
    success: Array
    """bool [n]: ``logits`` are wrong (or right for the target, if targeted) and the image is allowed."""
    distance: Array
    """float32 [n]: size of the perturbation in the norm of the threat model."""
    steps: Array
    """int32 [n]: steps taken until the image was done."""
    nonfinite: Array | bool = False
    """bool [n]: some gradient was NaN or infinite, so a failure of the attack is no evidence of robustness."""
    invalid: Array | bool = False
    """bool [n]: the attack could not handle the image: pixels outside the bounds (by more than 4 units in the last
    place) or NaN, NaN logits, or a label out of range.  Outside jit this raises.  Under jit, such images have
    ``success``, so that they never count as robust, and their ``images``, ``logits`` and ``distance`` are NaN."""
    progress: Array | int = 0
    """int8 [n]: 1 where the attack made no progress, so that its failure is no evidence of robustness: all gradients
    were zero, or following them only decreased the loss; 2 where it did; 0 for an attack without gradients."""


AttackFn: TypeAlias = Callable[..., AttackResult]
"""``(logits_fn, images, labels, rng, start=None, until_success=False) -> AttackResult``.

``rng`` is one key, or one key per image.  ``start`` holds images to start from, and ``until_success`` stops attacking
an image at its first success.  Functions of the first four arguments are accepted wherever an attack is; combinators
and the runner pass ``start`` only if there is one, and ``until_success`` only if it is true and the function takes it.
"""


class Batch(NamedTuple):
    """One step's examples.  Images are float32 in [0, 1] once the batch is on the device."""

    images: Array
    """[n, h, w, c]: what the model is trained on."""
    labels: Array
    """int32 [n]: the true classes."""
    targets: Array
    """float32 [n, classes]: the distribution that the loss is taken against."""
    index: Array
    """int32 [n]: position in the data set; randomness per example is folded from it."""
    mask: Array
    """bool [n]: False for the examples that only fill up the last batch."""
    clean: Array | None = None
    """[n, h, w, c]: the images before ``perturb`` replaced them by adversarial ones."""


class Variables(NamedTuple):
    """Everything a model needs to be applied."""

    params: PyTree
    model_state: PyTree
    """Batch statistics and the like, {} if there are none."""


class UserError(ValueError):
    """A mistake that the user can mend: ``main`` prints its one line and exits with 2."""
