"""Random resizing and padding (Xie et al. 2018)."""

from advjax.defenses.draws import per_image
from advjax.models.distribution_regression import resize_and_pad
from advjax.types import Array, Key, LogitsFn, StochasticLogitsFn


def random_resize_pad(logits_fn: LogitsFn, smallest: int = 26, largest: int = 31) -> StochasticLogitsFn:
    """The logits of the image shrunk to a random size and zero-padded at a random offset to its original shape.

    Differentiable, so expectation over transformation suffices to attack it. The defaults are for 32x32 images and
    networks that accept no other size (our reading of paper 003, section 4.3).

    Args:
      logits_fn: takes square images.
      smallest: smallest side length after shrinking.
      largest: largest side length after shrinking, at most that of the image.

    Raises:
      ValueError: the sizes are inconsistent. The returned function raises a UserError if images are smaller than
        ``largest`` or not square.
    """
    if not 1 <= smallest <= largest:
        raise ValueError(f"1 <= smallest <= largest must hold, got {smallest} and {largest}")

    def transform(image: Array, rng: Key) -> Array:
        return resize_and_pad(image, rng, smallest, largest)

    return per_image(transform, logits_fn)
