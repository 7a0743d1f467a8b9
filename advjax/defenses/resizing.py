"""Random resizing and padding (Xie et al. 2018)."""

from advjax.defenses.draws import per_image
from advjax.models.distribution_regression import resize_and_pad
from advjax.types import Array, Key, LogitsFn, StochasticLogitsFn


def random_resize_pad(logits_fn: LogitsFn, smallest: int = 26, largest: int = 31) -> StochasticLogitsFn:
    """The logits of the image shrunk to a random size and put at a random place on zeros, its shape kept.

    Differentiable, so that expectation over its draws is all that an attack needs. The defaults are for 32x32 images
    and networks that accept nothing else (reading of paper 003, section 4.3).

    Args:
      logits_fn: of square images.
      smallest: side after shrinking, at least.
      largest: side after shrinking, at most that of the image.

    Raises:
      ValueError: sizes that make no sense; of the returned function a UserError, if images are smaller than
        ``largest``, or not square.
    """
    if not 1 <= smallest <= largest:
        raise ValueError(f"1 <= smallest <= largest must hold, got {smallest} and {largest}")

    def transform(image: Array, rng: Key) -> Array:
        return resize_and_pad(image, rng, smallest, largest)

    return per_image(transform, logits_fn)
