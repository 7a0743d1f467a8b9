"""Small classifiers with known answers, as pytrees that can be called, and the images to try them on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (5, 7, 2)
DUAL_ORDER = {"linf": 1, "l2": 2, "l1": np.inf}


class Linear(NamedTuple):
    """``<image, weights[..., class]> + bias[class]``."""

    weights: jax.Array
    bias: jax.Array

    def __call__(self, images):
        # A sum of products rather than a matrix product: the result for an image does not depend on the batch.
        return jnp.sum(images[..., None] * self.weights, axis=(1, 2, 3)) + self.bias


class SmoothNet(NamedTuple):
    """A strided convolution, tanh, and a dense layer: smooth, non-linear, far from confident."""

    kernel: jax.Array
    dense: jax.Array

    def __call__(self, images):
        dimensions = ("NHWC", "HWIO", "NHWC")
        hidden = jax.lax.conv_general_dilated(images - 0.5, self.kernel, (2, 2), "SAME", dimension_numbers=dimensions)
        return jnp.tanh(hidden).reshape(len(images), -1) @ self.dense


def random_linear(images, num_classes, seed=0):
    """Gaussian weights, and a bias that gives every class the same mean logit over ``images``."""
    weights = np.random.default_rng(seed).normal(size=(*images.shape[1:], num_classes)).astype(np.float32)
    return Linear(weights, -np.tensordot(images, weights, 3).mean(axis=0).astype(np.float32))


def smooth_net(num_classes=3, seed=0):
    random = np.random.default_rng(seed)
    kernel = random.normal(size=(3, 3, SHAPE[-1], 8)) * 0.8
    dense = random.normal(size=(3 * 4 * 8, num_classes)) * 0.5
    return SmoothNet(kernel.astype(np.float32), dense.astype(np.float32))


def gray_images(count=8, seed=1):
    """Images far from the pixel bounds."""
    return np.random.default_rng(seed).uniform(0.4, 0.6, (count, *SHAPE)).astype(np.float32)


def awkward_images(count=8, seed=2):
    """Any float32 in [0, 1], with many zeros, ones, their neighbors and tiny numbers."""
    random = np.random.default_rng(seed)
    images = random.uniform(0, 1, (count, *SHAPE)).astype(np.float32)
    special = np.float32([0, 1, np.nextafter(np.float32(1), np.float32(0)), 1e-30, 1e-8, 0.5])
    return np.where(random.uniform(size=images.shape) < 0.5, random.choice(special, images.shape), images)


class KnownDistance(NamedTuple):
    """A linear model, images, and the size of the smallest perturbation that fools it on each of them."""

    model: Linear
    images: np.ndarray
    labels: np.ndarray
    other_labels: np.ndarray
    """The class on the other side of the decision boundary."""
    epsilon: float


def known_distance(norm_name, margin=0.5, seed=3):
    """Classes 0 and 1 have opposite weights, class 2 is out of reach.

    All images have the same margin ``|z_0 - z_1|``, so the distance of each is ``margin / ||w_1 - w_0||_dual``.
    """
    images = gray_images(seed=seed)
    weights = np.random.default_rng(seed + 1).normal(size=SHAPE)
    labels = np.arange(len(images)) % 2
    difference = 2 * weights
    scores = np.tensordot(images - 0.5, difference, 3)
    wanted = np.where(labels == 1, margin, -margin)
    images = images + ((wanted - scores) / np.sum(difference**2))[:, None, None, None] * difference
    bias = np.float32([weights.sum() / 2, -weights.sum() / 2, -50])
    model = Linear(np.stack([-weights, weights, 0 * weights], axis=-1).astype(np.float32), bias)
    dual_norm = np.linalg.norm(difference.ravel(), DUAL_ORDER[norm_name])
    return KnownDistance(model, images.astype(np.float32), labels, 1 - labels, margin / dual_norm)


def lower_bounds(model, images, labels, norm_name):
    """Distance of each image to the nearest decision boundary of a linear model; 0 if it is misclassified."""
    logits = np.tensordot(images, model.weights, 3) + model.bias
    distances = []
    for scores, label in zip(logits, labels, strict=True):
        others = [c for c in range(len(scores)) if c != label]
        difference = model.weights.reshape(-1, len(scores))
        norms = [np.linalg.norm(difference[:, label] - difference[:, c], DUAL_ORDER[norm_name]) for c in others]
        distances.append(max(0.0, min((scores[label] - scores[c]) / n for c, n in zip(others, norms, strict=True))))
    return np.asarray(distances)


def keys_of(indices, seed=0):
    """One key per image, folded from its index."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(jnp.asarray(indices))


def perturbation_sizes(images, adversarial, norm_name):
    """Exact sizes: float32 arrays measured in float64."""
    delta = np.asarray(adversarial, np.float64) - np.asarray(images, np.float64)
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm_name]
    return np.linalg.norm(delta.reshape(len(delta), -1), order, axis=1)
