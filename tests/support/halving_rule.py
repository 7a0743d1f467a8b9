"""When AutoPGD halves its step size, written out."""

import numpy as np

from advjax.attacks.auto_pgd import checkpoints


def step_sizes(losses, best, first):
    """The step size of every step, recomputed from the losses that a run has seen: the conditions of algorithm 1.

    Args:
      losses: of the points that the steps reached, (steps, images).
      best: the highest so far, with that of the start, (steps + 1, images).
      first: the first step size.

    Returns:
      Array (steps, images).
    """
    num_steps, num_images = losses.shape
    # The implementation's array of losses is 0 before the first step.
    rises = np.diff(losses, axis=0, prepend=0) > 0
    sizes = np.full((num_steps, num_images), first, np.float32)
    previous, was_halved = 0, np.ones(num_images, bool)
    for checkpoint in checkpoints(num_steps):
        few_rises = np.mean(rises[previous:checkpoint], axis=0) <= 0.75
        stuck = ~was_halved & (best[previous] >= best[checkpoint])
        was_halved = few_rises | stuck
        sizes[checkpoint:, was_halved] /= 2
        previous = checkpoint
    return sizes
