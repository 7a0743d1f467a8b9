"""Variables of networks drawn by NumPy: initializers compile several programs for each shape."""

import jax
import numpy as np

from advjax.models import blocks


def trained_looking(model, image_shape, seed=0):
    """Variables with every leaf away from its initial value, running statistics included; nothing is compiled."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        if path[-1].key == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(shape.shape[:-1])), shape.shape).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.7, 1.3, shape.shape).astype(np.float32)
        return rng.normal(0, 0.1, shape.shape).astype(np.float32)

    shapes = jax.eval_shape(lambda: blocks.init(model, jax.random.key(0), image_shape))
    return jax.tree.map_with_path(leaf, shapes)
