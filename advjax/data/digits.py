"""Scikit-learn's handwritten digits: 1,797 real 8x8 images that need no download."""

import numpy as np

from advjax.data.dataset import Dataset
from advjax.data.splits import train_validation
from advjax.types import UserError

NUM_TEST = 359
"""20% of the 1,797 images."""
_WHITE = 16


def load_digits(split: str) -> Dataset:
    """Loads the "train" (1,438) or "test" (359) images; the stratified split is fixed.

    The images are the test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI 1998). Their
    values v in 0 .. 16 become uint8 ``round(255 v / 16)``; scikit-learn's order is kept within each split.

    Args:
      split: "train" or "test".

    Returns:
      ``Dataset`` with images uint8 [n, 8, 8, 1] and ten classes.

    Raises:
      UserError: for any other split, or if scikit-learn is not installed.
    """
    if split not in ("train", "test"):
        raise UserError(f"digits has no split {split!r}; it has: train, test")
    try:
        from sklearn import datasets  # Optional, and slow to import.
    except ImportError as error:
        raise UserError("the digits dataset is part of scikit-learn: run pip install 'advjax[digits]'") from error
    values, targets = datasets.load_digits(return_X_y=True)
    images = np.round(np.asarray(values) * (255 / _WHITE)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(targets, np.int32)
    train, test = train_validation(labels, num_validation=NUM_TEST, seed=0, name="digits test split")
    positions = train if split == "train" else test
    index = np.arange(len(positions), dtype=np.int32)
    return Dataset("digits", images[positions], labels[positions], index, tuple(str(i) for i in range(10)))
