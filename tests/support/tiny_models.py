"""The smallest networks with everything that matters in training: blocks, BatchNorm, noise layers."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from advjax.models import blocks
from advjax.models.blocks import Classifier
from advjax.models.layers import ConvNormRelu, GaussianNoise, Hidden
from advjax.training.step import DeviceData
from advjax.types import Batch

SHAPE = (4, 4, 2)
CLASSES = 3


class NoisyHidden(nn.Module):
    std: float

    @nn.compact
    def __call__(self, x, *, train=False):
        return Hidden(5)(GaussianNoise(self.std)(x))


class Tiny(Classifier):
    """A convolution with BatchNorm, a hidden layer, optionally behind noise, and logits."""

    noise: float = 0.0

    def make_blocks(self):
        return {
            "conv": ConvNormRelu(3, axis_name=self.axis_name),
            "hidden": NoisyHidden(self.noise),
            "head": Hidden(CLASSES, relu=False),
        }


class Smooth(Classifier):
    """No BatchNorm, and a gradient everywhere."""

    def make_blocks(self):
        return {"hidden": Tanh(), "head": Hidden(CLASSES, relu=False)}


class Tanh(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return jnp.tanh(Hidden(5, relu=False)(x))


def fresh(model, seed=0):
    return blocks.init(model, jax.random.key(seed), SHAPE)


def make_batch(count=8, masked=2, clean=False, seed=0):
    rng = np.random.default_rng(seed)
    labels = jnp.asarray(rng.integers(0, CLASSES, count), jnp.int32)
    images = jnp.asarray(rng.uniform(size=(count, *SHAPE)), jnp.float32)
    return Batch(
        images=images,
        labels=labels,
        targets=jax.nn.one_hot(labels, CLASSES),
        index=jnp.arange(count) + 100,
        mask=jnp.arange(count) < count - masked,
        clean=jnp.clip(images + 0.1, 0, 1) if clean else None,
    )


def make_data(count=22, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    images = rng.integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    return DeviceData(jnp.asarray(images), jnp.asarray(labels), jnp.arange(count, dtype=jnp.int32))


def value(objective, variables, batch, seed=0):
    """``(loss, (model_state, metrics))`` on one device."""
    return objective(variables.params, variables.model_state, batch, jax.random.key(seed), None)


def assert_close(a, b, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-6, **tolerance}
    chex.assert_trees_all_close(a, b, **tolerance)
