"""Layers shared by several architectures.

Unless noted otherwise, layers are initialized as in PyTorch: weights and biases uniform in ±1/sqrt(fan_in).
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.models.blocks import Between, Classifier, not_empty
from advjax.types import Array

he_fan_out: Callable[..., Array] = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Normal with variance 2 / fan_out: torchvision's initialization of convolutions."""


torch_kernel_init: Callable[..., Array] = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for convolutions and linear layers: uniform in ±1/sqrt(fan_in)."""


def torch_bias_init(fan_in: int) -> Callable[..., Array]:
    """PyTorch's default for biases: uniform in ±1/sqrt(fan_in), where fan_in = kernel rows x columns x channels."""
    bound = fan_in**-0.5

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class ImageClassifier(Classifier):
    """A classifier that normalizes its input.

    Attributes:
      num_classes: number of logits.
      width: multiplier on all channel counts; every layer keeps at least one channel.
      mean, std: per-channel input normalization, for pixels in [0, 1].
    """

    num_classes: int = 10
    width: float = 1.0
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    def __post_init__(self):
        if not self.width > 0:
            raise ValueError(f"width must be positive, got {self.width}")
        super().__post_init__()

    def __call__(self, images: Array, *, train: bool = False, between: Between | None = None) -> Array:
        return super().__call__(self.prepare(images), train=train, between=between)

    def prepare(self, images: Array) -> Array:
        """The input of the first block."""
        normalized = (images - jnp.asarray(self.mean, images.dtype)) / jnp.asarray(self.std, images.dtype)
        if normalized.shape != images.shape:
            raise ValueError(f"mean {self.mean} and std {self.std} do not fit images of shape {images.shape[1:]}")
        return normalized

    def channels(self, *features: int) -> tuple[int, ...]:
        """Channel counts at this width."""
        return tuple(max(1, round(self.width * number)) for number in features)


class GaussianNoise(nn.Module):
    """``x + std * n`` with n standard normal if the call provides a key for the "noise" stream, otherwise ``x``.

    Random self-ensemble (Liu et al., 2018) draws noise both in training and in every evaluation, independently of
    ``train``. With ``std=0`` nothing is added.
    """

    std: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.std == 0 or not self.has_rng("noise"):
            return x
        return x + self.std * jax.random.normal(self.make_rng("noise"), x.shape, x.dtype)


class ConvNormRelu(nn.Module):
    """Convolution, BatchNorm, and, with ``relu``, ReLU.

    Attributes:
      features: number of output channels.
      size: side length of the kernel.
      stride: stride in both directions.
      padding: as for ``flax.linen.Conv``; by default ``size // 2`` on every side.
      use_bias: whether the convolution has a bias (redundant before BatchNorm).
      relu: whether to apply ReLU at the end.
      kernel_init: initializer of the convolution.
      decay, epsilon: parameters of BatchNorm.
      axis_name: mesh axis over which BatchNorm is synchronized.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: Any = None
    use_bias: bool = False
    relu: bool = True
    kernel_init: Callable[..., Array] = torch_kernel_init
    decay: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = conv(
            self.features,
            self.size,
            self.stride,
            padding=self.padding,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        x = batch_norm("norm", train, self.axis_name, momentum=self.decay, epsilon=self.epsilon)(x)
        return nn.relu(x) if self.relu else x


class Hidden(nn.Module):
    """Flattens its input (rows, columns, channels) and applies a linear layer and, with ``relu``, ReLU."""

    features: int
    relu: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = dense(x.reshape(x.shape[0], -1), self.features)
        return nn.relu(x) if self.relu else x


class AverageHead(nn.Module):
    """Global average pooling and a linear classifier."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return dense(global_average_pool(x), self.num_classes)


def conv(
    features: int,
    size: int = 3,
    stride: int = 1,
    *,
    padding: Any = None,
    use_bias: bool = False,
    fan_in: int | None = None,
    kernel_init: Callable[..., Array] = torch_kernel_init,
    name: str = "conv",
) -> nn.Conv:
    """A square convolution, padded with ``size // 2`` zeros on every side unless ``padding`` is given.

    The bias is initialized uniformly in ±1/sqrt(fan_in) if ``fan_in`` is given, otherwise to 0.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2 if padding is None else padding,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=nn.initializers.zeros if fan_in is None else torch_bias_init(fan_in),
        name=name,
    )


def batch_norm(
    name: str, train: bool, axis_name: str | None, *, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any
) -> nn.BatchNorm:
    """BatchNorm per channel: with batch statistics over all replicas in train mode, otherwise with running averages.

    The defaults are PyTorch's, whose "momentum" is one minus this one. Running variances average the biased batch
    variance, which is also used for normalization; PyTorch averages the unbiased one.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        epsilon=epsilon,
        axis_name=axis_name if train else None,
        name=name,
        **kwargs,
    )


def dense(x: Array, features: int, name: str = "dense") -> Array:
    """Applies a linear layer to ``x`` [n, inputs]; call it in a compact method."""
    return nn.Dense(features, kernel_init=torch_kernel_init, bias_init=torch_bias_init(x.shape[-1]), name=name)(x)


def global_average_pool(x: Array) -> Array:
    """Mean over rows and columns: [..., h, w, channels] -> [..., channels]."""
    return jnp.mean(not_empty(x), axis=(-3, -2))
